// The model's card: what it tells apart, what it does with pictures, what is known of its errors, its licence.

import { counted, element, percent } from "./words.js";

const CHIPS = 60; // classes that are shown before somebody looks for one
const find = (id) => document.getElementById(id);

/** Show the card of a model, as GET /models gives it. */
export function showAbout(model) {
  const facts = find("facts");
  facts.replaceChildren();
  for (const [name, value] of known(model)) {
    facts.append(element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value })));
  }
  find("classes-title").textContent = counted(model.classes.length, "class", "classes");
  find("classes-find").hidden = model.classes.length <= CHIPS;
  find("find").value = "";
  find("find").oninput = () => showClasses(model.classes, find("find").value);
  showClasses(model.classes, "");
  find("class-names").replaceChildren(
    ...model.classes.map((label) => element("option", { value: label })),
  );
  find("about").hidden = false;
}

function showClasses(classes, wanted) {
  const needle = wanted.trim().toLowerCase();
  const found = classes.filter((label) => label.toLowerCase().includes(needle));
  const chips = found.slice(0, CHIPS).map((label) => element("li", { textContent: label }));
  if (found.length > CHIPS) chips.push(element("li", { textContent: `and ${(found.length - CHIPS).toLocaleString("en")} more` }));
  if (!found.length) chips.push(element("li", { textContent: "no class has this in its name" }));
  find("classes").replaceChildren(...chips);
}

function* known(model) {
  yield ["Name", model.name];
  const around = { fpn: "Faster R-CNN with a pyramid (FPN) on ", c4: "Faster R-CNN (C4) on " }[model.head] || "";
  yield ["Network", `${around}${model.network}, ${(model.parameters / 1e6).toFixed(1)} million parameters`];
  if (model.data) yield ["Trained on", model.data];
  if (model.kind === "detector") yield ["Average precision", precisionOf(model.metrics)];
  else yield ["Error", errorOf(model.metrics)];
  yield ["Pictures", model.pictures];
  if (model.kind === "detector") {
    yield ["Least scores", model.classes.slice(0, 6).map((label, index) => `${label} ${percent(model.thresholds[index])}`).join(", ")];
    yield ["Objects", `${model.most_detections} in a picture at most`];
  } else if (model.calibration) {
    const { temperature, pictures, reject_below: least } = model.calibration;
    yield ["Probabilities", `calibrated on ${counted(pictures, "validation picture")}, temperature ${temperature.toPrecision(3)}`];
    if (!model.multilabel) yield ["None of these", least > 0 ? `said if the best class has less than ${percent(least)}` : "never said: the validation had too few pictures"];
  } else {
    yield ["Probabilities", "as the network gives them, not calibrated; often too sure"];
  }
  if (model.multilabel) yield ["Answers", "every class whose probability reaches its threshold; perhaps none"];
  yield ["Licence", model.origin.licence || "not stated"];
  if (model.origin.source) yield ["From", [model.origin.source, model.origin.weights].filter(Boolean).join(", ")];
  yield ["Computed by", model.computed_by];
}

function precisionOf(metrics) {
  const found = metrics.ap50_percent;
  return typeof found === "number" ? `AP50 ${Number(found.toFixed(1))} %${measuredOn(metrics)}` : "not stated";
}

function errorOf(metrics) {
  const top1 = metrics.error_percent ?? metrics.top1_error_percent;
  if (typeof top1 !== "number") return "not stated";
  return `${Number(top1.toFixed(2))} %${measuredOn(metrics)}`;
}

function measuredOn(metrics) {
  const part = { val: "validation pictures", test: "test pictures", train: "training pictures" }[metrics.part];
  return metrics.images ? ` of ${metrics.images.toLocaleString("en")} ${part || "pictures"}` : "";
}
