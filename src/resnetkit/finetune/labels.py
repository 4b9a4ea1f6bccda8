"""Likely label errors, by confident learning on probabilities that are out of sample (arXiv:1911.00068). NumPy only."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.finetune.features import Features
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
    probabilities: NDArray[np.float32]
    """float32 (n, classes): their out-of-sample probabilities."""


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
        found.probabilities[judged][:, known], np.searchsorted(known, own[judged])
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
    probabilities = np.zeros((len(labels), len(samples.classes)), np.float32)
    probabilities[:, present] = found.probabilities
    too_few = tuple(samples.classes[label] for label in present if totals[label] < LEAST)
    return LabelErrors(tuple(errors), len(judged), too_few, features.indices, probabilities)


def confident_errors(
    probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the likely label errors, worst first: rows, suggested classes and scores (see `LabelError`), each (m,).

    `probabilities`, float32 (n, classes), are out of sample. The confident joint says which share of the pictures with
    a label belongs to other classes. So many of them are likely errors: those with the lowest probability of their
    label ("prune by class", Sec. 3.2), but none whose label is the most probable class.
    """
    joint = confident_joint(probabilities, labels)
    totals = np.bincount(labels, minlength=len(joint))
    others = 1 - joint.diagonal() / np.maximum(joint.sum(axis=1), 1)
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    best = probabilities.argmax(axis=1)
    found: list[int] = []
    for label in np.flatnonzero(totals):
        rows = np.flatnonzero(labels == label)
        lowest = rows[np.argsort(own[rows], kind="stable")][: round(totals[label] * others[label])]
        found += [row for row in lowest.tolist() if best[row] != label]
    ordered = np.array(sorted(found, key=lambda row: (own[row], row)), np.int64)
    return ordered, best[ordered], own[ordered]


def confident_joint(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pictures of each label (rows) count for each class (columns): int64 (classes, classes).

    A picture counts for a class when the class's probability is at least the mean one of the pictures with this label;
    of several such classes, for the most probable one. Pictures that count for no class are left out (Sec. 3.1).
    """
    classes = probabilities.shape[1]
    p = probabilities.astype(np.float64)
    confident = np.where(p >= thresholds(p, labels) - 1e-6, p, -1.0)
    counts = confident.max(axis=1) >= 0
    pairs = labels[counts] * classes + confident[counts].argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def thresholds(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean probability of each class for the pictures with this label, float64 (classes,); inf for none."""
    classes = probabilities.shape[1]
    own = np.bincount(labels, probabilities[np.arange(len(labels)), labels], minlength=classes)
    totals = np.bincount(labels, minlength=classes)
    return np.where(totals > 0, own / np.maximum(totals, 1), np.inf)
