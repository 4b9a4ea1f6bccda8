// What a detector found in a picture: boxes over it, a legend of the classes, and a list with the places in words.

import { counted, element, percent } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8; // --class-0 to --class-7 in page.css; the boxes of later classes are dashed
const LONGEST = 24; // letters of a class over its box
const TEXT = 16; // pixels that a label over a box needs

/** The boxes of one picture. `part(name)` gives the elements of its card, `say(text)` speaks. */
export class Boxes {
  constructor(part, say) {
    this.part = part;
    this.say = say;
    this.result = null;
    this.model = null;
    this.least = null; // the least score that is shown; null: the thresholds of the model
    this.without = new Set(); // indices of classes that are switched off
    this.chosen = null; // the object that is held, as it stands in the result
    new ResizeObserver(() => this.measure()).observe(part("boxes"));
    part("objects").onkeydown = (event) => this.step(event);
    part("objects").onmouseleave = () => this.light(this.chosen);
    part("objects").onfocusout = () => this.light(this.chosen);
  }

  /** Show an answer of /predict; `least` replaces the model's thresholds. */
  show(result, model, least) {
    if (this.model?.name !== model.name) this.without.clear();
    this.result = result;
    this.model = model;
    this.chosen = null;
    this.part("boxes").setAttribute("viewBox", `0 0 ${result.width} ${result.height}`);
    this.filter(least);
  }

  hide() {
    this.result = null;
    for (const name of ["boxes", "legend", "objects"]) this.part(name).toggleAttribute("hidden", true);
  }

  /** Show the objects that reach `least`, or the thresholds of their classes. */
  filter(least) {
    this.least = least;
    this.draw();
  }

  /** Objects by number, such as "14 RBC, 1 WBC". */
  get inWords() {
    const found = this.reaching();
    const counts = this.model.classes.map((label, index) => [found.filter((one) => one.index === index).length, label]);
    const most = counts.filter(([count]) => count).sort(([one], [other]) => other - one);
    return most.map(([count, label]) => `${count} ${label}`).join(", ") || "Nothing found";
  }

  reaching() {
    return this.result.detections.filter((one) => one.score >= (this.least ?? this.model.thresholds[one.index]));
  }

  draw() {
    const reaching = this.reaching();
    const shown = reaching.filter((one) => !this.without.has(one.index));
    if (!shown.includes(this.chosen)) this.chosen = null;
    const best = [...shown].reverse(); // is drawn last, above the others
    this.part("boxes").replaceChildren(...best.map((one) => this.frame(one)), ...best.map((one) => this.label(one)));
    this.part("legend").replaceChildren(...this.legend(reaching));
    const rows = shown.map((one, place) => this.row(one, place === 0));
    this.part("objects").replaceChildren(...rows.map((row) => element("li", {}, row)));
    this.part("boxes").removeAttribute("hidden"); // an SVG has no property of this name
    this.part("legend").hidden = !reaching.length;
    this.part("objects").hidden = !shown.length;
    this.measure();
    this.light(this.chosen);
  }

  /** A part of the drawing that belongs to an object. */
  group(one, ...children) {
    const group = svg("g", { class: "box", "data-place": this.result.detections.indexOf(one) });
    group.style.setProperty("--color", colorOf(one.index));
    group.append(...children);
    group.onclick = () => this.hold(one);
    return group;
  }

  frame(one) {
    const [left, top, right, bottom] = one.box;
    const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
    const line = one.index >= COLORS ? "line dashed" : "line";
    return this.group(one, svg("rect", { class: "halo", ...place }), svg("rect", { class: line, ...place }));
  }

  label(one) {
    const [left, top, right] = one.box;
    const atRight = left > 0.8 * this.result.width;
    const text = svg("text", { x: atRight ? right : left, y: top, "text-anchor": atRight ? "end" : "start" });
    const label = one.label.length > LONGEST ? `${one.label.slice(0, LONGEST - 1)}…` : one.label;
    text.textContent = `${label} ${Math.round(100 * one.score)} %`;
    return this.group(one, text);
  }

