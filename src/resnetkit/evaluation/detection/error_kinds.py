"""Divide the errors of a detector by their kind, with the definitions of TIDE (Bolya et al., ECCV 2020, Sec. 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections, Objects
from resnetkit.evaluation.detection.average_precision import average_precision
from resnetkit.evaluation.detection.matching import LEAST_OVERLAP, Matches
from resnetkit.evaluation.detection.overlap import overlaps, shares_within

ErrorKind = Literal["class", "place", "both", "double", "background", "missed"]
KINDS: tuple[ErrorKind, ...] = get_args(ErrorKind)
PLACE, CLASS, BOTH, DOUBLE, BACKGROUND = (
    KINDS.index(name) for name in ("place", "class", "both", "double", "background")
)
RIGHT, NOT_COUNTED = -1, -2
"""Values in place of a kind: a detection that is right, and one that does not count."""
BACKGROUND_OVERLAP = 0.1
"""A detection that overlaps no object by more than this found background."""
MOST_DETECTIONS = 100
"""Only so many detections of a picture are looked at, the most probable ones, as in COCO's measure."""


@dataclass(frozen=True)
class Errors:
    """The errors of one kind."""

    count: int
    """Number of detections, or, for `missed`, of objects."""
    gain: float
    """Rise of the mean average precision at an overlap of 0.5, 0 to 1, if errors of this kind alone were mended."""


