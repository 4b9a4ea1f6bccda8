"""The HTML page of `resnetkit data check` for pictures with boxes: classes, wrong boxes, leaks, pictures with boxes."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.annotations import Finding
from resnetkit.data.detection.check import BoxFindings
from resnetkit.data.detection.dataset import Boxed
from resnetkit.data.detection.faults import RULES
from resnetkit.data.overview import STYLE as FINDINGS_STYLE
from resnetkit.data.overview import Group, groups_section
from resnetkit.detect.drawing import draw_objects
from resnetkit.display import count, middle_cut, table
from resnetkit.errors import DataError
from resnetkit.files import write_whole
from resnetkit.page import image, page, scrolled

MOST_FINDINGS = 200
"""Largest number of findings of each fault that are listed."""
SIDE = 480
"""Height and width of a picture with boxes, in pixels."""
STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.pictures figure { width: auto; }
@media (max-width: 40rem) { .pictures { grid-template-columns: 1fr; } }
"""


def write_overview(path: Path, found: BoxFindings) -> None:
    """Write the page of what `check_boxes` found to `path`; a file at `path` is replaced.

    It contains its pictures, and needs no other file and no network.
    """
    verdict = "Nothing to fix." if found.sound else "There is something to fix."
    parts = [
        f"<p>{count(sum(found.pictures.values()), 'picture')}, annotations: {found.form.upper()}. {verdict}</p>",
        "<h2>Boxes</h2>",
        scrolled(_boxes(found)),
        *(f"<p>{escape(note[0].upper() + note[1:])}.</p>" for note in found.notes),
        *_findings(found.findings),
        *groups_section(
            "Leaks between parts",
            "A measure on these pictures is too good: training has seen them, or nearly the same ones.",
            map(_group, found.leaks),
        ),
        *groups_section("Copies", "The same picture several times in one part.", map(_group, found.copies)),
        *_examples(found),
    ]
    write_whole(path, page(f"Check of {Path(found.name).name}", parts, style=FINDINGS_STYLE + STYLE))


def _boxes(found: BoxFindings) -> str:
    names = list(next(iter(found.boxes.values()), ()))
    rows: list[Sequence[str]] = [[name, *(f"{of[name]:,}" for of in found.boxes.values())] for name in names]
    rows.append(["pictures", *(f"{number:,}" for number in found.pictures.values())])
    rows.append(["without boxes", *(f"{number:,}" for number in found.background.values())])
    return table(("boxes of", *found.boxes), rows)


def _findings(findings: Sequence[Finding]) -> list[str]:
    """Return a section for each fault: the rule, and the places."""
    parts: list[str] = []
    for fault, rule in RULES.items():
        rows = [(finding.place, finding.what) for finding in findings if finding.fault == fault]
        if rows:
            more = len(rows) - MOST_FINDINGS
            parts += [
                f"<h2>{fault[0].upper() + fault[1:]}: {len(rows):,}</h2>",
                f"<p>{escape(rule[0].upper() + rule[1:])}.</p>",
            ]
            parts.append(scrolled(table(("place", "what"), rows[:MOST_FINDINGS], kind="words")))
            parts += [f"<p>and {more:,} more</p>"] if more > 0 else []
    return parts


def _group(places: Sequence[str]) -> Group:
    """Return the group of pictures that are named "part: path"."""
    named = [place.split(": ", 1) for place in places]
    return Group([(path, part) for part, path in named])


def _examples(found: BoxFindings) -> list[str]:
    """Return a section of pictures with their boxes, as training would see them."""
    if not found.examples:
        return []
    classes = list(next(iter(found.boxes.values())))
    figures = "".join(_example(one, classes) for one in found.examples)
    return [
        "<h2>Pictures with their boxes</h2>",
        "<p>As training sees them, after the rule for wrong boxes. The first pictures show all classes, if there are "
        "not too many.</p>",
        f'<div class="pictures">{figures}</div>',
    ]


def _example(one: Boxed, classes: Sequence[str]) -> str:
    try:
        pixels = np.asarray(open_picture(one.path))
    except DataError:
        return ""  # it was readable a moment ago
    drawn = image(draw_objects(pixels, one.objects, classes), side=SIDE, alt=one.path.name)
    named = f"{escape(middle_cut(one.key, 60))}: {count(len(one.objects), 'object')}"
    return f"<figure>{drawn}<figcaption>{named}</figcaption></figure>"
