"""Fit the anchors of a region proposal network to the boxes of a data set, and say which share of them they reach."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import DetectionSamples
from resnetkit.errors import DataError

REACHED = 0.5
"""A box is reached if an anchor overlaps it by this or more (intersection over union)."""
ROUNDS = 50
MOST_BOXES = 20_000
"""Of more boxes, every n-th is used."""


@dataclass(frozen=True)
class Anchors:
    """Anchors at every position of each map."""

    sizes: tuple[tuple[float, ...], ...]
    """Square roots of the areas, in pixels of the network's input, for each map."""
    ratios: tuple[float, ...]
    """Height / width, for each size."""


@dataclass(frozen=True)
class Fitted:
    """Anchors that fit the boxes, and what they reach."""

    anchors: Anchors
    recall: float
    """Share of the boxes that an anchor at its place on a map overlaps by REACHED or more, 0 to 1."""
    recall_before: float
    """The same for the anchors that were given."""
    boxes: int


def fit_anchors(
    samples: DetectionSamples,
    given: Anchors,
    strides: Sequence[int],
    *,
    shorter_side: int,
    longest_side: int,
) -> Fitted:
    """Return as many anchors as `given` has, fitted to the boxes that are trained on.

    `strides` are the distances of positions on each map, in pixels of the input. Pictures are resized to
    `shorter_side`, or less if their longer side would be more than `longest_side`. Each box goes to the anchor with the
    largest overlap of shapes; sizes and ratios become geometric means of their boxes, and so on until nothing improves
    (k-means with the overlap as likeness, as in YOLOv2, arXiv:1612.08242). The result is never worse than `given`.

    Raises DataError if there are no boxes, and ValueError if there is not one stride for each map.
    """
    if len(strides) != len(given.sizes):
        raise ValueError(f"{len(strides)} strides for {len(given.sizes)} maps")
    boxes = _scaled(samples, shorter_side, longest_side)
    if not len(boxes):
        raise DataError("anchors can't be fitted: there are no boxes to train on")
    boxes = boxes[:: max(1, len(boxes) // MOST_BOXES)]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    shapes = np.stack([width, height], axis=1)
    best = given
    before = reached = recall(boxes, given, strides)
    for start in (given, _spread(shapes, given)):
        fitted = start
        likeness = -1.0
        for _ in range(ROUNDS):
            fitted, now = _moved(shapes, fitted)
            if now <= likeness + 1e-6:
                break
            likeness = now
        fitted = _rounded(fitted)
        if (share := recall(boxes, fitted, strides)) > reached:
            best, reached = fitted, share
    return Fitted(best, reached, before, len(boxes))


def recall(boxes: NDArray[np.float64], anchors: Anchors, strides: Sequence[int]) -> float:
    """Return the share of boxes, float64 (n, 4) in pixels of the input, that an anchor overlaps by REACHED or more."""
    best = np.zeros(len(boxes))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for sizes, stride in zip(anchors.sizes, strides, strict=True):
        # Positions are at 0, stride, 2 * stride, ...: the nearest one overlaps most.
        offsets = np.abs(centres - np.round(centres / stride) * stride)
        for shape in _shapes(Anchors((sizes,), anchors.ratios)):
            shared = np.clip(np.minimum(np.minimum(sides, shape), (sides + shape) / 2 - offsets), 0, None).prod(axis=1)
            best = np.maximum(best, shared / (sides.prod(axis=1) + shape.prod() - shared))
    return float((best >= REACHED).mean())


def _scaled(samples: DetectionSamples, shorter_side: int, longest_side: int) -> NDArray[np.float64]:
    """Return the boxes that are trained on in pixels of the network's input, float64 (n, 4)."""
    scaled = [np.zeros((0, 4))]
    for (width, height), objects in zip(samples.sizes, samples.objects, strict=True):
        scale = min(shorter_side / min(width, height), longest_side / max(width, height))
        scaled.append(objects.boxes[objects.trained].astype(np.float64) * scale)
    return np.concatenate(scaled)


def _shapes(anchors: Anchors) -> NDArray[np.float64]:
    """Return the width and height of every anchor, float64 (maps * sizes * ratios, 2)."""
    sizes = np.array(anchors.sizes, np.float64).reshape(-1)[:, None]
    roots = np.sqrt(np.array(anchors.ratios, np.float64))[None]
    return np.stack([sizes / roots, sizes * roots], axis=2).reshape(-1, 2)


def _spread(shapes: NDArray[np.float64], given: Anchors) -> Anchors:
    """Return anchors at equal shares of the sizes and ratios of the boxes."""
    sizes, ratios = np.sqrt(shapes.prod(axis=1)), shapes[:, 1] / shapes[:, 0]
    maps, each = len(given.sizes), len(given.sizes[0])
    at = (np.arange(maps * each) + 0.5) / (maps * each)
    return Anchors(
        _by_map(np.quantile(sizes, at), maps),
        tuple(np.quantile(ratios, (np.arange(len(given.ratios)) + 0.5) / len(given.ratios)).tolist()),
    )


def _by_map(sizes: NDArray[np.float64], maps: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in np.sort(sizes).reshape(maps, -1).tolist())


def _moved(shapes: NDArray[np.float64], anchors: Anchors) -> tuple[Anchors, float]:
    """Return anchors in the middle of the boxes that are nearest to them, and the mean overlap of the old ones."""
    of = _shapes(anchors)
    shared = np.minimum(shapes[:, None], of[None]).prod(axis=2)
    overlap = shared / (shapes.prod(axis=1)[:, None] + of.prod(axis=1)[None] - shared)
    size, ratio = np.divmod(overlap.argmax(axis=1), len(anchors.ratios))
    sizes = _middles(np.sqrt(shapes.prod(axis=1)), size, np.array(anchors.sizes, np.float64).reshape(-1))
    ratios = _middles(shapes[:, 1] / shapes[:, 0], ratio, np.array(anchors.ratios, np.float64))
    return Anchors(_by_map(sizes, len(anchors.sizes)), tuple(np.sort(ratios).tolist())), float(
        overlap.max(axis=1).mean()
    )


def _middles(values: NDArray[np.float64], group: NDArray[np.int64], old: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the geometric mean of each group's values; the old value for a group without any."""
    counts = np.bincount(group, minlength=len(old))
    sums = np.bincount(group, np.log(values), minlength=len(old))
    return np.where(counts > 0, np.exp(sums / np.maximum(counts, 1)), old)


def _rounded(anchors: Anchors) -> Anchors:
    return Anchors(
        tuple(tuple(round(size, 1) for size in sizes) for sizes in anchors.sizes),
        tuple(round(ratio, 3) for ratio in anchors.ratios),
    )
