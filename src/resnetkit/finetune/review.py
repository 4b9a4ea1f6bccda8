"""A page to review likely label errors in a browser, which writes a file of corrections. It needs no network."""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.samples import Samples
from resnetkit.display import count
from resnetkit.errors import DataError
from resnetkit.files import expanded, write_whole
from resnetkit.finetune.labels import LabelErrors

MOST = 500
"""Most pictures on a page, the worst ones; with a larger number, browsers become slow."""
SIDE = 224
"""Longer side of a thumbnail in pixels."""
EXAMPLES = 3
EXAMPLE_SIDE = 72
"""Number and side of the pictures that show what a class looks like: those of the highest probability."""
QUALITY = 80

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --box: #f4f4f4; --rule: #ccc; --chosen: #0a6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #161616; --box: #232323; --rule: #4a4a4a; --chosen: #3d9; }
}
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 6rem; max-width: 70rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { line-height: 1.2; margin-bottom: .3rem; }
kbd { border: 1px solid var(--rule); border-radius: .25rem; padding: 0 .35rem; background: var(--box); }
ol { list-style: none; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
li { border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem; background: var(--box); }
li:focus { outline: 3px solid var(--chosen); }
li[data-action="relabel"], li[data-action="drop"], li[data-action="keep"] { border-color: var(--chosen); }
li > img { display: block; width: 100%; height: 14rem; object-fit: contain; }
.path { font-size: .85rem; }
.classes { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; margin: .5rem 0; }
.classes img { width: 30%; aspect-ratio: 1; object-fit: cover; }
.classes b { display: block; }
.choice { display: flex; flex-wrap: wrap; gap: .4rem; }
button, select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--rule);
  border-radius: .35rem; padding: .35rem .6rem; min-height: 2.4rem; max-width: 100%; }
