"""Areas and boxes of outlines as COCO writes them: polygons, and run lengths, plain or packed into text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]


def box_of(outline: object) -> Box | None:
    """Return left, top, width and height in pixels of a polygon, several polygons or run lengths; None for others."""
    if isinstance(outline, dict):
        return _box_of_runs(outline)
    points = _points(outline)
    if not points:
        return None
    columns, rows = points[::2], points[1::2]
    return min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)


def area_of(outline: object) -> float | None:
    """Return the area of run lengths in square pixels; None for other outlines, whose area COCO's files have."""
    if not isinstance(outline, dict) or (counts := run_lengths(outline.get("counts"))) is None:
        return None
    return float(sum(counts[1::2]))


def run_lengths(counts: object) -> list[int] | None:
    """Return run lengths, background first, as a list; None if they are no numbers and no packed text.

    The text has six bits a character, from "0" on: five of a number, the lowest first, and one that says that more
    follow. From the fourth on, a number is the difference from the one before the last (cocoapi, maskApi.c).
    """
    if isinstance(counts, list):
        return [int(one) for one in counts] if all(isinstance(one, int) and one >= 0 for one in counts) else None
    if not isinstance(counts, str):
        return None
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        if len(lengths) > 2:
            value += lengths[-2]
        if value < 0:
            return None
        lengths.append(value)
        value = shift = 0
    return lengths if not shift else None


def _box_of_runs(outline: "dict[str, Any]") -> Box | None:
    """Return the box of run lengths, which go down the columns of the picture."""
    counts, size = run_lengths(outline.get("counts")), outline.get("size")
    if counts is None or not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        return None
    height = size[0]
    ends = np.cumsum(np.array(counts, np.int64))
    starts, ends = np.append(0, ends[:-1])[1::2], ends[1::2]
    there = ends > starts
    if height < 1 or not there.any():
        return None
    starts, last = starts[there], ends[there] - 1
    whole = (starts // height != last // height).any()  # a run that goes on in the next column touches both borders
    left, right = int((starts // height).min()), int((last // height).max()) + 1
    top = 0 if whole else int((starts % height).min())
    bottom = height if whole else int((last % height).max()) + 1
    return float(left), float(top), float(right - left), float(bottom - top)


def _points(outline: object) -> Sequence[float]:
    """Return the coordinates of all polygons, x and y in turn; none if they are not finite numbers in pairs."""
    if not isinstance(outline, list):
        return []
    polygons = outline if outline and isinstance(outline[0], list) else [outline]
    points: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return []
        for value in polygon:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return []
        points += polygon
    return points
