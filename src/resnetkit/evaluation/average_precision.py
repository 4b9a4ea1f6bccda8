"""Average precision, its mean over the classes, and bootstrap intervals. NumPy only."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation.intervals import CONFIDENCE

RESAMPLES, LEAST_RESAMPLES = 1000, 100
MOST_DRAWS = 3 * 10**8
"""Resampled scores for an interval, at most; there are fewer resamples for large sets, but LEAST_RESAMPLES."""
AT_ONCE = 2**22
"""Numbers that are held at a time."""


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float | None:
    """Return the average precision, 0 to 1, of scores (n,) for labels (n,); None without a positive label.

    It is the sum over the distinct scores of (recall - recall before) · precision, as in scikit-learn: the area below
    the curve of precision and recall, without interpolation.
    """
    values = _Ranked(scores, labels).resampled(np.ones((1, len(labels))))
    return None if np.isnan(values[0]) else float(values[0])


def average_precisions(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> list[float | None]:
    """Return the average precision of each class for scores and labels (n, classes)."""
    return [average_precision(scores[:, i], labels[:, i]) for i in range(labels.shape[1])]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean average precision: over the classes that have one; None if none has."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def resampled_means(
    scores: Sequence[NDArray[np.floating]], labels: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], ...]:
    """Return the mean average precision in resampled sets, float64 (resamples,), for each of the models' `scores`.

    Scores and labels are (n, classes). All models see the same resampled pictures, drawn with a fixed seed, so that
    differences between them can be taken. Classes without a positive label in a resampled set do not count there.
    """
    pictures, classes = labels.shape
    resamples = int(max(LEAST_RESAMPLES, min(RESAMPLES, MOST_DRAWS // max(1, pictures * classes * len(scores)))))
    means: list[list[NDArray[np.float64]]] = [[] for _ in scores]
    for weights in _weights(pictures, resamples):
        for model, one in enumerate(scores):  # ranked again for each block: all ranks would be gigabytes
            found = np.stack([_Ranked(one[:, i], labels[:, i]).resampled(weights) for i in range(classes)])
            counted = ~np.isnan(found)
            means[model].append(np.where(counted, found, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1))
    return tuple(np.concatenate(one) for one in means)


def interval_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval of resampled values."""
    low, high = np.quantile(values, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _weights(pictures: int, resamples: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each picture is in some of the resampled sets, float64 (m, pictures)."""
    rng = np.random.default_rng(0)
    block = max(1, AT_ONCE // max(1, pictures))
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        drawn = rng.integers(0, pictures, (rows, pictures)) + np.arange(rows)[:, None] * pictures
        yield np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures).astype(np.float64)


class _Ranked:
    """The pictures of a class in the order of their scores, the highest first."""

    def __init__(self, scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.positive = labels[self.order].astype(np.float64)
        # With equal scores, precision and recall are those after the last of them.
        ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
        self.last = ends[np.searchsorted(ends, np.arange(len(ordered)))] if len(ordered) else ends

    def resampled(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the average precision for weights of the pictures (m, n): float64 (m,), NaN without a positive."""
        ordered = weights[:, self.order]
        hits = ordered * self.positive
        found, seen = np.cumsum(hits, axis=1)[:, self.last], np.cumsum(ordered, axis=1)[:, self.last]
        total = hits.sum(axis=1)
        area = (hits * found / np.maximum(seen, 1)).sum(axis=1)
        return np.where(total > 0, area / np.maximum(total, 1), np.nan)
