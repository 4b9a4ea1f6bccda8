"""The rule for boxes that are wrong, the same for every form of annotations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resnetkit.data.decoding.pictures import STEPS
from resnetkit.data.detection.annotations import Annotated, Drawn, Fault, Finding
from resnetkit.data.detection.pictures import SWAPPED
from resnetkit.data.detection.samples import Objects

Box = tuple[float, float, float, float]

RULES: Mapping[Fault, str] = {
    "outside": "boxes leave their picture by more than a pixel: cut at its border",
    "beyond": "boxes lie outside their picture: left out",
    "empty": "boxes are empty, less than a pixel wide or high: left out",
    "inverted": "boxes have their corners exchanged: exchanged back",
    "doubled": "boxes are there twice, with the same class: one of them left out",
    "unit": "boxes are in the wrong unit, shares for pixels or pixels for shares: their pictures are left out",
    "number": "boxes have no four numbers: their pictures are left out",
    "class": "boxes are of a class that is not declared: their pictures are left out",
    "size": "annotations name another size than the picture has: boxes scaled if the shape is the same",
    "no picture": "annotations are of missing pictures: left out",
    "no annotation": "pictures have no annotation: left out",
    "unreadable": "annotation files can't be read: their pictures are left out",
    "picture": "pictures can't be read: left out",
}
"""Fault -> what it is, and what is done about it. A box that shows no place is left out alone, since nothing is there.
If a box can't be understood, an object is at an unknown place, and so the whole picture is left out: it would teach
that the object is background."""
LEAST_SIDE = 1.0
"""Boxes with a smaller side, in pixels, are empty."""
ROUNDING = 1.0
"""Boxes that leave the picture by so many pixels or fewer are cut without a word: tools round, or count from 0."""
MOST_SHARE = 2.0
"""A share of a picture's side above this is no share; boxes that leave the picture have shares a little above 1."""
SAME_SHAPE = 0.01
"""Two sizes have the same shape if their ratios of width to height differ by no more than this share."""


@dataclass(frozen=True)
class Settled:
    """The objects of a picture after the rule, and what it found."""

    objects: Objects | None
    """None: the picture is left out."""
    findings: tuple[Finding, ...]


def settle(one: Annotated, classes: Mapping[str, int], size: tuple[int, int], orientation: int) -> Settled:
    """Apply the rule to the objects of a picture.

    `classes` maps names to labels. `size` is the width and height of the upright picture in pixels; `orientation` is
    its EXIF orientation. Boxes are for the upright picture, as people see it, unless the annotation names the size of
    the picture as it is stored, and that is another one: then they turn with the picture.
    """
    findings: list[Finding] = []
    stored = (size[1], size[0]) if orientation in SWAPPED else size
    turn = 1
    drawn_on = size
    scale: tuple[float, float] | None = None
    if one.size and min(one.size) > 0 and one.size != size and one.form != "yolo":
        if one.size == stored:
            turn, drawn_on = orientation, stored
        else:
            same = abs(one.size[0] * size[1] / (one.size[1] * size[0]) - 1) <= SAME_SHAPE
            named = f"{one.size[0]}×{one.size[1]}, but the picture has {size[0]}×{size[1]} pixels"
            findings.append(
                Finding("size", str(one.source), f"names {named}; {'boxes scaled' if same else 'boxes kept'}")
            )
            if same:
                drawn_on, scale = one.size, (size[0] / one.size[0], size[1] / one.size[1])
    kept: list[tuple[Box, Drawn, float | None]] = []
    seen: dict[tuple[str, Box], Drawn] = {}
    for drawn in one.objects:
        fault, what, box = _understood(one, drawn, classes, drawn_on)
        if fault and box is None:
            findings.append(Finding(fault, one.place(drawn), f"{what}; the picture is left out"))
            continue
        assert box is not None
        if fault:
            findings.append(Finding(fault, one.place(drawn), f"{what}; exchanged back"))
        area = drawn.area
        if scale:
            box = (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])
            area = None if area is None else area * scale[0] * scale[1]
        if turn != 1:
            box = turned(box, turn, stored)
        fault, what, cut = _within(box, size)
        if fault:
            findings.append(Finding(fault, one.place(drawn), what))
        if cut is None:
            continue
        if other := seen.get((drawn.label, cut)):
            findings.append(Finding("doubled", one.place(drawn), f"is {_same(one, other)} again; left out"))
            continue
        seen[drawn.label, cut] = drawn
        kept.append((cut, drawn, area))
    if any(finding.fault in ("unit", "number", "class") for finding in findings):
        return Settled(None, tuple(findings))
    return Settled(_objects(kept, classes), tuple(findings))


