"""The HTML report of a finished run or an evaluation: one page that needs no network."""

import base64
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resnetkit.data.parts import drawn
from resnetkit.display import count, middle_cut, table
from resnetkit.evaluation.drawing import STYLE, reliability_diagram
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.mistakes import Mistake, mistakes_section
from resnetkit.files import write_whole
from resnetkit.location import short_name
from resnetkit.modelfile import Header
from resnetkit.page import page, scrolled
from resnetkit.version import __version__

MOST_ROWS = 300
"""Largest number of rows in the table of the classes."""
MOST_CLASSES = 30  # largest table of confusions; for more classes, the most frequent confusions are listed
MOST_FILES = 200  # at most this many unreadable files are listed
LONGEST_HEAD = 24  # longest class name at the head of a column, in characters
NOTHING: Mapping[str, str] = MappingProxyType({})


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
    mistakes: Sequence[Mistake] = (),
    compared: Mapping[str, str] = NOTHING,
    sections: Mapping[str, str] = NOTHING,
    made_by: Mapping[str, str] = NOTHING,
) -> None:
    """Write the report of a model with this `header` to `path`. A file at `path` is replaced.

    `evaluated` is the evaluation of the model; None leaves it out. `on` names its pictures, such as "validation
    pictures". `recipe` contains the fields to show, in their order. `curves` is a PNG image. `mistakes` are shown with
    their pictures. `compared` are further results, as name and text: another model, other shares of the classes.
    `sections` are further parts of the page, as heading and HTML. `made_by` says how to get the same page again: the
    command and others. `before` is HTML that comes first.
    """
    parts = [f"<p>{_summary(header)}</p>", before]
    if evaluated is not None:
        parts += [f"<h2>On {evaluated.images:,} {escape(on)}</h2>", *_said_of(evaluated, header), _figures(evaluated)]
        parts += [_errors(evaluated, compared)]
        parts += mistakes_section(mistakes, "the predicted class")
        parts += ["<h2>Classes</h2>", _classes(evaluated), "<h2>Confusions</h2>", _confusions(evaluated)]
        parts += _calibration(evaluated)
    for heading, html in sections.items():
        parts += [f"<h2>{escape(heading)}</h2>", html]
    if curves:
        encoded = base64.b64encode(curves).decode()
        parts.append(f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{encoded}">')
    if evaluated is not None:
        parts += _unreadable(evaluated)
    if recipe:
        rows = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in recipe.items()]
        parts += ["<h2>Recipe</h2>", scrolled(table(("field", "value"), rows, kind="words"))]
    if header.origin:
        rows = [(name, str(value)) for name, value in header.origin.items()]
        parts += ["<h2>Origin</h2>", scrolled(table(("field", "value"), rows, kind="words"))]
    if made_by:
        parts += ["<h2>Made by</h2>", scrolled(table(("", ""), list(made_by.items()), kind="words"))]
    write_whole(path, page(title, parts, style=STYLE))


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on, for `made_by`."""
    import torch

    return {"resnetkit": __version__, "torch": str(torch.__version__), "Python": platform.python_version()}


def _figures(evaluated: Evaluation) -> str:
    """Return the most important numbers, large."""
    low, high = evaluated.interval_percent
    figures = [
        (f"{100 - evaluated.top1_error_percent:.2f} %", "accuracy", f"{100 - high:.1f} to {100 - low:.1f} %"),
        (f"{evaluated.top1_error_percent:.2f} %", "error", f"{low:.1f} to {high:.1f} %"),
    ]
    if (found := evaluated.reliability) is not None:
        low, high = found.interval_percent
        figures.append((f"{found.ece_percent:.1f} %", "calibration error", f"{low:.1f} to {high:.1f} %"))
    smallest = evaluated.smallest_difference_percent
    figures.append((f"{smallest:.1f} points", "smallest visible difference", "between two models"))
    cells = "".join(f"<div><b>{number}</b>{name}<small>{more}</small></div>" for number, name, more in figures)
    return (
        f'<div class="figures">{cells}</div><p class="faint">Below the numbers are 95 % intervals, for other pictures '
        f"like these. So many pictures are likely to show a difference between two models only if it is "
        f"{smallest:.1f} points or more.</p>"
    )


def _classes(evaluated: Evaluation) -> str:
    """Return the table of the classes, the one with the lowest recall first."""
    top5 = evaluated.has_top5
    head = ("class", "pictures", "recall", "precision", "top-1 error", *(("top-5 error",) if top5 else ()))
    rows: list[list[str]] = []
    ordered = sorted(evaluated.per_class.items(), key=lambda item: item[1]["recall_percent"])
    for name, row in ordered[:MOST_ROWS]:
        precision = "-" if row["precision_percent"] is None else f"{row['precision_percent']:.2f} %"
        cells = [name, f"{row['images']:,}", f"{row['recall_percent']:.2f} %", precision]
        cells += [f"{row[key]:.2f} %" for key in ("top1_error_percent", "top5_error_percent")[: 1 + top5]]
        rows.append(cells)
    more = (
        f"<p>and {len(ordered) - MOST_ROWS:,} more classes; the JSON result names them</p>"
        if len(ordered) > MOST_ROWS
        else ""
    )
    return (
        "<p>Recall: the share of the class's pictures that are recognised. Precision: the share of right ones among "
        f"the pictures that are taken for the class.</p>{scrolled(table(head, rows))}{more}"
    )


def _calibration(evaluated: Evaluation) -> list[str]:
    """Return the part on what the probabilities are worth."""
    after, before, calibration = evaluated.reliability, evaluated.uncalibrated, evaluated.calibration
    if after is None or before is None:
        return []
    low, high = after.interval_percent
    text = (
        f"Where the model states a probability of 80 %, it should be right in 80 % of the pictures. On average it is "
        f"off by {after.ece_percent:.1f} points ({low:.1f} to {high:.1f}; expected calibration error, bins of equally "
        f"many pictures). On so many pictures, a perfectly calibrated model would show about "
        f"{after.noise_percent[0]:.1f} points."
    )
    if calibration is not None and calibration.temperature == 1:
        text += (
            f" A temperature was tried on {calibration.pictures:,} validation pictures. It is 1, because no other one "
            "was better there by more than its standard error."
        )
    elif calibration is not None:
        text += (
            f" The logits are divided by the temperature {calibration.temperature:.3f}, which was fitted on "
            f"{calibration.pictures:,} validation pictures; without it, the error is {before.ece_percent:.1f} points."
        )
    parts = ["<h2>Are the probabilities right?</h2>", f"<p>{text}</p>", reliability_diagram(after)]
    parts.append(
        '<p class="faint">Bars: the share of right predictions. Red: the distance to the stated probability.</p>'
    )
    if (rejected := evaluated.rejected) is not None:
        coverage = ", ".join(
            f"{100 * share:.0f} %: classes of {100 * (1 - calibration.most_strange(share)):.1f} % or more"
            for share in (0.9, 0.95, 0.99)
            if calibration is not None
        )
        parts += [
            "<h2>None of these</h2>",
            f"<p>Rejection marks pictures whose best class has less than {100 * rejected['threshold']:.1f} %: they may "
            "show something that is none of the classes. Of these pictures, which have known classes, it marks "
            f"{rejected['rejected_known_percent']:.1f} %.</p>",
            f"<p>Label sets contain the right class in a stated share of the pictures ({coverage}).</p>",
            "<p>Both are given by <code>resnetkit predict MODEL PATH --reject --sets 0.9</code>.</p>",
        ]
    return parts


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


def _errors(evaluated: Evaluation, compared: Mapping[str, str]) -> str:
    rows = [("top-1 error", f"{evaluated.top1_error_percent:.2f} %")]
    if evaluated.has_top5:
        rows.append(("top-5 error", f"{evaluated.top5_error_percent:.2f} %"))
    rows.append(("cross-entropy", f"{evaluated.loss:.4f}"))
    if evaluated.unreadable:
        rows.append(("unreadable pictures", f"{len(evaluated.unreadable):,}"))
    words = [scrolled(table(("", ""), compared.items(), kind="words"))] if compared else []
    return "\n".join([scrolled(table(("", "value"), rows)), *words])


def _confusions(evaluated: Evaluation) -> str:
    names, counts = evaluated.classes, evaluated.confusion
    if len(names) > MOST_CLASSES:
        pairs = [(int(counts[i, j]), i, j) for i, j in zip(*counts.nonzero(), strict=True) if i != j]
        rows = [(names[i], names[j], str(count)) for count, i, j in sorted(pairs, reverse=True)[:MOST_CLASSES]]
        return scrolled(table(("label", "prediction", "pictures"), rows))
    head = "".join(f'<th title="{escape(name)}">{escape(middle_cut(name, LONGEST_HEAD))}</th>' for name in names)
    body = ""
    for name, row in zip(names, counts, strict=True):
        total = max(int(row.sum()), 1)
        cells = "".join(f'<td style="background:rgba(31,119,180,{0.7 * n / total:.2f})">{n}</td>' for n in row.tolist())
        body += f'<tr><td title="{escape(name)}">{escape(middle_cut(name, LONGEST_HEAD))}</td>{cells}</tr>'
    return "<p>Rows are labels, columns predictions.</p>" + scrolled(
        f'<table class="confusion"><tr><th></th>{head}</tr>{body}</table>'
    )


def _unreadable(evaluated: Evaluation) -> list[str]:
    rows = [(str(file), reason) for file, reason in evaluated.unreadable.items()]
    if not rows:
        return []
    more = [f"<p>and {len(rows) - MOST_FILES:,} more</p>"] if len(rows) > MOST_FILES else []
    listed = scrolled(table(("file", "reason"), rows[:MOST_FILES], kind="words"))
    return ["<h2>Unreadable pictures</h2>", listed, *more]
