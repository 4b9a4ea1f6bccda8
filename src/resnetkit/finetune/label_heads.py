"""Heads on features of pictures with several labels: one logistic regression per class, by L-BFGS over penalties.

They are fitted together, because their objectives add up, and share one penalty: with few validation pictures of a
class, a penalty of its own would be chosen by chance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.evaluation.average_precision import average_precisions, mean_of
from resnetkit.finetune.features import Features
from resnetkit.finetune.heads import PENALTIES, TOLERANCE, Head, Scaled, chunks, folds, most_steps
from resnetkit.train.loss import MOST_WEIGHT

FOLDS = 5
"""Without validation pictures, the penalty is chosen on folds of the training pictures."""
LOGITS_AT_ONCE = 2**20
"""Logits that are computed together: few, because there are several arrays of them, and these stay in the caches."""
AS_CHANNELS = 64
"""The logistic function of a logit costs as much as so many products."""


def fit_path(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    penalties: Sequence[float] = PENALTIES,
    balanced: bool = False,
    stop: Callable[[], bool] | None = None,
) -> list[Head]:
    """Return a head for each penalty, in their order; each starts from the one before.

    `stop` is asked before each penalty but the first; when it returns True, the heads so far are returned.

    It minimises, for each class, mean binary cross-entropy + penalty / 2 · Σ (weight · deviation)², as `heads.fit` does
    for one label. `features` is float32 (n, channels), `labels` (n, classes), 0 or 1. With `balanced`, the pictures
    with and without a label count the same.

    Raises DataError without rows, and for features that are not finite.
    """
    problem = _Problem(features, labels, balanced=balanced)
    found: list[Head] = []
    for penalty in penalties:
        if found and stop and stop():
            break
        found.append(problem.fit(penalty, found[-1] if found else None))
    return found


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    val: Features | None,
    *,
    views: int = 1,
    balanced: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Head:
    """Return the head of the path with the highest mean average precision on `val`, of equal ones the lowest loss.

    Without `val`, the penalty is that with the lowest loss on folds of the training pictures. `features` and `labels`
    have the views of all pictures, one view after another. `stop` ends the path early, see `fit_path`.
    """
    if val is not None:
        path = fit_path(features, labels, balanced=balanced, stop=stop)
        scores = [_score(head, val.pool(), val.labels) for head in path]
        return path[min(range(len(path)), key=lambda place: scores[place])]
    pictures = len(labels) // views
    _, sets = np.unique(labels[:pictures], axis=0, return_inverse=True)
    fold = np.tile(folds(sets.reshape(-1), count=min(FOLDS, pictures)), views)
    losses = np.zeros(len(PENALTIES))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        path = fit_path(features[~out], labels[~out], balanced=balanced)
        losses += [_score(head, features[out], labels[out])[1] for head in path]
    return fit_path(features, labels, penalties=PENALTIES[: int(losses.argmin()) + 1], balanced=balanced)[-1]


def _score(head: Head, features: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return minus the mean average precision, and the loss, of a head."""
    logits = head.logits(features)
    area = mean_of(average_precisions(logits, labels > 0)) or 0.0
    loss = 0.0
    for rows in chunks(len(logits), logits.shape[1], logits=LOGITS_AT_ONCE):
        loss += float(_losses(logits[rows].astype(np.float64), labels[rows] > 0)[0].sum())
    return -round(area, 6), loss / max(len(labels), 1)


def _losses(logits: NDArray[Any], having: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the binary cross-entropies in nats, and their derivatives by the logits, both (n, classes)."""
    small = np.exp(-np.abs(logits))
    losses = np.log1p(small) + np.maximum(np.where(having, -logits, logits), 0)
    return losses, np.where(logits >= 0, 1, small) / (1 + small) - having


class _Problem(Scaled):
    """The rows of one fit."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.int64], *, balanced: bool) -> None:
        if not len(features):
            raise DataError("there are no features to fit a head to")
        if not np.isfinite(features).all():
            raise DataError("the features have values that are not finite")
        self.labels = labels
        super().__init__(features, features.mean(axis=0), features.std(axis=0))
        total, having = len(labels), labels.sum(axis=0)
        self.weights = np.full((2, labels.shape[1]), 1 / total, np.float32)  # without the label, and with it
        if balanced:
            both = (having > 0) & (having < total)
            for row, count in enumerate((total - having, having)):
                factors = np.minimum(total / (2 * np.maximum(count, 1)), MOST_WEIGHT)
                self.weights[row] = np.where(both, factors, 1) / total

    def fit(self, penalty: float, start: Head | None) -> Head:
        classes = self.labels.shape[1]
        most = most_steps(len(self.rows), classes, self.rows.shape[1] + AS_CHANNELS)
        return self.solved(self.value, penalty, start, classes=classes, most_steps=most, tolerance=TOLERANCE)

    def value(self, solution: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient, float64 (classes · (channels + 1),), at weights and biases."""
        weight, bias = solution[:, :-1].astype(np.float32), solution[:, -1].astype(np.float32)
        loss = 0.5 * penalty * float(np.square(solution[:, :-1]).sum())
        gradient = np.zeros_like(solution)
        gradient[:, :-1] = penalty * solution[:, :-1]
        for rows in chunks(len(self.rows), len(weight), logits=LOGITS_AT_ONCE):
            x, having = self.rows[rows], self.labels[rows] > 0
            losses, slopes = _losses(x @ weight.T + bias, having)
            shares = np.where(having, self.weights[1], self.weights[0])
            loss += float((shares * losses).sum(dtype=np.float64))
            slopes *= shares
            gradient[:, :-1] += slopes.T @ x
            gradient[:, -1] += slopes.sum(axis=0)
        return loss, gradient.ravel()
