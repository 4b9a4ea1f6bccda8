"""The HTML report of a finished run or an evaluation: errors, curves, each class, and confusions."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from resnetkit.data.parts import drawn
from resnetkit.display import count, middle_cut, table
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.files import write_whole
from resnetkit.location import short_name
from resnetkit.modelfile import Header

MOST_CLASSES = 30  # largest table of confusions; for more classes, the most frequent confusions are listed
MOST_FILES = 200  # at most this many unreadable files are listed
LONGEST_HEAD = 24  # longest class name at the head of a column, in characters

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --stripe: #f4f4f4; --rule: #ccc; --note: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #161616; --stripe: #232323; --rule: #444; --note: #e0b050; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { margin-bottom: 0; line-height: 1.2; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; }
td, th { padding: .2rem .6rem; text-align: right; vertical-align: bottom; overflow-wrap: normal; }
td { white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td:first-child, .words td { white-space: normal; overflow-wrap: anywhere; min-width: min(12rem, 30vw); }
table:not(.confusion) tr:nth-child(even) { background: var(--stripe); }
.note { color: var(--note); }
img { max-width: 100%; height: auto; background: #fff; }
.confusion th { font-weight: normal; }
.confusion th:not(:first-child) { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .6rem .2rem; white-space: nowrap; }
.confusion td { min-width: 1.6rem; border: 1px solid var(--rule); }
.confusion td:first-child { border: 0; white-space: nowrap; min-width: 0; position: sticky; left: 0;
  background: var(--paper); }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; }
  td, th { padding: .2rem .35rem; }
}
"""


def write_report(
    path: Path,
    header: Header,
    *,
    title: str,
    evaluated: Evaluation | None,
    recipe: Mapping[str, Any],
    on: str = "",
    curves: bytes | None = None,
    before: str = "",
) -> None:
    """Write the report of a model with this `header` to `path`. A file at `path` is replaced.

    `evaluated` is the evaluation of the model; None leaves it out. `on` names its pictures, such as "validation
    pictures". `recipe` contains the fields to show, in their order. `curves` is a PNG image. `before` is HTML
    that comes first.
    """
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{_summary(header)}</p>", before]
    if evaluated is not None:
        parts += [f"<h2>On {evaluated.images:,} {escape(on)}</h2>", *_said_of(evaluated, header), _errors(evaluated)]
    if curves:
        parts.append(
            f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{base64.b64encode(curves).decode()}">'
        )
    if evaluated is not None:
        parts += ["<h2>Classes</h2>", _scrolled(table(*evaluated.table())), "<h2>Confusions</h2>"]
        parts.append(_confusions(evaluated))
        parts += _unreadable(evaluated)
    if recipe:
        rows = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in recipe.items()]
        parts += ["<h2>Recipe</h2>", _scrolled(table(("field", "value"), rows, kind="words"))]
    if header.origin:
        rows = [(name, str(value)) for name, value in header.origin.items()]
        parts += ["<h2>Origin</h2>", _scrolled(table(("field", "value"), rows, kind="words"))]
    write_whole(
        path,
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>" + "\n".join(parts) + "</html>\n",
    )


def _summary(header: Header) -> str:
    spec = header.spec
    trained_on = f"Trained on {short_name(header.data['name'])}. " if "name" in header.data else ""
    return escape(
        f"{spec.layers} layers, {spec.parameters:,} parameters, {count(len(header.classes), 'class')}, pictures of "
        f"{header.preprocess.size} pixels. {trained_on}Written by resnetkit {header.version}."
    )


def _said_of(evaluated: Evaluation, header: Header) -> list[str]:
    split = header.data.get("split", {})
    if evaluated.part:
        why = f"{evaluated.part}: {evaluated.why}."
    elif drawn(split):
        why = f"Chosen at random from the set's training pictures (seed {split.get('seed')}), and not trained on."
    else:
        why = ""
    notes = [f'<p class="note">{escape(note[0].upper() + note[1:])}.</p>' for note in evaluated.notes]
    return [f"<p>{escape(why)}</p>", *notes] if why else notes


def _errors(evaluated: Evaluation) -> str:
    rows = [("top-1 error", f"{evaluated.top1_error_percent:.2f} %")]
    if evaluated.has_top5:
        rows.append(("top-5 error", f"{evaluated.top5_error_percent:.2f} %"))
    rows.append(("cross-entropy", f"{evaluated.loss:.4f}"))
    if evaluated.unreadable:
        rows.append(("unreadable pictures", f"{len(evaluated.unreadable):,}"))
    return _scrolled(table(("", "value"), rows))


def _confusions(evaluated: Evaluation) -> str:
    names, counts = evaluated.classes, evaluated.confusion
    if len(names) > MOST_CLASSES:
        pairs = [(int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
        rows = [(names[i], names[j], str(count)) for count, i, j in sorted(pairs, reverse=True)[:MOST_CLASSES]]
        return _scrolled(table(("label", "prediction", "pictures"), rows))
    head = "".join(f'<th title="{escape(name)}">{escape(middle_cut(name, LONGEST_HEAD))}</th>' for name in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        total = max(int(row.sum()), 1)
        cells = "".join(f'<td style="background:rgba(31,119,180,{0.7 * n / total:.2f})">{n}</td>' for n in row.tolist())
        body += f'<tr><td title="{escape(name)}">{escape(middle_cut(name, LONGEST_HEAD))}</td>{cells}</tr>'
    return "<p>Rows are labels, columns predictions.</p>" + _scrolled(
        f'<table class="confusion"><tr><th></th>{head}</tr>{body}</table>'
    )


def _unreadable(evaluated: Evaluation) -> list[str]:
    rows = [(str(file), reason) for file, reason in evaluated.unreadable.items()]
    if not rows:
        return []
    more = [f"<p>and {len(rows) - MOST_FILES:,} more</p>"] if len(rows) > MOST_FILES else []
    listed = _scrolled(table(("file", "reason"), rows[:MOST_FILES], kind="words"))
    return ["<h2>Unreadable pictures</h2>", listed, *more]


def _scrolled(table: str) -> str:
    """Return a table in a box that scrolls, so that a wide table does not make the page scroll."""
    return f'<div class="scroll">{table}</div>'