button[aria-pressed="true"], li[data-action="relabel"] select.own { background: var(--chosen); color: #000; }
footer { position: fixed; inset: auto 0 0 0; background: var(--paper); border-top: 1px solid var(--rule);
  padding: .6rem 1rem; display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; justify-content: center; }
@media print { footer, .choice { display: none; } li { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const items = [...document.querySelectorAll("li")];
const store = "resnetkit review " + document.body.dataset.id;
const said = document.getElementById("said");
const classes = document.getElementById("classes");
let decided = {};
try { decided = JSON.parse(localStorage.getItem(store) || "{}"); } catch { }
function fill(select) {  // a copy of all classes in each item would make the page large
  if (select.options.length === 1) select.append(classes.content.cloneNode(true));
}
function show() {
  let done = 0;
  for (const item of items) {
    const [action, label] = decided[item.dataset.path] || ["", ""];
    if (action) done += 1;
    item.dataset.action = action;
    const suggested = action === "relabel" && label === item.dataset.suggested;
    for (const button of item.querySelectorAll("button")) {
      const on = button.dataset.action === action && (action !== "relabel" || suggested);
      button.setAttribute("aria-pressed", on);
    }
    const select = item.querySelector("select");
    if (action === "relabel" && !suggested) fill(select);
    select.value = action === "relabel" && !suggested ? label : "";
    select.classList.toggle("own", select.value !== "");
  }
  said.textContent = done + " of " + items.length + " decided";
  document.getElementById("save").disabled = done === 0;
  try { localStorage.setItem(store, JSON.stringify(decided)); } catch { }
}
function decide(item, action, label) {
  if (action) decided[item.dataset.path] = [action, action === "relabel" ? label : ""];
  else delete decided[item.dataset.path];
  show();
}
function go(item, by) {
  const next = items[items.indexOf(item) + by];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}
const keys = { s: "relabel", k: "keep", d: "drop", u: "" };
for (const item of items) {
  for (const button of item.querySelectorAll("button"))
    button.addEventListener("click", () => decide(item, button.dataset.action, item.dataset.suggested));
  const select = item.querySelector("select");
  for (const kind of ["focus", "pointerdown"]) select.addEventListener(kind, () => fill(select));
  select.addEventListener("change", () => decide(item, select.value ? "relabel" : "", select.value));
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const item = event.target.closest("li") || null;
  if (event.key === "ArrowDown" || event.key === "ArrowRight" || event.key === "n") go(item, 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft" || event.key === "p") item && go(item, -1);
  else if (item && event.key in keys) {
    decide(item, keys[event.key], item.dataset.suggested);
    if (keys[event.key]) go(item, 1);
  } else if (item && event.key === "c") item.querySelector("select").focus();
  else return;
  event.preventDefault();
});
const cell = text => /[",\\r\\n]|^\\s|\\s$/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
document.getElementById("save").addEventListener("click", () => {
  const rows = items.filter(item => decided[item.dataset.path]).map(item =>
    [item.dataset.path, ...decided[item.dataset.path]].map(cell).join(","));
  const text = ["path,action,label", ...rows, ""].join("\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "corrections.csv";
  link.click();
});
show();
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser loads nothing from elsewhere."""


def write_review(path: Path, found: LabelErrors, samples: Samples, *, data: str) -> None:
    """Write the page of likely label errors to `path`; a file there is replaced.

    `samples` are the pictures in which they were found, `data` is the name of the data set. The page shows at most MOST
    errors, each with its picture, its class and the suggested one. Paths in the corrections are relative to the folder
    of the data. Pictures in memory raise DataError, since corrections name files.
    """
    if samples.paths is None:
        raise DataError(f"{data}: its pictures are not files, so corrections can't name them")
    shown = found.errors[:MOST]
    examples = _examples(found, samples, {name for error in shown for name in (error.label, error.suggested)})
    items = "\n".join(
        _item(error.index, error.label, error.suggested, error.score, samples, examples, data) for error in shown
    )
    more = f" These are the worst {MOST:,} of {len(found.errors):,}." if len(found.errors) > MOST else ""
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in samples.classes)
    title = f"Likely label errors of {expanded(data).name or data}"
    nothing = "" if shown else "<p>There is nothing to review.</p>"
    name = quote(f"{data} {samples.fingerprint()}")
    write_whole(
        path,
        f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title><style>{STYLE}</style>
<body data-id="{escape(name)}"><h1>{escape(title)}</h1>
<p>{count(len(found.errors), "picture")} of {found.pictures:,}, worst first.{more} Each one was judged by a model that
was not fitted to it. The small pictures show the classes. <kbd>↓</kbd> <kbd>↑</kbd> go on and back, <kbd>s</kbd> takes
the suggestion, <kbd>k</kbd> keeps the label, <kbd>d</kbd> drops the picture, <kbd>c</kbd> chooses another class,
<kbd>u</kbd> undoes. Decisions stay in this browser until you download them.</p>
{nothing}<ol>{items}</ol><template id="classes">{options}</template>
<footer><span id="said" role="status"></span>
<button id="save" type="button">Download corrections.csv</button>
<span>then: <code>resnetkit train DATA --corrections corrections.csv</code></span></footer>
<script>{SCRIPT}</script></body></html>
""",
    )


def path_in_corrections(path: Path, data: str) -> str:
    """Return the path of a picture for a file of corrections: relative to the data's folder if it is below it."""
    root = expanded(data)
    root = root if root.is_dir() else root.parent
    relative = os.path.relpath(path, root)
    return str(path.absolute()) if relative.startswith(os.pardir) else Path(relative).as_posix()


def _item(
    index: int,
    label: str,
    suggested: str,
    score: float,
    samples: Samples,
    examples: dict[str, list[str]],
    data: str,
) -> str:
    """Return the list item of one picture."""
    assert samples.paths is not None
    named = escape(path_in_corrections(samples.paths[index], data))
    classes = "".join(
        f"<div>{what}<b>{escape(name)}</b>{''.join(examples.get(name, ()))}</div>"
        for what, name in (("label", label), ("suggestion", suggested))
    )
    return (
        f'<li tabindex="0" data-path="{named}" data-suggested="{escape(suggested)}">'
        f'<img alt="{named}" src="{_thumbnail(samples, index, SIDE)}">'
        f'<div class="path">{named}, score {score:.3f}</div><div class="classes">{classes}</div>'
        '<div class="choice">'
        '<button type="button" data-action="relabel">Take suggestion</button>'
        '<button type="button" data-action="keep">Keep</button>'
        '<button type="button" data-action="drop">Drop</button>'
        f'<select aria-label="another class"><option value="">another class</option></select></div></li>'
    )


def _examples(found: LabelErrors, samples: Samples, names: set[str]) -> dict[str, list[str]]:
    """Return pictures of each class as HTML: those of which the class is the most certain and that are not listed."""
    listed = {error.index for error in found.errors}
    labels = samples.labels[found.indices]
    examples: dict[str, list[str]] = {}
    for name in sorted(names):
        places = np.flatnonzero(labels == samples.classes.index(name))
        best = _first(found.indices[places[np.argsort(-found.own[places], kind="stable")]], listed)
        examples[name] = [f'<img alt="" src="{_thumbnail(samples, index, EXAMPLE_SIDE)}"> ' for index in best]
    return examples


def _first(indices: NDArray[np.int64], listed: "set[int]") -> Sequence[int]:
    return [index for index in indices.tolist() if index not in listed][:EXAMPLES]


def _thumbnail(samples: Samples, index: int, side: int) -> str:
    """Return a picture as a data URI: JPEG with at most `side` pixels a side."""
    picture = open_picture(samples.source(index))
    picture.thumbnail((side, side), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    picture.convert("RGB").save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
