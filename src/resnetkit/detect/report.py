"""The HTML report of a detector's training: one page that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.samples import Detections, Objects
from resnetkit.detect.drawing import COLORS, LONGEST_NAME, draw_boxes
from resnetkit.display import count, table
from resnetkit.errors import DataError
from resnetkit.evaluation.drawing import STYLE
from resnetkit.files import write_whole
from resnetkit.modelfile import Header
from resnetkit.page import image, page, scrolled

LEFT, TOP, SIDE = 40, 24, 300  # of the chart, in its units
MOST_CURVES = 15
WORST_SIDE = 640  # pixels of a picture with errors
SIZES = {"small": "small: less than 32² pixels", "medium": "medium", "large": "large: more than 96² pixels"}
"""COCO's sizes, and how they are called."""
CHART = """
.precision { max-width: 34rem; width: 100%; font-size: 12px; }
.precision text { fill: var(--ink); } .precision .rule { stroke: var(--rule); stroke-width: .5; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.worst img { max-width: 100%; height: auto; aspect-ratio: auto; }
"""
COLUMNS = {
    "objects": "objects",
    "detections": "detections",
    "ap50_percent": "AP50 (%)",
    "ap_percent": "AP (%)",
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
    measured: Mapping[str, Any] | None,
    curves: bytes,
    about: Mapping[str, Any],
) -> None:
    """Write the page to `path`. `measured` has the details of a DetectionTask's validation; `curves` is a PNG image."""
    parts = [f"<p>{escape(', '.join(part for part in header.in_words if part))}</p>"]
    if measured:
        evaluation = measured["evaluation"]
        parts += [
            f"<h2>On {count(evaluation['images'], 'validation picture')}</h2>",
            f'<div class="figures"><div><b>{evaluation["ap50_percent"]:.2f} %</b>AP50'
            "<small>mean over classes of the average precision at an overlap of 0.5</small></div></div>",
            "<h2>Classes</h2>",
            scrolled(table(("class", *COLUMNS.values()), _rows(evaluation["per_class"]))),
        ]
        if of_coco := evaluation.get("coco"):
            sizes = [(words, _cell(of_coco.get(f"ap_{name}_percent"))) for name, words in SIZES.items()]
            parts += [
                "<h2>Sizes of objects</h2>",
                "<p>COCO's average precision, the mean over overlaps from 0.5 to 0.95.</p>",
                scrolled(table(("objects", "AP (%)"), sizes)),
            ]
        if any(measured.get("curves", {}).values()):
            parts += ["<h2>Precision over recall</h2>", precision_chart(measured["curves"])]
        parts += [
            "<h2>Errors</h2>",
            scrolled(table(("kind", "detections or objects", "AP50 without them (points)"), _errors(evaluation))),
            *_worst(measured.get("worst", ()), header.classes),
        ]
    encoded = base64.b64encode(curves).decode()
    parts.append(f'<h2>Curves</h2><img alt="curves" src="data:image/png;base64,{encoded}">')
    settings = [(name, str(value)) for name, value in header.recipe.items() if value is not None]
    parts += ["<h2>Recipe</h2>", scrolled(table(("field", "value"), settings, kind="words"))]
    if command := about.get("command"):
        parts += ["<h2>Made by</h2>", scrolled(table(("", ""), [("command", str(command))], kind="words"))]
    write_whole(path, page(title, parts, style=STYLE + CHART))


def precision_chart(curves: Mapping[str, Sequence[float]]) -> str:
    """Return a chart, SVG, of the precision of each class at recalls from 0 to 1."""

    def across(value: float) -> float:
        return LEFT + value * SIDE

    def down(value: float) -> float:
        return TOP + (1 - value) * SIDE

    lines: list[str] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        lines += [
            f'<line class="rule" x1="{LEFT}" x2="{LEFT + SIDE}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>',
            f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>',
            f'<text x="{across(tick):.1f}" y="{TOP + SIDE + 16}" text-anchor="middle">{100 * tick:.0f}</text>',
        ]
    drawn = [(name, curve) for name, curve in curves.items() if curve][:MOST_CURVES]
    for place, (name, curve) in enumerate(drawn):
        color = COLORS[list(curves).index(name) % len(COLORS)]
        points = " ".join(
            f"{across(step / (len(curve) - 1)):.1f},{down(value):.1f}" for step, value in enumerate(curve)
        )
        y = TOP + 14 + 18 * place
        lines += [
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>',
            f'<rect x="{LEFT + SIDE + 16}" y="{y - 9}" width="12" height="10" fill="{color}"/>',
            f'<text x="{LEFT + SIDE + 34}" y="{y}">{escape(name[:LONGEST_NAME])}</text>',
        ]
    lines.append(f'<text x="{across(0.5):.1f}" y="{TOP + SIDE + 34}" text-anchor="middle">recall (%)</text>')
    lines.append(f'<text x="{LEFT}" y="{TOP - 8}">precision (%)</text>')
    left_out = len([curve for curve in curves.values() if curve]) - len(drawn)
    more = f'<p class="faint">{count(left_out, "more class")} not drawn.</p>' if left_out else ""
    height = TOP + max(SIDE, 18 * len(drawn)) + 44
    return (
        f'<svg class="precision" role="img" aria-label="precision over recall" '
        f'viewBox="0 0 {LEFT + SIDE + 210} {height}">{"".join(lines)}</svg>{more}'
    )


def _worst(pictures: Sequence[Mapping[str, Any]], classes: tuple[str, ...]) -> list[str]:
    """Return the pictures with most errors: objects in white, detections in the colour of their class."""
    figures: list[str] = []
    for one in pictures:
        try:
            pixels = np.array(open_picture(Path(one["path"])))
        except DataError:
            continue
        boxes, labels, scores = one["found"]
        found = Detections(_boxes(boxes), np.array(labels, np.int64), np.array(scores, np.float32))
        truth = Objects(_boxes(one["objects"][0]), np.array(one["objects"][1], np.int64))
        name = Path(one["path"]).name
        drawn = image(draw_boxes(pixels, found, classes, truth=truth), side=WORST_SIDE, alt=name)
        caption = f"{escape(name)}: {one['missed']:,} missed, {one['wrong']:,} wrong"
        figures.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>")
    if not figures:
        return []
    about = "White frames are the objects; coloured ones are detections from the threshold of their class on."
    return ["<h2>Pictures with most errors</h2>", f"<p>{about}</p>", f'<div class="worst">{"".join(figures)}</div>']


def _boxes(values: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 4)


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
