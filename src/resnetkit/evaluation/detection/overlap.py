"""Overlap of boxes. Boxes are float (n, 4): left, top, right, bottom; coordinates are edges, as in `Objects`."""

import numpy as np
from numpy.typing import NDArray


def overlaps(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the intersection over union of each of n boxes with each of m others, float64 (n, m), 0 to 1."""
    shared = _intersections(one, other)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def shares_within(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the share of each of n boxes that lies within each of m others, float64 (n, m), 0 to 1.

    COCO measures the overlap with a crowd in this way: a detection of one person in a crowd is small beside it.
    """
    shared, areas = _intersections(one, other), _areas(one)[:, None]
    return np.divide(shared, areas, out=np.zeros_like(shared), where=areas > 0)


def _intersections(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    least = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    return np.prod(np.clip(least, 0, None), axis=2)


def _areas(boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    boxes = np.asarray(boxes, np.float64)
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
