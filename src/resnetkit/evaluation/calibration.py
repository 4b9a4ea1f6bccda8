"""Calibration: fitting a temperature and thresholds on validation pictures, and measuring what they are worth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.calibration import Calibration, moments, ranks
from resnetkit.evaluation.records import Records

LEAST_PICTURES = 30
"""Fewer validation pictures are not calibrated on."""
MOST_BYTES = 2**25
"""Bytes of the logits that a calibration is fitted on; of more pictures, every n-th is used."""
COLDEST, HOTTEST = 0.05, 20.0
"""Range of the temperature."""
FOLDS = 5
"""Folds on which it is decided whether a temperature is better than none."""
DOUBT = 0.1
"""Mistakes that are added to those of a validation."""
BINS = 15
"""Bins of the calibration error, each with the same number of pictures, at least LEAST_IN_BIN if there are so many."""
LEAST_IN_BIN = 25
RESAMPLES = 1000
"""Resampled sets for an interval of the calibration error."""


def fit(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> Calibration | None:
    """Fit on validation pictures: logits (n, classes) and labels (n,). None if they are too few or not finite."""
    if len(logits) < LEAST_PICTURES or logits.shape[1] < 2 or not np.isfinite(logits).all():
        return None
    temperature = supported_temperature(logits, labels)
    probabilities = np.exp(_log_softmax(logits.astype(np.float64) / temperature))
    means, deviations = moments(logits)
    return Calibration(
        temperature,
        len(logits),
        ranks(probabilities.max(axis=1), up=False),
        ranks(1 - probabilities[np.arange(len(labels)), labels], up=True),
        logit_means=means,
        logit_deviations=deviations,
    )


def supported_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float:
    """Return the temperature of `fit_temperature` if the pictures give evidence for it, else 1."""
    return supported(
        logits, labels, fit_temperature, lambda some, theirs, t: _losses(some, theirs, t, pictures=len(labels))
    )


def supported(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[Any],
    fit: Callable[..., float],
    losses: Callable[[NDArray[np.floating[Any]], NDArray[Any], float], NDArray[np.float64]],
) -> float:
    """Return the temperature that `fit` gives if the pictures give evidence for it, else 1.

    `fit` takes logits, labels and `start`, a temperature to begin with; `losses` gives the cross-entropy of each
    picture from logits, labels and a temperature. Each of FOLDS folds is scored with the temperature that the others
    give. The rule: the mean cross-entropy must be lower than at temperature 1 by more than the standard error of this
    difference (over pictures). With few mistakes a single one decides the temperature, and the next validation would
    give another one.
    """
    temperature = fit(logits, labels, start=1.0)
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    saved = np.zeros(len(labels))
    for number in range(FOLDS):
        held = fold == number
        own = fit(logits[~held], labels[~held], start=temperature)
        without, scaled = (losses(logits[held], labels[held], t) for t in (1.0, own))
        saved[held] = without - scaled
    error = saved.std(ddof=1) / np.sqrt(len(saved))
    return temperature if saved.mean() > error else 1.0


def _losses(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], temperature: float, *, pictures: int
) -> NDArray[np.float64]:
    """Return the cross-entropy of each picture, float64 (n,), with the targets of a fit to so many pictures."""
    logs = _log_softmax(logits.astype(np.float64) / temperature)
    rest = DOUBT / (pictures + 2)
    own = logs[np.arange(len(labels)), labels]
    return -((1 - rest) * own + rest * (logs.sum(axis=1) - own) / (logits.shape[1] - 1))


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], *, start: float = 1.0) -> float:
    """Return the temperature with the lowest cross-entropy of softmax(logits / temperature), in float64.

    A label counts 1 - DOUBT/(n + 2), and the other classes share the rest, so that a validation without an error does
    not end in certainty (Platt's targets have 1 for DOUBT, which makes few pictures decide too much). The cross-entropy
    is convex in 1 / temperature; its derivative is the mean difference of two expected logits, whose zero is found by
    Newton's steps within a bracket, from `start`.
    """
    logits = logits.astype(np.float64)
    count, classes = logits.shape
    rest = DOUBT / (count + 2)
    own = logits[np.arange(count), labels]
    target = ((1 - rest) * own + rest * (logits.sum(axis=1) - own) / (classes - 1)).mean()
    low, high, inverse = 1 / HOTTEST, 1 / COLDEST, 1 / start
    for _ in range(100):
        probabilities = np.exp(_log_softmax(inverse * logits))
        expected = (probabilities * logits).sum(axis=1)
        slope = expected.mean() - target
        curvature = ((probabilities * logits**2).sum(axis=1) - expected**2).mean()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else high
        step = newton if low < newton < high else (low + high) / 2
        if abs(step - inverse) <= 1e-9 * inverse:
            break
        inverse = step
    return float(f"{1 / inverse:.6g}")


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class LogitSample:
    """The logits of an evaluation, for `fit`: of all pictures, or of every n-th one if they would need MOST_BYTES."""

    def __init__(self, pictures: int, classes: int) -> None:
        self._every = max(1, -(-4 * pictures * classes // MOST_BYTES))
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add a batch: logits (n, classes), labels and indices (n,)."""
        kept = indices % self._every == 0
        self._kept.append((logits.detach().float().cpu()[kept], labels[kept], indices[kept]))

    def fit(self) -> Calibration | None:
        """Fit on what was added; see `fit`."""
        logits, labels, _ = self._joined()
        return fit(logits.numpy(), labels.numpy())

    @property
    def whole(self) -> bool:
        """Whether no picture is left out."""
        return self._every == 1

    def records(self, calibration: Calibration | None, *, top: int = 1) -> Records:
        """Return the records of what was added, with the probabilities that `calibration` gives."""
        return Records.of(*self._joined(), top=top, calibration=calibration)

    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        logits, labels, indices = zip(*self._kept, strict=True)
        return torch.cat(logits), torch.cat(labels), torch.cat(indices)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How well stated probabilities agree with the share of right predictions."""

    confidences: NDArray[np.float64]
    """Shape (n,): the probability of the predicted class of each picture, ascending."""
    right: NDArray[np.bool_]
    """Shape (n,): whether this class is the label."""

    @classmethod
    def of(cls, confidences: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> "Reliability":
        """Take the pictures in any order; equal confidences keep their order."""
        order = confidences.argsort(kind="stable")
        return cls(confidences[order].astype(np.float64), right[order])

    @cached_property
    def bins(self) -> list[tuple[float, float, int]]:
        """For each bin, from low to high confidence: mean confidence, share of right predictions, pictures."""
        count = max(1, min(BINS, len(self.right) // LEAST_IN_BIN))
        parts = zip(np.array_split(self.confidences, count), np.array_split(self.right, count), strict=True)
        return [(float(stated.mean()), float(right.mean()), len(right)) for stated, right in parts if len(right)]

    @property
    def ece_percent(self) -> float:
        """The expected calibration error: the mean difference in the bins, in percentage points."""
        total = max(len(self.right), 1)
        return round(100 * sum(size * abs(stated - right) for stated, right, size in self.bins) / total, 4)

    @cached_property
    def noise_percent(self) -> tuple[float, float]:
        """The mean of `ece_percent` of a perfectly calibrated model on so many pictures, and its 95 % quantile.

        With few pictures it is far from 0. The labels are drawn by the confidences (Bröcker and Smith, 2007).
        """
        drawn = np.random.default_rng(0)
        errors = np.zeros(RESAMPLES)
        for part in np.array_split(self.confidences, len(self.bins)) if self.bins else ():
            spread = np.sqrt((part * (1 - part)).sum())  # of the number of right ones, which is close to normal
            errors += np.abs(drawn.normal(0, spread, RESAMPLES))
        errors *= 100 / max(len(self.right), 1)
        return float(errors.mean()), float(np.quantile(errors, 0.95))

    @cached_property
    def interval_percent(self) -> tuple[float, float]:
        """The interval of `ece_percent`, of about 95 %, by a parametric bootstrap of the bins, with a fixed seed.

        A resampled error is larger than the error by its noise, as the error is larger than the true one; so it is
        reflected at the error (basic bootstrap). It begins at 0 where a calibrated model may have such an error.
        """
        if not self.bins:
            return 0.0, 0.0
        drawn = np.random.default_rng(0)
        errors = np.zeros(RESAMPLES)
        for part in np.array_split(self.confidences - self.right, len(self.bins)):
            errors += len(part) * np.abs(drawn.normal(part.mean(), part.std() / np.sqrt(len(part)), RESAMPLES))
        low, high = np.quantile(100 * errors / len(self.right), (0.025, 0.975))
        lowest = 0.0 if self.ece_percent <= self.noise_percent[1] else max(0.0, 2 * self.ece_percent - high)
        return round(lowest, 4), round(max(0.0, 2 * self.ece_percent - low), 4)
