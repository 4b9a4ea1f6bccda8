// One picture: its way to the server, its answer, and where in it the evidence for a class is.

import { Trouble, request } from "./api.js";
import { Boxes } from "./boxes.js";
import { bytes, element, percent } from "./words.js";

const MOST_TRIES = 4; // of a request that a busy server refused
const MOST_LABELS = 50; // that are asked for of a multi-label model
const SMALL = 128; // pixels of the longer side up to which a picture is shown with its pixels
let numbers = 0;

const inMemory = (file) => (file.type.startsWith("image/") ? file.type : "application/octet-stream");

/** A picture with its card on the page. */
export class Picture {
  /**
   * `page` is what the card needs of the page: model(), top(), least(), limits(), say(text), lane(work), needsKey(),
   * changed(picture) and removed(picture).
   */
  constructor(file, page) {
    this.file = file;
    this.name = file.name || "picture";
    this.type = inMemory(file);
    this.page = page;
    this.result = null;
    this.explained = null; // index of the class whose evidence is shown
    this.asked = null; // what was asked for: model, and top and reject of a classifier
    this.controller = null;
    this.explaining = null;
    this.evidence = new Map(); // index of a class to its explanation
    this.address = URL.createObjectURL(file);
    this.node = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.part = (name) => this.node.querySelector(`.${name}`);
    this.boxes = new Boxes(this.part, (text) => this.page.say(`${this.name}: ${text}`));
    this.dress();
  }

  dress() {
    numbers += 1;
    const title = this.part("name");
    title.textContent = this.name;
    title.id = `picture-${numbers}`;
    this.node.querySelector("article").setAttribute("aria-labelledby", title.id);
    this.node.querySelector("article").tabIndex = -1;
    this.part("remove").setAttribute("aria-label", `Remove ${this.name}`);
    this.part("cancel").setAttribute("aria-label", `Cancel ${this.name}`);
    this.part("again").setAttribute("aria-label", `Try again: ${this.name}`);
    this.part("other-label").textContent = "Another class";
    const picture = this.part("picture");
    picture.alt = this.name;
    picture.onload = () => picture.classList.toggle("tiny", Math.max(picture.naturalWidth, picture.naturalHeight) <= SMALL);
    picture.onerror = () => {
      picture.hidden = true;
      this.part("no-preview").hidden = false;
    };
    picture.src = this.address;
    this.part("remove").onclick = () => this.remove();
    this.part("cancel").onclick = () => this.controller?.abort();
    this.part("again").onclick = () => this.ask();
    this.part("hide").onclick = () => {
      const pressed = this.part("bars").querySelector("[aria-pressed=true]");
      this.hideEvidence();
      (pressed || this.part("other").querySelector("input")).focus();
    };
    this.node.querySelector(".strength input").oninput = (event) => {
      this.part("evidence").style.opacity = event.target.value / 100;
    };
    this.part("other").onsubmit = (event) => {
      event.preventDefault();
      this.explainNamed(this.part("other").querySelector("input").value);
    };
  }

  remove() {
    this.stop();
    URL.revokeObjectURL(this.address);
    this.page.removed(this);
  }

  /** Ask nothing more of the server. */
  stop() {
    this.controller?.abort();
    this.explaining?.abort();
  }

  show(name) {
    for (const part of ["progress", "failure", "verdict"]) this.part(part).hidden = part !== name;
  }

  /** Ask the model that is chosen for this picture's classes. */
  async ask() {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    this.result = null;
    this.evidence.clear();
    this.hideEvidence();
    this.boxes.hide();
    this.show("progress");
    this.step("Waiting for its turn");
    try {
      const model = this.page.model();
      const asked = this.wish(model);
      const { max_body: limit } = this.page.limits();
      if (this.file.size > limit) {
        throw new Trouble("picture", `This file has ${bytes(this.file.size)}; the server takes up to ${bytes(limit)}. Make it smaller.`);
      }
      const answer = await this.page.lane(controller.signal, () => this.patiently(controller.signal, asked));
      if (this.controller !== controller) return;
      const [result] = answer.results;
      this.asked = asked;
      this.result = result;
      this.showResult(result, model);
      this.page.changed(this);
    } catch (trouble) {
      if (this.controller === controller) this.fail(trouble);
    }
  }