@dataclass(frozen=True)
class _Found:
    """All detections of all pictures, n, and the objects of all pictures that are to be found."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    kinds: NDArray[np.int64]
    """int64 (n,): index of the kind in KINDS, RIGHT or NOT_COUNTED."""
    targets: NDArray[np.int64]
    """int64 (n,): the object, among those of all pictures, that the detection would have found without its error in
    class or place; -1 without such an object, or if another detection has found it."""
    object_labels: NDArray[np.int64]
    missed: NDArray[np.bool_]
    """bool (objects,): the object was not found, and no error in class or place is near it."""


def error_kinds(
    objects: Sequence[Objects],
    detections: Sequence[Detections],
    classes: int,
    *,
    least_overlap: float = LEAST_OVERLAP,
) -> dict[ErrorKind, Errors]:
    """Return the errors of each kind, for pictures in the same order. A detection has one kind, the first that fits:

    - place: it overlaps an object of its class by 0.1 or more, and by less than `least_overlap`
    - class: it overlaps an object of another class by `least_overlap` or more
    - double: it overlaps an object of its class enough, but a more probable detection has found it
    - background: it overlaps no object by more than 0.1
    - both: it overlaps an object of another class by more than 0.1, and by less than `least_overlap`

    missed are the objects that no detection found and that no error in place or class is near. An error in place or
    class is mended by counting the most probable one at each object as right and removing the others; the other
    errors by removing the detection, or the object.
    """
    found = _joined([_of_picture(truth, one, least_overlap) for truth, one in zip(objects, detections, strict=True)])
    before = _mean(found, classes, mended=None)
    counts = np.bincount(found.kinds[found.kinds >= 0], minlength=len(KINDS))
    counts[KINDS.index("missed")] = found.missed.sum()
    return {
        kind: Errors(int(counts[place]), max(_mean(found, classes, mended=kind) - before, 0.0))
        for place, kind in enumerate(KINDS)
    }


def _of_picture(truth: Objects, found: Detections, least_overlap: float) -> _Found:
    order = np.argsort(-found.scores, kind="stable")[:MOST_DETECTIONS]
    found = found.subset(order)
    single = truth.subset(truth.trained)
    kinds = np.full(len(found), BACKGROUND)
    targets = np.full(len(found), -1)
    taken = np.zeros(len(single), bool)
    overlap = overlaps(found.boxes, single.boxes)
    same = found.labels[:, None] == single.labels[None]
    own, other = overlap * same, overlap * ~same
    for place in range(len(found) if len(single) else 0):
        free = np.where(taken, 0, own[place])
        if free.max() >= least_overlap:
            taken[free.argmax()] = True
            kinds[place] = RIGHT
    not_counted = _not_counted(truth, found, least_overlap)
    for place in np.flatnonzero(kinds != RIGHT).tolist():
        if not_counted[place]:
            kinds[place] = NOT_COUNTED
        elif not len(single):
            continue
        elif BACKGROUND_OVERLAP <= own[place].max() < least_overlap:
            kinds[place], targets[place] = PLACE, own[place].argmax()
        elif other[place].max() >= least_overlap:
            kinds[place], targets[place] = CLASS, other[place].argmax()
        elif own[place].max() >= least_overlap:
            kinds[place] = DOUBLE
        elif overlap[place].max() > BACKGROUND_OVERLAP:
            kinds[place] = BOTH
    near = np.zeros(len(single), bool)
    near[targets[targets >= 0]] = True
    targets = np.where((targets >= 0) & ~taken[targets] if len(single) else False, targets, -1)
    return _Found(found.labels, found.scores.astype(np.float64), kinds, targets, single.labels, ~taken & ~near)


def _not_counted(truth: Objects, found: Detections, least_overlap: float) -> NDArray[np.bool_]:
    """Return which detections are on a difficult object or in a crowd of their class, bool (n,)."""
    result = np.zeros(len(found), bool)
    hard = truth.subset(truth.difficult & ~truth.crowd)
    for other, measure in ((hard, overlaps), (truth.subset(truth.crowd), shares_within)):
        if len(other) and len(found):
            within = measure(found.boxes, other.boxes) * (found.labels[:, None] == other.labels[None])
            result |= within.max(axis=1) >= least_overlap
    return result


def _joined(parts: Sequence[_Found]) -> _Found:
    """Join the pictures; the targets become indices of the objects of all pictures."""
    firsts = np.cumsum([0, *(len(part.object_labels) for part in parts)])
    targets = [
        np.where(part.targets >= 0, part.targets + first, -1) for part, first in zip(parts, firsts[:-1], strict=True)
    ]

    def column(name: str) -> "NDArray[np.generic]":
        return np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0)

    return _Found(
        column("labels").astype(np.int64),
        column("scores").astype(np.float64),
        column("kinds").astype(np.int64),
        np.concatenate([*targets, np.zeros(0, np.int64)]).astype(np.int64),
        column("object_labels").astype(np.int64),
        column("missed").astype(bool),
    )


def _mean(found: _Found, classes: int, *, mended: ErrorKind | None) -> float:
    """Return the mean average precision of the classes with objects, with the errors of one kind mended."""
    labels, right = found.labels.copy(), found.kinds == RIGHT
    kept = found.kinds != NOT_COUNTED
    objects = np.bincount(found.object_labels, minlength=classes)
    if mended == "missed":
        objects -= np.bincount(found.object_labels[found.missed], minlength=classes)
    elif mended is not None:
        wrong = found.kinds == KINDS.index(mended)
        kept &= ~wrong
        if mended in ("place", "class"):
            best = _best_of_targets(found)
            best = best[wrong[best]]
            kept[best] = right[best] = True
            labels[best] = found.object_labels[found.targets[best]]
    values = []
    for label in np.flatnonzero(objects).tolist():
        mine = np.flatnonzero(kept & (labels == label))
        order = mine[np.argsort(-found.scores[mine], kind="stable")]
        values.append(average_precision(Matches(int(objects[label]), found.scores[order], right[order])))
    return float(np.mean(values)) if values else 0.0


def _best_of_targets(found: _Found) -> NDArray[np.int64]:
    """Return the index of the most probable error in place or class at each object that has one."""
    near = np.flatnonzero(found.targets >= 0)
    near = near[np.argsort(-found.scores[near], kind="stable")]
    _, firsts = np.unique(found.targets[near], return_index=True)
    return near[firsts]
