"""The HTML report of a detector's training: one page that needs no network."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from resnetkit.display import count, table
from resnetkit.evaluation.drawing import STYLE
from resnetkit.files import write_whole
from resnetkit.modelfile import Header
from resnetkit.page import page, scrolled

COLUMNS = {
    "objects": "objects",
    "detections": "detections",
    "ap50_percent": "AP50 (%)",
    "voc07_percent": "VOC07 AP (%)",
    "threshold": "best threshold",
    "precision_percent": "precision (%)",
    "recall_percent": "recall (%)",
}
"""Entries of a class in an evaluation -> the heads of their columns."""


def write_detection_report(
    path: Path,
    header: Header,
    *,
    title: str,
    evaluation: Mapping[str, Any] | None,
    curves: bytes,
    about: Mapping[str, Any],
) -> None:
    """Write the page to `path`. `evaluation` is that of `DetectionEvaluation.to_dict`; `curves` is a PNG image."""
    parts = [f"<p>{escape(', '.join(part for part in header.in_words if part))}</p>"]
    if evaluation:
        parts += [
            f"<h2>On {count(evaluation['images'], 'validation picture')}</h2>",
            f'<div class="figures"><div><b>{evaluation["ap50_percent"]:.2f} %</b>AP50'
            "<small>mean over classes of the average precision at an overlap of 0.5</small></div></div>",
            "<h2>Classes</h2>",
            scrolled(table(("class", *COLUMNS.values()), _rows(evaluation["per_class"]))),
            "<h2>Errors</h2>",
            scrolled(table(("kind", "detections or objects", "AP50 without them (points)"), _errors(evaluation))),
        ]
    encoded = base64.b64encode(curves).decode()
    parts.append(f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{encoded}">')
    settings = [(name, str(value)) for name, value in header.recipe.items() if value is not None]
    parts += ["<h2>Recipe</h2>", scrolled(table(("field", "value"), settings, kind="words"))]
    if command := about.get("command"):
        parts += ["<h2>Made by</h2>", scrolled(table(("", ""), [("command", str(command))], kind="words"))]
    write_whole(path, page(title, parts, style=STYLE))


def _rows(classes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [(name, *(_cell(values.get(column)) for column in COLUMNS)) for name, values in classes.items()]


def _errors(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (kind, f"{one['count']:,}", f"{one['gain_percent']:+.2f}") for kind, one in evaluation.get("errors", {}).items()
    ]


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN: a class without objects
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
