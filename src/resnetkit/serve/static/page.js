// The page: pictures come in by choosing, dropping, pasting or photographing; the answers and the code go out.

import { Trouble, hasKey, request, useKey } from "./api.js";
import { showAbout } from "./about.js";
import { curl, python } from "./code.js";
import { Picture } from "./picture.js";
import { bytes, counted } from "./words.js";

const LANES = 3; // pictures that are sent at the same time
const find = (id) => document.getElementById(id);

const state = { models: [], limits: null, model: null, pictures: [], last: [], least: null, language: "curl" };

const page = {
  model: () => state.model,
  top: () => Number(find("top").value),
  least: () => state.least,
  limits: () => state.limits,
  say,
  lane,
  needsKey: askForKey,
  changed: (picture) => {
    if (!state.last.includes(picture)) state.last = [picture];
    showCode();
  },
  removed: (picture) => {
    const place = state.pictures.indexOf(picture);
    state.pictures.splice(place, 1);
    state.last = state.last.filter((one) => one !== picture);
    picture.node.remove();
    const next = state.pictures[Math.min(place, state.pictures.length - 1)];
    (next ? next.node.querySelector("article") : find("choose")).focus();
    say(`${picture.name} was removed`);
    arrange();
  },
};

// Words for screen readers. Several within a moment are read one after the other.
let spoken = [];
let speaking = 0;
function say(text) {
  spoken.push(text);
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    find("status").textContent = spoken.join(". ");
    spoken = [];
  }, 150);
}

// A few requests at a time; the others wait for their turn.
let running = 0;
const waiting = [];
async function lane(signal, work) {
  if (running >= LANES) {
    await new Promise((resolve, reject) => {
      const turn = { resolve };
      waiting.push(turn);
      signal.addEventListener("abort", () => {
        const place = waiting.indexOf(turn);
        if (place < 0) return;
        waiting.splice(place, 1);
        reject(new Trouble("cancelled", "Cancelled."));
      });
    });
  } else {
    running += 1;
  }
  try {
    return await work();
  } finally {
    const next = waiting.shift();
    if (next) next.resolve();
    else running -= 1;
  }
}

async function begin() {
  find("trouble").hidden = true;
  try {
    const found = await request("GET", "models", { seconds: 15 });
    state.models = found.models;
    state.limits = found.limits;
    find("version").textContent = `resnetkit ${found.version}`;
    find("key-form").hidden = true;
    showModels();
  } catch (trouble) {
    if (trouble.kind === "key") {
      find("lead").textContent = "This server answers those who have its key.";
      askForKey();
      return;
    }
    find("lead").textContent = "";
    find("trouble-text").textContent = trouble.message;
    find("trouble").hidden = false;
  }
}

function askForKey() {
  const refused = hasKey();
  find("key-hint").textContent = refused
    ? "The server does not accept this key. Check it, and enter it again."
    : "This server asks for a key. It stays in this tab until you close it.";
  find("key").toggleAttribute("aria-invalid", refused);
  find("key-form").hidden = false;
  find("key").focus();
}

function showModels() {
  const select = find("model");
  select.replaceChildren(...state.models.map((one) => new Option(one.name, one.name)));
  find("model-choice").hidden = state.models.length < 2;
  const before = state.model?.name;
  useModel(state.models.find((one) => one.name === before) || state.models[0]);
  find("drop").hidden = false;
}

function useModel(model) {
  state.model = model;
  find("model").value = model.name;
  document.title = `${model.name} – resnetkit`;
  const lead = find("lead");
  const strong = document.createElement("strong");
  strong.textContent = model.name;
  const finds = model.kind === "detector";
  const few = model.classes.length <= 6 ? `: ${list(model.classes)}.` : `, such as ${list(model.classes.slice(0, 3))}.`;
  const classes = counted(model.classes.length, "class", "classes");
  lead.replaceChildren(strong, finds ? ` finds objects of ${classes}${few}` : ` tells ${classes} apart${few}`);
  find("drop-limits").textContent = `Any number of pictures, up to ${bytes(state.limits.max_body)} each`;
  find("explain-hint").textContent = hint(model);
  find("top-tool").hidden = finds;
  find("least-tool").hidden = !finds;
  if (finds) find("least").min = Math.ceil(100 * model.least_score);
  setLeast(null);
  showAbout(model);
}

function hint(model) {
  if (model.kind === "detector") return "Choose an object in the list or in the picture to see it alone.";
  if (model.can_explain) return "Choose a class to see where in the picture the evidence for it is.";
  return "This server can’t show where in a picture the evidence is.";
}

