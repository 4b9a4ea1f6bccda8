"""Probabilities of pictures by heads that were fitted without them: cross-validation on features. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.finetune.heads import PENALTIES, Head, fit, folds, log_softmax, score
from resnetkit.progress import Advance, ignore

FOLDS = 5
LEAST = 4
"""Fewest pictures of a class about whose pictures heads that were fitted without them can say anything."""
TOO_WEAK = 1.02
"""The path of penalties ends when the loss on the held-out pictures is this many times the lowest one."""

NEAR_ENOUGH = 1e-4
"""A fit ends at derivatives of this size. On 2,062 pictures, smaller ones took twice the time and changed no loss by
1 %."""


@dataclass(frozen=True)
class OutOfSample:
    """What heads say about pictures that they were not fitted to."""

    probabilities: NDArray[np.float32]
    """float32 (n, classes)."""
    penalty: float
    """The penalty of the heads: that with the lowest loss on the held-out pictures."""
    fitted_to: float
    """Mean number of pictures that a head was fitted to."""


def out_of_sample(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    classes: int,
    count: int = FOLDS,
    share: float = 1.0,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    advance: Advance = ignore,
) -> OutOfSample:
    """Return the probabilities of each picture by a head that was fitted to the other folds, or to a share of them.

    `features` are float32 (n, channels), `labels` int64 (n,) from 0 to classes - 1. The pictures are divided into
    `count` folds, evenly in each class. `share`, over 0 to 1, is the share of each class of the other folds that is
    used; a smaller share is a part of a larger one. `seed` decides the folds and the shares. One penalty is chosen for
    all folds, by the loss: a choice among a dozen values makes the loss hardly better than it is for new pictures.
    `advance` is called with 1 after each fold.

    Raises DataError for fewer pictures than two.
    """
    if len(labels) < 2:
        raise DataError(f"cross-validation needs two pictures or more, not {len(labels)}")
    count = min(count, len(labels))
    fold = folds(labels, count=count, seed=seed)
    paths: list[list[Head]] = []
    losses: list[list[float]] = []
    fitted_to = 0
    for number in range(count):
        held_out = fold == number
        rows = _share_of(np.flatnonzero(~held_out), labels, share=share, seed=seed)
        fitted_to += len(rows)
        heads: list[Head] = []
        found: list[float] = []
        for penalty in penalties:
            start = heads[-1] if heads else None
            fitted = fit(
                features[rows], labels[rows], classes=classes, penalty=penalty, start=start, tolerance=NEAR_ENOUGH
            )
            heads.append(fitted)
            found.append(score(heads[-1], features[held_out], labels[held_out]).loss * int(held_out.sum()))
            if found[-1] > TOO_WEAK * min(found):
                break
        paths.append(heads)
        losses.append(found)
        advance(1)
    reached = min(map(len, paths))
    best = int(np.argmin([sum(found[place] for found in losses) for place in range(reached)]))
    probabilities = np.empty((len(labels), classes), np.float32)
    for number, heads in enumerate(paths):
        probabilities[fold == number] = np.exp(log_softmax(heads[best].logits(features[fold == number])))
    return OutOfSample(probabilities, penalties[best], fitted_to / count)


def _share_of(rows: NDArray[np.int64], labels: NDArray[np.int64], *, share: float, seed: int) -> NDArray[np.int64]:
    """Return the first `share` of the rows of each class, one or more, in a drawn order that `seed` decides."""
    if share >= 1:
        return rows
    drawn = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(labels))
    rows = rows[np.argsort(drawn[rows])]
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    _, counts = np.unique(labels[rows], return_counts=True)
    kept = [of[: max(1, round(share * len(of)))] for of in np.split(ordered, np.cumsum(counts)[:-1])]
    return np.sort(np.concatenate(kept))
