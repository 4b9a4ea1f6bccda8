"""Decide which detections found an object, by the rule of the PASCAL VOC development kit (VOCevaldet.m)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections, Objects
from resnetkit.evaluation.detection.overlap import overlaps, shares_within

LEAST_OVERLAP = 0.5
"""Least intersection over union of a detection and the object that it has found."""


@dataclass(frozen=True)
class Matches:
    """The detections of one class in all pictures, the most probable first, without those that do not count."""

    objects: int
    """Number of objects to find: neither difficult nor a crowd."""
    scores: NDArray[np.float64]
    """float64 (n,), not increasing."""
    right: NDArray[np.bool_]
    """bool (n,): whether a detection has found an object that none before it has found."""

    @property
    def precisions(self) -> NDArray[np.float64]:
        """float64 (n,): share of right detections among the first 1, 2, ... n."""
        return np.cumsum(self.right) / np.arange(1, len(self.right) + 1)

    @property
    def recalls(self) -> NDArray[np.float64]:
        """float64 (n,): share of the objects that the first 1, 2, ... n detections have found; NaN without objects."""
        return np.cumsum(self.right) / (self.objects or np.nan)


def match(
    objects: Sequence[Objects],
    detections: Sequence[Detections],
    classes: int,
    *,
    least_overlap: float = LEAST_OVERLAP,
) -> tuple[Matches, ...]:
    """Match the detections of each class with its objects, for pictures in the same order.

    Each detection, the most probable first, is compared with the object of its class that it overlaps most. It is right
    if the overlap is `least_overlap` or more and no detection before it has found the object; otherwise it is wrong.
    If the object is difficult, the detection does not count. A detection that finds no object does not count either if
    `least_overlap` of it or more is within a crowd of its class. Detections with equal scores keep their order.
    """
    there = np.zeros(classes, np.int64)
    labels: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    given: list[NDArray[np.int8]] = [np.zeros(0, np.int8)]
    for truth, found in zip(objects, detections, strict=True):
        there += np.bincount(truth.labels[truth.trained], minlength=classes)
        found = found.subset(np.argsort(-found.scores, kind="stable"))
        labels.append(found.labels)
        scores.append(found.scores)
        given.append(verdicts(truth, found, least_overlap))
    label, score, verdict = (np.concatenate(one) for one in (labels, scores, given))
    order = np.argsort(-score, kind="stable")
    order = order[verdict[order] >= 0]
    label, score, right = label[order], score[order].astype(np.float64), verdict[order] == 1
    return tuple(Matches(int(there[one]), score[label == one], right[label == one]) for one in range(classes))


def verdicts(truth: Objects, found: Detections, least_overlap: float) -> NDArray[np.int8]:
    """Return 1 for a right detection, 0 for a wrong one, and -1 for one that does not count, int8 (n,); see `match`.

    `found` are the detections in one picture, the most probable first.
    """
    given = np.zeros(len(found), np.int8)
    single, crowds = truth.subset(~truth.crowd), truth.subset(truth.crowd)
    if len(single) and len(found):
        overlap = overlaps(found.boxes, single.boxes) * (found.labels[:, None] == single.labels[None])
        nearest = overlap.argmax(axis=1)
        taken = np.zeros(len(single), bool)
        for place in np.flatnonzero(overlap.max(axis=1) >= least_overlap).tolist():
            object_ = nearest[place]
            if single.difficult[object_]:
                given[place] = -1
            elif not taken[object_]:
                taken[object_] = True
                given[place] = 1
    if len(crowds) and len(found):
        within = shares_within(found.boxes, crowds.boxes) * (found.labels[:, None] == crowds.labels[None])
        given[(within.max(axis=1) >= least_overlap) & (given == 0)] = -1
    return given
