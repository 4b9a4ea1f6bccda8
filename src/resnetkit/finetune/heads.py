"""Heads on features: multinomial logistic regression by L-BFGS over a path of penalties. NumPy only, no torch.

    heads = fit_path(features, labels, classes=10)            # one Head for each penalty, from strong to weak
    head = choose(heads, val_features, val_labels)            # lowest error, then lowest loss
    head.logits(features), head.probabilities(features)

The same arrays on the same machine give the same head, bit for bit.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Penalties of the path, from strong to weak; see `fit`."""
MOST_STEPS = 200
"""Steps of L-BFGS for one penalty. Those before it on the path have brought the weights near."""
TOLERANCE = 2e-6
"""L-BFGS ends when no derivative is larger than this."""
MEMORY = 10
"""Pairs of steps and gradients that L-BFGS keeps."""
ROWS_AT_ONCE = 8192
"""Rows of features whose logits are computed together, so that memory stays small."""
LOGITS_AT_ONCE = 2**24
"""Logits that are computed together; with many classes, that is fewer rows."""
MOST_WORK = 5e11
"""Rows times classes times channels, times the steps for one penalty: with many classes, there are fewer steps."""
LEAST_STEPS = 3
ENOUGH_STEPS = 15
"""With fewer steps for each penalty, a head is far from the answer; see `too_large`."""
MANY_WEIGHTS, FEW_PAIRS = 2**22, 3
"""With more weights than this, L-BFGS keeps so few pairs, because each needs 16 bytes for every weight."""

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """A linear classifier on features."""

    weight: Values
    """float32 (classes, channels)."""
    bias: Values
    """float32 (classes,)."""
    penalty: float
    """The penalty by which it was fitted; 0 for a head without one."""
    steps: int = 0
    """Steps of L-BFGS."""

    def logits(self, features: Values) -> Values:
        """Map features, float32 (n, channels), to logits, float32 (n, classes)."""
        return features @ self.weight.T + self.bias

    def probabilities(self, features: Values) -> NDArray[np.float64]:
        """Map features, float32 (n, channels), to probabilities, float64 (n, classes)."""
        return np.exp(log_softmax(self.logits(features)))

    def batches(self, features: Values) -> Iterator[Values]:
        """Yield the logits of features, float32 (n, channels), in batches: of many classes, all would be gigabytes."""
        for rows in chunks(len(features), len(self.bias)):
            yield self.logits(features[rows])


@dataclass(frozen=True)
class Score:
    """How well a head does on labelled features."""

    error_percent: float
    """Share of the wrong best classes."""
    loss: float
    """Mean cross-entropy in nats."""


def fit_path(
    features: Values,
    labels: NDArray[np.int64],
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    weights: NDArray[np.floating] | None = None,
    targets: Values | None = None,
    per_feature: bool = True,
    stop: Callable[[], bool] | None = None,
) -> list[Head]:
    """Return a head for each penalty, in their order; each starts from the one before.

    Arguments are those of `fit`. Without `per_feature`, the deviation in the penalty is the quadratic mean over all
    features, as in ridge regression on features as they are: those of a trained network have scales that mean
    something. `stop` is asked before each penalty but the first; when it returns True, the heads so
    far are returned.
    """
    heads: list[Head] = []
    problem = _Problem(features, labels, classes=classes, weights=weights, targets=targets, per_feature=per_feature)
    for penalty in penalties:
        if heads and stop and stop():
            break
        heads.append(problem.fit(penalty, heads[-1] if heads else None))
    return heads


def fit(
    features: Values,
    labels: NDArray[np.int64],
    *,
    classes: int,
    penalty: float,
    weights: NDArray[np.floating] | None = None,
    targets: Values | None = None,
    start: Head | None = None,
    tolerance: float = TOLERANCE,
) -> Head:
    """Return the head that minimises mean cross-entropy + penalty / 2 · Σ (weight · deviation)².

    The deviation is that of each feature over the rows, so the penalty does not depend on the features' scales; the
    bias has no penalty. `features` is float32 (n, channels), `labels` int64 (n,) from 0 to classes - 1. `weights`,
    (n,), counts a row so many times: class weights, or 0 for a row that is left out. `targets`, float32 (n, classes),
    replaces the labels by shares, for soft labels. `start` is a head near the answer, which makes it faster. The fit
    ends when no derivative is larger than `tolerance`.

    Raises DataError without rows of a positive weight, and for features that are not finite.
    """
    problem = _Problem(features, labels, classes=classes, weights=weights, targets=targets)
    return problem.fit(penalty, start, tolerance=tolerance)


