"""A finished run or an evaluation as one page of HTML: errors, curves, each class, and which classes are confused."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from resnetkit.files import write_whole
from resnetkit.modelfile import Header
from resnetkit.train.metrics import Evaluation

MOST_CLASSES = 30  # a larger table of confusions can't be read; the most frequent ones are listed instead

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
img { max-width: 100%; }
.confusion td { min-width: 2.2rem; } .confusion th { font-weight: normal; } h1 { margin-bottom: 0; }
"""


def write_report(
    path: Path, header: Header, *, title: str, evaluated: Evaluation | None, on: str = "", curves: bytes | None = None
) -> None:
    """Write the page to `path`. `evaluated` was measured `on` (say, validation pictures); `curves` is a PNG."""
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{_summary(header)}</p>"]
    if evaluated is not None:
        parts += [
            f"<h2>On {evaluated.images:,} {escape(on)}</h2>",
            _table(
                ("", "value"),
                [
                    ("top-1 error", f"{evaluated.top1_error_percent:.2f} %"),
                    ("top-5 error", f"{evaluated.top5_error_percent:.2f} %"),
                    ("cross-entropy", f"{evaluated.loss:.4f}"),
                    ("unreadable pictures", str(len(evaluated.unreadable))),
                ],
            ),
        ]
    if curves:
        parts.append(
            f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{base64.b64encode(curves).decode()}">'
        )
    if evaluated is not None:
        parts += ["<h2>Classes</h2>", _classes(evaluated), "<h2>Confusions</h2>", _confusions(evaluated)]
        if evaluated.unreadable:
            rows = [(str(file), reason) for file, reason in evaluated.unreadable.items()]
            parts += ["<h2>Unreadable pictures</h2>", _table(("file", "reason"), rows)]
    recipe = [(name, str(value)) for name, value in header.recipe.items()]
    parts += ["<h2>Recipe</h2>", _table(("field", "value"), recipe)]
    write_whole(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        + "\n".join(parts)
        + "</html>\n",
    )


def _summary(header: Header) -> str:
    spec = header.spec
    trained_on = f"Trained on {header.data['name']}. " if "name" in header.data else ""
    return escape(
        f"{spec.layers} layers, {spec.parameters:,} parameters, {len(header.classes)} classes, pictures of "
        f"{header.preprocess.size} pixels. {trained_on}Written by resnetkit {header.version}."
    )


def _classes(evaluated: Evaluation) -> str:
    rows = [
        (name, f"{row['images']:,}", f"{row['top1_error_percent']:.2f} %", f"{row['top5_error_percent']:.2f} %")
        for name, row in sorted(evaluated.per_class.items(), key=lambda item: -item[1]["top1_error_percent"])
    ]
    return _table(("class", "pictures", "top-1 error", "top-5 error"), rows)


def _confusions(evaluated: Evaluation) -> str:
    names, counts = evaluated.classes, evaluated.confusion
    if len(names) > MOST_CLASSES:
        pairs = [(int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
        rows = [(names[i], names[j], str(count)) for count, i, j in sorted(pairs, reverse=True)[:MOST_CLASSES]]
        return _table(("label", "taken for", "pictures"), rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        total = max(int(row.sum()), 1)
        cells = "".join(f'<td style="background:rgba(31,119,180,{n / total:.2f})">{n}</td>' for n in row.tolist())
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return (
        f'<p>Rows are labels, columns predictions.</p><table class="confusion"><tr><th></th>{head}</tr>{body}</table>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