  /** What is asked of a model for this picture. */
  wish(model) {
    if (model.kind === "detector") return { model: model.name, threshold: model.least_score }; // the page leaves out the rest
    const most = model.multilabel ? Math.max(this.page.top(), MOST_LABELS) : this.page.top(); // all that may be answered
    return { model: model.name, top: Math.min(most, model.classes.length), reject: model.can_reject };
  }

  /** Send, and send again while the server is busy, as late as it says. */
  async patiently(signal, asked) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.send(signal, asked);
      } catch (trouble) {
        if (trouble.kind !== "busy") throw trouble;
        if (tries === MOST_TRIES) throw new Trouble("busy", "The server is still busy. Try again later.");
        this.page.say(`${this.name}: the server is busy, next try in ${trouble.retryAfter} seconds`);
        for (let left = trouble.retryAfter; left > 0; left -= 1) {
          this.step(`The server is busy. Next try in ${left} s`);
          await pause(1, signal);
        }
      }
    }
  }

  async send(signal, asked) {
    const values = { model: asked.model, name: this.name };
    for (const name of ["top", "threshold"]) if (asked[name] !== undefined) values[name] = String(asked[name]);
    if (asked.reject) values.reject = "true";
    if (asked.explain !== undefined) values.explain = String(asked.explain);
    await this.checkReadable();
    if (asked.explain === undefined) this.step("Sending");
    let clock = 0;
    try {
      return await request("POST", `predict?${new URLSearchParams(values)}`, {
        body: this.file,
        type: this.type,
        signal,
        seconds: this.page.limits().timeout,
        sent: (share) => {
          if (asked.explain !== undefined) return;
          if (share < 1) this.step(`Sending, ${Math.round(100 * share)} %`, share);
          if (share < 1 || clock) return;
          const began = Date.now();
          this.step("Waiting for the answer");
          clock = setInterval(() => this.step(`Waiting for the answer, ${Math.round((Date.now() - began) / 1000)} s`), 1000);
        },
      });
    } finally {
      clearInterval(clock);
    }
  }

  async checkReadable() {
    try {
      await this.file.slice(0, 1).arrayBuffer();
    } catch {
      throw new Trouble("picture", "This can’t be read. Is it a folder, or was the file moved?");
    }
  }

  step(text, share = null) {
    this.part("step").textContent = text;
    const bar = this.node.querySelector("progress");
    bar.setAttribute("aria-label", `Progress of ${this.name}`);
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
  }

  fail(trouble) {
    const text = trouble instanceof Trouble ? trouble.message : "The page failed to show the answer.";
    if (!(trouble instanceof Trouble)) console.error(trouble);
    this.part("reason").textContent = text;
    this.part("again").hidden = trouble.kind === "picture";
    this.show("failure");
    this.page.say(`${this.name}: ${text}`);
    if (trouble.kind === "key") this.page.needsKey();
  }

  showResult(result, model) {
    this.show("verdict");
    const finds = result.detections !== undefined;
    this.node.classList.toggle("boxed", finds);
    this.part("bars").hidden = finds;
    if (finds) this.showBoxes(result, model);
    else this.showClasses(result, model);
  }

  showBoxes(result, model) {
    for (const name of ["rejected", "other"]) this.part(name).hidden = true;
    this.part("verdict").classList.remove("doubtful");
    this.boxes.show(result, model, this.page.least());
    this.tellBoxes();
    this.page.say(`${this.name}: ${this.boxes.inWords}`);
  }

  /** Show the objects with another least score; null: the thresholds of the model. */
  filterBoxes(least) {
    if (!this.result?.detections) return;
    this.boxes.filter(least);
    this.tellBoxes();
  }

  tellBoxes() {
    this.part("best-label").textContent = this.boxes.inWords;
    this.part("best-percent").textContent = "";
    this.part("picture").alt = `${this.name}: ${this.boxes.inWords}`;
    this.part("objects").setAttribute("aria-label", `Objects in ${this.name}`);
  }

  showClasses(result, model) {
    const [best] = result.predictions;
    this.part("picture").alt = this.name;
    this.part("verdict").classList.toggle("doubtful", result.rejected === true);
    const reached = (one) => one.probability >= model.thresholds[one.index];
    const answered = model.multilabel ? result.predictions.filter(reached) : [best];
    const labels = answered.map((one) => one.label).join(", ") || "no label";
    this.part("best-label").textContent = labels;
    const shares = answered.map((one) => percent(one.probability)).join(", ");
    this.part("best-percent").textContent = shares;
    this.part("rejected").hidden = result.rejected !== true;
    if (result.rejected) {
      const least = percent(model.calibration.reject_below);
      this.part("rejected").textContent = `Perhaps none of these. The best guess has less than ${least}, as few pictures of the known classes do.`;
    }
    const explains = model.can_explain;
    this.part("other").hidden = !explains || result.predictions.length === model.classes.length;
    this.part("bars").replaceChildren(...result.predictions.map((one) => this.bar(one, explains)));
    const doubt = result.rejected ? "perhaps none of these; best guess " : "";
    this.page.say(`${this.name}: ${doubt}${[labels, shares].filter(Boolean).join(", ")}`);
  }

  bar(one, explains) {
    const fill = element("span", { className: "fill" });
    fill.style.width = `${100 * one.probability}%`;
    const track = element("span", { className: "track" }, fill);
    track.setAttribute("aria-hidden", "true");
    const label = element("span", { className: "bar-label", textContent: one.label });
    const share = element("span", { className: "percent", textContent: percent(one.probability) });
    const row = element(explains ? "button" : "div", { className: "bar" }, label, share, track);
    if (explains) {
      row.type = "button";
      row.title = `Show where the evidence for ${one.label} is`;
      row.dataset.index = one.index;
      row.setAttribute("aria-pressed", "false");
      row.onclick = () => (this.explained === one.index ? this.hideEvidence() : this.explain(one.index, one.label));
    }
    return element("li", {}, row);
  }

  explainNamed(text) {
    const wanted = text.trim();
    const { classes } = this.page.model();
    let index = classes.indexOf(wanted);
    if (index < 0) index = classes.findIndex((label) => label.toLowerCase() === wanted.toLowerCase());
    if (index < 0) {
      this.explainState(wanted ? `The model has no class “${wanted}”.` : "Enter the name of a class.");
      this.part("other").querySelector("input").focus();
      return;
    }
    this.explain(index, classes[index]);
  }

  explainState(text, aloud = true) {
    this.part("explain-state").hidden = !text;
    this.part("explain-state").textContent = text;
    if (text && aloud) this.page.say(`${this.name}: ${text}`);
  }

  /** Show where the evidence for a class is. */
  async explain(index, label) {
    this.explaining?.abort();
    const controller = new AbortController();
    this.explaining = controller;
    this.press(index);
    this.explainState(`Looking for the evidence for ${label}…`);
    try {
      if (!this.evidence.has(index)) {
        const asked = { model: this.asked.model, top: 1, reject: false, explain: index };
        const answer = await this.page.lane(controller.signal, () => this.patiently(controller.signal, asked));
        const { explanation } = answer.results[0];
        if (!explanation || explanation.error) throw new Trouble("server", explanation?.error || "The server gave no explanation.");
        this.evidence.set(index, explanation);
      }
      if (this.explaining === controller) this.showEvidence(index);
    } catch (trouble) {
      if (this.explaining !== controller || trouble.kind === "cancelled") return;
      this.press(null);
      this.explainState(trouble.message);
      if (trouble.kind === "key") this.page.needsKey();
    }
  }

  showEvidence(index) {
    const { label, probability, png } = this.evidence.get(index);
    const image = this.part("evidence");
    image.src = `data:image/png;base64,${png}`;
    image.alt = `Evidence for ${label} in ${this.name}: red where it is strongest`;
    image.hidden = false;
    this.node.querySelector(".strength input").setAttribute("aria-label", `Strength of the colours over ${this.name}`);
    this.part("caption").textContent = `Evidence for ${label}, ${percent(probability)}: red where it is strongest, darker where the network does not look`;
    this.part("evidence-tools").hidden = false;
    this.explained = index;
    this.explainState("", false);
    this.page.say(`The evidence for ${label} is drawn over ${this.name}`);
    this.page.changed(this);
  }

  hideEvidence() {
    this.explaining?.abort();
    this.explaining = null;
    this.press(null);
    this.explainState("", false);
    this.part("evidence").hidden = true;
    this.part("evidence-tools").hidden = true;
    if (this.explained === null) return;
    this.explained = null;
    this.page.changed(this);
  }

  press(index) {
    for (const row of this.part("bars").querySelectorAll("button")) {
      row.setAttribute("aria-pressed", String(row.dataset.index === String(index)));
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new Trouble("cancelled", "Cancelled."));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, 1000 * seconds);
    signal.addEventListener("abort", stop);
  });
}