def choose(heads: Sequence[Head], features: Values, labels: NDArray[np.int64]) -> Head:
    """Return the head with the lowest error on these features, of equal ones that with the lowest loss."""
    scores = [score(head, features, labels) for head in heads]
    return heads[min(range(len(heads)), key=lambda place: (scores[place].error_percent, scores[place].loss))]


def score(head: Head, features: Values, labels: NDArray[np.int64]) -> Score:
    """Return error and loss of a head on labelled features."""
    wrong, loss = 0, 0.0
    for rows in chunks(len(labels), len(head.bias)):
        logs = log_softmax(head.logits(features[rows]))
        wrong += int((logs.argmax(axis=1) != labels[rows]).sum())
        loss -= float(logs[np.arange(len(logs)), labels[rows]].sum())
    return Score(100 * wrong / max(len(labels), 1), loss / max(len(labels), 1))


def class_weights(labels: NDArray[np.int64], *, classes: int) -> NDArray[np.float64]:
    """Return a weight for each row, float64 (n,), with which every class that occurs counts the same; the mean is 1."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def folds(labels: NDArray[np.int64], *, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return a fold for each row, int64 (n,) from 0 to count - 1, drawn so that each class is divided evenly."""
    rng = np.random.Generator(np.random.PCG64([seed, count]))
    result = np.zeros(len(labels), np.int64)
    begin = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        result[rows] = (np.arange(len(rows)) + begin) % count
        begin += len(rows)
    return result


def log_softmax(logits: Values) -> NDArray[np.float64]:
    """Return log-probabilities, float64 (n, classes)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Scaled:
    """Features that are scaled once for all penalties, and the fit of a head to them."""

    def __init__(self, features: Values, mean: NDArray[np.floating], deviation: NDArray[np.floating]) -> None:
        self.mean = mean
        # A feature that is constant, or nearly, would get a huge weight; its part is then only rounding.
        self.deviation = np.maximum(deviation, 1e-6 * max(float(deviation.max()), 1e-12))
        self.rows = ((features - self.mean) / self.deviation).astype(np.float32)

    def solved(
        self,
        value: Callable[[NDArray[np.float64], float], tuple[float, NDArray[np.float64]]],
        penalty: float,
        start: Head | None,
        *,
        classes: int,
        most_steps: int,
        tolerance: float,
    ) -> Head:
        """Return the head with the smallest `value` of weights and biases (classes, channels + 1) and the penalty.

        `value` also returns the gradient, float64 (classes · (channels + 1),). L-BFGS begins at `start`.
        """
        shape = (classes, self.rows.shape[1] + 1)
        first = np.zeros(shape)
        if start is not None:
            first[:, :-1] = start.weight * self.deviation
            first[:, -1] = start.bias + start.weight @ self.mean
        found, steps = minimise(
            lambda flat: value(flat.reshape(shape), penalty),
            first.ravel(),
            most_steps=most_steps,
            tolerance=tolerance,
        )
        solution = found.reshape(shape)
        weight = solution[:, :-1] / self.deviation
        bias = solution[:, -1] - weight @ self.mean
        return Head(weight.astype(np.float32), bias.astype(np.float32), penalty, steps)


class _Problem(Scaled):
    """The rows of one fit."""

    def __init__(
        self,
        features: Values,
        labels: NDArray[np.int64],
        *,
        classes: int,
        weights: NDArray[np.floating] | None,
        targets: Values | None,
        per_feature: bool = True,
    ) -> None:
        share = np.ones(len(features)) if weights is None else np.asarray(weights, np.float64)
        kept = share > 0
        if not kept.any():
            raise DataError("there are no features to fit a head to")
        if not kept.all():
            features, labels, share = features[kept], labels[kept], share[kept]
            targets = None if targets is None else targets[kept]
        if not np.isfinite(features).all():
            raise DataError("the features have values that are not finite")
        self.classes, self.labels, self.targets = classes, labels, targets
        self.share = (share / share.sum()).astype(np.float32)
        mean = self.share @ features
        deviation = np.sqrt(self.share @ np.square(features - mean))
        if not per_feature:
            deviation = np.full_like(deviation, np.sqrt(np.square(deviation).mean()))
        super().__init__(features, mean, deviation)

    def fit(self, penalty: float, start: Head | None, *, tolerance: float = TOLERANCE) -> Head:
        most = most_steps(len(self.rows), self.classes, self.rows.shape[1])
        return self.solved(self.value, penalty, start, classes=self.classes, most_steps=most, tolerance=tolerance)

    def value(self, solution: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient, float64 (classes · (channels + 1),), at weights and biases."""
        weight, bias = solution[:, :-1].astype(np.float32), solution[:, -1].astype(np.float32)
        loss = 0.5 * penalty * float(np.square(solution[:, :-1]).sum())
        gradient = np.zeros_like(solution)
        gradient[:, :-1] = penalty * solution[:, :-1]
        for rows in chunks(len(self.rows), self.classes):
            x, share = self.rows[rows], self.share[rows]
            logs = x @ weight.T + bias
            logs -= logs.max(axis=1, keepdims=True)
            p = np.exp(logs)
            total = p.sum(axis=1, keepdims=True)
            logs -= np.log(total)
            p /= total
            if self.targets is None:
                places = np.arange(len(x)), self.labels[rows]
                loss -= float(share.astype(np.float64) @ logs[places])
                p[places] -= 1
            else:
                loss -= float(share.astype(np.float64) @ (self.targets[rows] * logs).sum(axis=1))
                p -= self.targets[rows]
            p *= share[:, None]
            gradient[:, :-1] += p.T @ x
            gradient[:, -1] += p.sum(axis=0)
        return loss, gradient.ravel()


