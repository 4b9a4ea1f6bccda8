"""Likely label errors, by confident learning on probabilities that are out of sample (arXiv:1911.00068). NumPy only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.finetune.features import Features
from resnetkit.finetune.heads import chunks
from resnetkit.finetune.out_of_sample import FOLDS, LEAST, out_of_sample
from resnetkit.progress import Advance, ignore


@dataclass(frozen=True)
class LabelError:
    """A picture whose label is likely wrong."""

    index: int
    """Its index in the samples."""
    path: Path | None
    """None for a picture in memory."""
    label: str
    suggested: str
    """The most probable class."""
    score: float
    """0 to 1: the out-of-sample probability of the label. Near 0, it is almost surely wrong."""


@dataclass(frozen=True)
class LabelErrors:
    """The likely label errors of some pictures."""

    errors: tuple[LabelError, ...]
    """Worst first."""
    pictures: int
    """How many pictures were judged."""
    too_few: tuple[str, ...]
    """Classes whose pictures were not judged, because there are fewer than LEAST of them."""
    indices: NDArray[np.int64]
    """int64 (n,): the indices of the readable pictures in the samples."""
    own: NDArray[np.float32]
    """float32 (n,): the out-of-sample probabilities of their labels."""


def label_errors(features: Features, *, folds: int = FOLDS, seed: int = 0, advance: Advance = ignore) -> LabelErrors:
    """Find the likely label errors among the pictures of `features`, by heads on the first view.

    Each picture is judged by a head that was fitted to other folds. `advance` is called with 1 after each of the
    `folds`. Raises DataError if there are fewer than two classes with LEAST pictures or more.
    """
    samples, labels = features.samples, features.labels
    totals = np.bincount(labels, minlength=len(samples.classes))
    present = np.flatnonzero(totals)
    if (totals >= LEAST).sum() < 2:
        raise DataError(f"label errors are found only among two classes or more with {LEAST} pictures or more each")
    own = np.searchsorted(present, labels)
    found = out_of_sample(features.pool(), own, classes=len(present), count=folds, seed=seed, advance=advance)
    judged = np.flatnonzero(totals[labels] >= LEAST)
    known = np.flatnonzero(totals[present] >= LEAST)
    places, suggested, scores = confident_errors(
        found.probabilities[np.ix_(judged, known)], np.searchsorted(known, own[judged])
    )
    errors = [
        LabelError(
            index := int(features.indices[judged[place]]),
            samples.path(index),
            samples.classes[samples.labels[index]],
            samples.classes[present[known[other]]],
            float(score),
        )
        for place, other, score in zip(places, suggested, scores, strict=True)
    ]
    certain = found.probabilities[np.arange(len(own)), own]
    too_few = tuple(samples.classes[label] for label in present if totals[label] < LEAST)
    return LabelErrors(tuple(errors), len(judged), too_few, features.indices, certain)


def confident_errors(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the likely label errors, worst first: rows, suggested classes and scores (see `LabelError`), each (m,).

    `probabilities`, float32 (n, classes), are out of sample. The confident joint says which share of the pictures with
    a label belongs to other classes. So many of them are likely errors: those with the lowest probability of their
    label ("prune by class", Sec. 3.2), but none whose label is the most probable class.
    """
    counted = counted_as(probabilities, labels)
    totals = np.bincount(labels, minlength=probabilities.shape[1])
    known = np.bincount(labels[counted >= 0], minlength=len(totals))
    others = 1 - np.bincount(labels[counted == labels], minlength=len(totals)) / np.maximum(known, 1)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    best = probabilities.argmax(axis=1)
    found: list[int] = []
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(totals)[:-1])
    for label, rows in enumerate(by_label):
        lowest = rows[np.argsort(own[rows], kind="stable")][: round(totals[label] * others[label])]
        found += [row for row in lowest.tolist() if best[row] != label]
    ordered = np.array(sorted(found, key=lambda row: (own[row], row)), np.int64)
    return ordered, best[ordered], own[ordered]


def counted_as(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class that each picture counts for in the confident joint, int64 (n,); -1 for none (Sec. 3.1).

    A picture counts for a class when the class's probability is at least the mean one of the pictures with this label;
    of several such classes, for the most probable one. The joint itself is not made: of 10,000 classes, it is 800 MB.
    """
    least = thresholds(probabilities, labels) - 1e-6
    result = np.empty(len(labels), np.int64)
    for rows in chunks(len(labels), probabilities.shape[1]):
        p = probabilities[rows].astype(np.float64)
        confident = np.where(p >= least, p, -1.0)
        result[rows] = np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)
    return result


def thresholds(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean probability of each class for the pictures with this label, float64 (classes,); inf for none."""
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    own = np.bincount(labels, own, minlength=classes)
    totals = np.bincount(labels, minlength=classes)
    return np.where(totals > 0, own / np.maximum(totals, 1), np.inf)