  legend(reaching) {
    return this.model.classes.flatMap((label, index) => {
      const count = reaching.filter((one) => one.index === index).length;
      if (!count) return [];
      const button = element("button", { type: "button", className: "key-color" }, swatch(index), `${label} ${count}`);
      button.setAttribute("aria-pressed", String(!this.without.has(index)));
      button.title = `Show or hide ${label}`;
      button.onclick = () => {
        if (!this.without.delete(index)) this.without.add(index);
        const place = [...this.part("legend").querySelectorAll("button")].indexOf(button);
        this.draw();
        this.part("legend").querySelectorAll("button")[place].focus();
        this.say(`${counted(count, "object")} of class ${label} ${this.without.has(index) ? "hidden" : "shown"}`);
      };
      return [element("li", {}, button)];
    });
  }

  row(one, first) {
    const [left, top, right, bottom] = one.box.map(Math.round);
    const where = element("span", { className: "where" });
    where.textContent = `${placeOf(one.box, this.result)}, ${right - left} × ${bottom - top} px`;
    const label = element("span", { className: "bar-label", textContent: one.label });
    const share = element("span", { className: "percent", textContent: percent(one.score) });
    const button = element("button", { type: "button", className: "object" }, swatch(one.index), label, share, where);
    button.tabIndex = first ? 0 : -1; // one stop for the whole list; arrows go through it
    button.dataset.place = this.result.detections.indexOf(one);
    button.onmouseenter = () => this.light(one);
    button.onfocus = () => this.light(one);
    button.onclick = () => this.hold(one);
    return button;
  }

  /** Keep one object in the light; once more lets it go. */
  hold(one) {
    this.chosen = this.chosen === one ? null : one;
    this.light(this.chosen);
    const rows = this.part("objects").querySelectorAll("button");
    for (const row of rows) if (this.result.detections[row.dataset.place] === this.chosen) row.scrollIntoView({ block: "nearest" });
    if (this.chosen) this.say(`${one.label}, ${placeOf(one.box, this.result)}, is shown alone`);
  }

  light(one) {
    if (!this.result) return;
    const isIt = (node) => one !== null && this.result.detections[node.dataset.place] === one;
    this.part("boxes").classList.toggle("dimmed", one !== null);
    for (const group of this.part("boxes").querySelectorAll(".box")) group.classList.toggle("lit", isIt(group));
    for (const row of this.part("objects").querySelectorAll("button")) {
      row.classList.toggle("lit", isIt(row));
      row.setAttribute("aria-pressed", String(this.chosen !== null && this.result.detections[row.dataset.place] === this.chosen));
    }
  }

  step(event) {
    const rows = [...this.part("objects").querySelectorAll("button")];
    const place = rows.indexOf(document.activeElement);
    const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (place < 0 || next === undefined) return;
    event.preventDefault();
    const row = rows[Math.min(Math.max(next, 0), rows.length - 1)];
    for (const one of rows) one.tabIndex = one === row ? 0 : -1;
    row.focus();
  }

  /** Text keeps its size on the screen, whatever the size of the picture. */
  measure() {
    const shown = this.part("boxes").getBoundingClientRect();
    if (!this.result || !shown.width || !shown.height) return;
    const unit = Math.max(this.result.width / shown.width, this.result.height / shown.height);
    this.part("boxes").style.setProperty("--unit", unit);
    for (const text of this.part("boxes").querySelectorAll("text")) {
      const top = Number(text.getAttribute("y"));
      text.setAttribute("dy", (top > TEXT * unit ? -5 : 12) * unit);
      text.setAttribute("dx", (text.getAttribute("text-anchor") === "end" ? -3 : 3) * unit);
    }
  }
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function colorOf(index) {
  return `var(--class-${index % COLORS})`;
}

function swatch(index) {
  const made = element("span", { className: index >= COLORS ? "swatch dashed" : "swatch" });
  made.setAttribute("aria-hidden", "true");
  made.style.setProperty("--color", colorOf(index));
  return made;
}

/** Where a box is, by its middle: "top left", "right", "middle". */
export function placeOf([left, top, right, bottom], { width, height }) {
  const x = (left + right) / 2 / width;
  const y = (top + bottom) / 2 / height;
  const row = y < 1 / 3 ? "top" : y > 2 / 3 ? "bottom" : "";
  const column = x < 1 / 3 ? "left" : x > 2 / 3 ? "right" : "";
  return [row, column].filter(Boolean).join(" ") || "middle";
}