def turned(box: Box, orientation: int, stored: tuple[int, int]) -> Box:
    """Return a box of a picture as it is stored, with a width and height of `stored`, in the upright picture."""
    left, top, right, bottom = box
    width, height = stored
    swap, mirror, flip = STEPS[orientation]
    if swap:
        left, top, right, bottom, width, height = top, left, bottom, right, height, width
    if mirror:
        left, right = width - right, width - left
    if flip:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _same(one: Annotated, other: Drawn) -> str:
    match one.form:
        case "voc":
            return f"object {other.number}"
        case "coco":
            return f"annotation {other.number}"
        case "yolo":
            return f"line {other.number}"


def _understood(
    one: Annotated, drawn: Drawn, classes: Mapping[str, int], size: tuple[int, int]
) -> tuple[Fault | None, str, Box | None]:
    """Return the edges of a box in pixels, and a fault with what is wrong; no box if it can't be understood."""
    first, second, third, fourth = drawn.values
    if not all(map(math.isfinite, drawn.values)):
        return "number", "has no four numbers for its box", None
    if drawn.label not in classes:
        return "class", f"the class {drawn.label!r} is not among the {len(classes)} that are declared", None
    largest = max(map(abs, drawn.values))
    fractions = any(value != int(value) for value in drawn.values)
    shown = " ".join(f"{value:g}" for value in drawn.values)
    if one.form == "yolo":
        if largest > MOST_SHARE:
            return "unit", f"{shown} are pixels, not shares of the picture's sides", None
        width, height = abs(third) * size[0], abs(fourth) * size[1]
        x, y = first * size[0], second * size[1]
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        inverted = third < 0 or fourth < 0
    else:
        if fractions and 0 < largest <= 1 and min(size) > MOST_SHARE:
            return "unit", f"{shown} are shares of the picture's sides, not pixels", None
        edges = (first, second, third, fourth)
        if one.form == "coco":
            edges = (first, second, first + third, second + fourth)
        left, right = sorted(edges[::2])
        top, bottom = sorted(edges[1::2])
        inverted = edges[2] < edges[0] or edges[3] < edges[1]
        # VOC counts pixels from 1 and includes the last one. A click without a drag gives equal corners: no pixel.
        start = 1 if one.form == "voc" and left < right and top < bottom else 0
        box = (left - start, top - start, right, bottom)
    if inverted:
        return "inverted", f"{shown} is inverted", box
    return None, "", box


def _within(box: Box, size: tuple[int, int]) -> tuple[Fault | None, str, Box | None]:
    """Return the part of a box within the picture, None if there is none, and a fault with what was done."""
    left, top, right, bottom = box
    width, height = size
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    shown = " ".join(f"{value:.6g}" for value in box)
    if min(right - left, bottom - top) < LEAST_SIDE - 1e-4:
        return "empty", f"{shown} is empty; left out", None
    if min(cut[2] - cut[0], cut[3] - cut[1]) < LEAST_SIDE - 1e-4:
        return "beyond", f"{shown} lies outside the picture of {width}×{height}; left out", None
    if max(abs(one - other) for one, other in zip(box, cut, strict=True)) > ROUNDING + 1e-4:
        return "outside", f"{shown} leaves the picture of {width}×{height}; cut", cut
    return None, "", cut


def _objects(kept: Sequence[tuple[Box, Drawn, float | None]], classes: Mapping[str, int]) -> Objects:
    if not kept:
        return Objects.none()
    boxes = np.array([box for box, _, _ in kept], np.float32)
    own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = np.array([mine if area is None else area for mine, (_, _, area) in zip(own, kept, strict=True)], np.float32)
    return Objects(
        boxes,
        np.array([classes[drawn.label] for _, drawn, _ in kept], np.int64),
        np.array([drawn.difficult for _, drawn, _ in kept], bool),
        np.array([drawn.crowd for _, drawn, _ in kept], bool),
        areas,
    )