/** Show the objects from this score on; null: the thresholds that the model has for each class. */
function setLeast(least) {
  state.least = least;
  if (state.model.kind !== "detector") return;
  const { thresholds } = state.model;
  const [low, high] = [Math.min(...thresholds), Math.max(...thresholds)].map((one) => Math.round(100 * one));
  const own = low === high ? `${low} %` : `${low} to ${high} %, by class`;
  const text = least === null ? own : `${Math.round(100 * least)} %`;
  if (least === null) find("least").value = (low + high) / 2;
  find("least-value").textContent = text;
  find("least").setAttribute("aria-valuetext", least === null ? `as the model has it, ${own}` : text);
  find("least-reset").disabled = least === null;
  for (const one of state.pictures) one.filterBoxes(least);
  showCode();
}

function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** Take files as pictures and ask for their classes; the newest are on top. */
function add(files) {
  if (!state.model || !files.length) return;
  const added = [...files].map((file) => new Picture(file, page));
  state.pictures.unshift(...added);
  state.last = added;
  find("cards").prepend(...added.map((one) => one.node));
  say(`${counted(added.length, "picture")} added`);
  arrange();
  for (const one of added) one.ask();
}

function arrange() {
  const some = state.pictures.length > 0;
  find("results").hidden = !some;
  find("drop").classList.toggle("small", some);
  showCode();
}

function showCode() {
  const answered = state.last.filter((one) => one.result);
  find("code").hidden = !answered.length;
  if (!answered.length) return;
  const explained = answered.find((one) => one.explained !== null);
  const shown = explained ? [explained] : answered;
  const asked = {
    url: new URL(".", location.href).href,
    names: shown.map((one) => one.name),
    type: shown[0].type,
    model: state.models.length > 1 ? shown[0].asked.model : null,
    top: shown[0].asked.top,
    reject: shown[0].asked.reject,
    finds: shown[0].result.detections !== undefined,
    threshold: state.least,
    explain: explained ? explained.explained : null,
    key: hasKey(),
  };
  find("snippet").textContent = state.language === "curl" ? curl(asked) : python(asked);
}

async function copy() {
  const text = find("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text); // only on https and on this machine
  } catch {
    const range = document.createRange();
    range.selectNodeContents(find("snippet"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    if (!document.execCommand("copy")) {
      say("The text is selected; copy it with the keyboard");
      return;
    }
  }
  find("copy").textContent = "Copied";
  say("Copied");
  setTimeout(() => (find("copy").textContent = "Copy"), 2000);
}

find("choose").onclick = () => find("files").click();
find("photograph").onclick = () => find("camera").click();
for (const id of ["files", "camera"]) {
  find(id).onchange = (event) => {
    add(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  };
}
find("key-form").onsubmit = async (event) => {
  event.preventDefault();
  useKey(find("key").value);
  find("key").value = "";
  await begin();
  if (!find("key-form").hidden || !state.model) return;
  find("choose").focus();
  say("The server accepts this key");
  for (const one of state.pictures) if (!one.result) one.ask();
};
find("trouble-again").onclick = begin;
find("model").onchange = () => {
  useModel(state.models.find((one) => one.name === find("model").value));
  state.last = [...state.pictures];
  for (const one of state.pictures) one.ask();
};
find("top").onchange = () => {
  state.last = [...state.pictures];
  for (const one of state.pictures) one.ask();
};
find("least").oninput = () => setLeast(Number(find("least").value) / 100);
find("least").onchange = () => {
  const shown = state.pictures.filter((one) => one.result?.detections);
  if (shown.length) say(shown.map((one) => `${one.name}: ${one.boxes.inWords}`).slice(0, 3).join(". "));
};
find("least-reset").onclick = () => {
  setLeast(null);
  find("least").focus();
  say("The model’s own thresholds are used");
};
find("clear").onclick = () => {
  for (const one of [...state.pictures]) one.remove();
  find("choose").focus();
  say("All pictures were removed");
};
find("copy").onclick = copy;
for (const radio of document.querySelectorAll("[name=language]")) {
  radio.onchange = () => {
    state.language = radio.value;
    showCode();
  };
}

// The whole window takes pictures; entering a child leaves its parent, so entries are counted.
let inside = 0;
const carriesFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  inside += 1;
  find("drop").classList.add("over");
});
addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault();
});
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  inside = Math.max(0, inside - 1);
  if (!inside) find("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  inside = 0;
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files || [])];
  if (!files.length) return;
  event.preventDefault();
  add(files);
});

if (matchMedia("(max-width: 61.99rem)").matches) find("about-details").open = false;
begin();