def minimise(
    value: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    start: NDArray[np.float64],
    *,
    most_steps: int,
    tolerance: float,
) -> tuple[NDArray[np.float64], int]:
    """Minimise a smooth convex function by L-BFGS (Nocedal and Wright 2006, Alg. 7.5); return the place and the steps.

    `value` returns the function and its gradient. A step is accepted when the function falls enough (Armijo) and, along
    it, the slope is less than before, so that the curvature is positive; otherwise the step is halved or doubled.
    """
    here = start.copy()
    loss, gradient = value(here)
    memory = MEMORY if start.size <= MANY_WEIGHTS else FEW_PAIRS
    pairs: deque[tuple[NDArray[np.float64], NDArray[np.float64], float]] = deque(maxlen=memory)
    for number in range(most_steps):
        if np.abs(gradient).max() <= tolerance:
            return here, number
        direction = _direction(gradient, pairs)
        slope = float(gradient @ direction)
        if slope >= 0:  # rounding has spoiled the curvature
            pairs.clear()
            direction = -gradient
            slope = -float(gradient @ gradient)
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        low, high = 0.0, np.inf
        for _ in range(20):
            there = here + length * direction
            new_loss, new_gradient = value(there)
            if new_loss > loss + 1e-4 * length * slope:
                high = length
            elif float(new_gradient @ direction) < 0.9 * slope:
                low = length
            else:
                break
            length = 2 * low if high == np.inf else 0.5 * (low + high)
        else:
            return (there, number + 1) if new_loss < loss else (here, number)  # float32 resolves no lower value
        step, change = there - here, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 0:
            pairs.append((step, change, 1.0 / curvature))
        here, loss, gradient = there, new_loss, new_gradient
    return here, most_steps


def _direction(
    gradient: NDArray[np.float64], pairs: "deque[tuple[NDArray[np.float64], NDArray[np.float64], float]]"
) -> NDArray[np.float64]:
    """Return the direction of quasi-Newton from the last steps, by the two-loop recursion."""
    direction = -gradient
    shares: list[float] = []
    for step, change, inverse in reversed(pairs):
        shares.append(inverse * float(step @ direction))
        direction -= shares[-1] * change
    if pairs:
        step, change, inverse = pairs[-1]
        direction *= 1.0 / (inverse * float(change @ change))
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction += (share - inverse * float(change @ direction)) * step
    return direction


def most_steps(rows: int, classes: int, channels: int) -> int:
    """Return how many steps of L-BFGS one penalty gets, so that many classes don't take hours; see MOST_WORK."""
    return max(LEAST_STEPS, min(MOST_STEPS, int(MOST_WORK / (rows * classes * channels))))


def too_large(rows: int, classes: int, channels: int) -> bool:
    """Return whether L-BFGS would take too long to come near the answer: there are very many classes, or rows."""
    return most_steps(rows, classes, channels) < ENOUGH_STEPS


def chunks(rows: int, classes: int, *, logits: int | None = None) -> list[slice]:
    """Return slices of the rows whose logits are computed together, at most `logits` of them (LOGITS_AT_ONCE)."""
    size = max(1, min(ROWS_AT_ONCE, (logits or LOGITS_AT_ONCE) // classes))
    return [slice(first, first + size) for first in range(0, rows, size)]
