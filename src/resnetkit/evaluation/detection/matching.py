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
    label: int,
    *,
    least_overlap: float = LEAST_OVERLAP,
) -> Matches:
    """Match the detections of a class with its objects, for pictures in the same order.

    Each detection, the most probable first, is compared with the object of its class that it overlaps most. It is right
    if the overlap is `least_overlap` or more and no detection before it has found the object; otherwise it is wrong.
    If the object is difficult, the detection does not count. A detection that finds no object does not count either if
    `least_overlap` of it or more is within a crowd of its class. Detections with equal scores keep their order.
    """
    scores: list[NDArray[np.float32]] = []
    verdicts: list[NDArray[np.int8]] = []
    there = 0
    for truth, found in zip(objects, detections, strict=True):
        of_class = truth.subset(truth.labels == label)
        mine = found.subset(found.labels == label)
        there += int(of_class.trained.sum())
        order = np.argsort(-mine.scores, kind="stable")
        scores.append(mine.scores[order])
        verdicts.append(_verdicts(of_class, mine.boxes[order], least_overlap))
    joined = np.concatenate([*scores, np.zeros(0, np.float32)]).astype(np.float64)
    verdict = np.concatenate([*verdicts, np.zeros(0, np.int8)])
    counted = np.argsort(-joined, kind="stable")
    counted = counted[verdict[counted] >= 0]
    return Matches(there, joined[counted], verdict[counted] == 1)


def _verdicts(truth: Objects, boxes: NDArray[np.float32], least_overlap: float) -> NDArray[np.int8]:
    """Return 1 for a right detection, 0 for a wrong one, and -1 for one that does not count, int8 (n,)."""
    single = truth.subset(~truth.crowd)
    crowds = truth.boxes[truth.crowd]
    verdicts = np.zeros(len(boxes), np.int8)
    taken = np.zeros(len(single), bool)
    # Within one picture the order of all pictures' detections is the same, so that pictures can be matched alone.
    if len(single) and len(boxes):
        overlap = overlaps(boxes, single.boxes)
        nearest = overlap.argmax(axis=1)
        for place in np.flatnonzero(overlap.max(axis=1) >= least_overlap).tolist():
            object_ = nearest[place]
            if single.difficult[object_]:
                verdicts[place] = -1
            elif not taken[object_]:
                taken[object_] = True
                verdicts[place] = 1
    if len(crowds) and len(boxes):
        within = shares_within(boxes, crowds).max(axis=1) >= least_overlap
        verdicts[within & (verdicts == 0)] = -1
    return verdicts
