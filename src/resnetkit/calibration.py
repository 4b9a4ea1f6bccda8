"""What a validation found that predictions need: a temperature, a threshold, and ranks for label sets. NumPy only."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError

FALSE_REJECT_RATE = 0.05
"""The default share of pictures of known classes that `reject` may mark, 0 to 1."""
UNDECIDED = 0.5
"""The threshold of a class if validation does not decide it."""
MOST_RANKS = 1000
"""Largest number of scores that a model file keeps for each use."""
MOST_MOMENTS = 4096
"""Largest number of classes for which a model file keeps the moments of the logits."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the sorted scores of the validation pictures that it was fitted on.

    Of more than MOST_RANKS scores, every n-th is kept. Thresholds between two kept scores are rounded to the one that
    keeps the promise: fewer rejected pictures, or larger sets.
    """

    temperature: float
    """Logits are divided by it before the softmax, so that probabilities agree with frequencies (arXiv:1706.04599)."""
    pictures: int
    """Number of validation pictures."""
    confidences: tuple[float, ...] = ()
    """The probabilities of the most probable classes of validation pictures, ascending."""
    strangeness: tuple[float, ...] = ()
    """1 minus the probability of the label, ascending, for label sets."""
    thresholds: tuple[float, ...] = ()
    """For a model with several labels: the probability from which each class is answered, 0 to 1."""
    undecided: tuple[int, ...] = ()
    """Indices of the classes with too few validation pictures for a threshold of their own; it is UNDECIDED."""
    logit_means: tuple[float, ...] = ()
    """For each class, the mean of its logit over the validation pictures, to recognise other pictures in use; empty in
    older model files and with more than MOST_MOMENTS classes."""
    logit_deviations: tuple[float, ...] = ()
    """For each class, the standard deviation of its logit over the validation pictures."""

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for values that no fit gives."""
        if not all(0 <= value <= 1 for value in self.thresholds):
            raise ValueError("thresholds are not probabilities")
        if not 0 < float(self.temperature) < math.inf:
            raise ValueError(f"temperature is {self.temperature}")
        for name in ("confidences", "strangeness"):
            values = np.array(getattr(self, name), float)
            if values.ndim != 1 or not np.isfinite(values).all() or (np.diff(values) < 0).any():
                raise ValueError(f"{name} are not ascending numbers")
        means, deviations = np.array(self.logit_means, float), np.array(self.logit_deviations, float)
        if means.shape != deviations.shape or not np.isfinite([means, deviations]).all() or (deviations < 0).any():
            raise ValueError("the moments of the logits are not numbers")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON; thresholds and moments of logits only if there are some."""
        values = asdict(self)
        if not self.thresholds:
            del values["thresholds"], values["undecided"]
        if not self.logit_means:
            del values["logit_means"], values["logit_deviations"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Return the calibration from the result of `to_dict`; unknown fields are ignored.

        Raises ValueError, TypeError or KeyError for values that are not valid.
        """
        return cls(
            float(values["temperature"]),
            int(values["pictures"]),
            tuple(map(float, values.get("confidences", ()))),
            tuple(map(float, values.get("strangeness", ()))),
            tuple(map(float, values.get("thresholds", ()))),
            tuple(map(int, values.get("undecided", ()))),
            tuple(map(float, values.get("logit_means", ()))),
            tuple(map(float, values.get("logit_deviations", ()))),
        )

    def threshold(self, rate: float = FALSE_REJECT_RATE) -> float:
        """Return the probability of the best class below which a picture is taken for one of no known class.

        Of new pictures of known classes, at most the share `rate` (over 0, less than 1) is below it, on average over
        validation sets: the rank is floor(rate (n + 1)). It is 0 if there are too few validation pictures for it.
        Raises UsageError for another rate.
        """
        if not 0 < rate < 1:
            raise UsageError(f"`reject_rate` is {rate}; it must be over 0 and less than 1")
        rank = math.floor(rate * (self.pictures + 1) + 1e-9)
        kept = math.floor(rank * len(self.confidences) / max(self.pictures, 1) + 1e-9)
        return self.confidences[kept - 1] if kept else 0.0

    def most_strange(self, coverage: float) -> float:
        """Return the largest strangeness of a class in a label set with this `coverage` (over 0, less than 1).

        This is split conformal prediction (arXiv:1612.01404, LAC, by the score 1 - p): the rank is
        ceil(coverage (n + 1)). It is 1, so that a set has all classes, if there are too few validation pictures.
        Raises UsageError for another coverage.
        """
        if not 0 < coverage < 1:
            raise UsageError(f"`coverage` is {coverage}; it must be over 0 and less than 1, such as 0.9")
        rank = math.ceil(coverage * (self.pictures + 1) - 1e-9)
        kept = math.ceil(rank * len(self.strangeness) / max(self.pictures, 1) - 1e-9)
        return self.strangeness[kept - 1] if kept <= len(self.strangeness) else 1.0


def moments(logits: NDArray[np.floating[Any]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each column of logits (n, classes), to six digits.

    Both are empty if there are more than MOST_MOMENTS classes.
    """
    if logits.shape[1] > MOST_MOMENTS:
        return (), ()
    exact = logits.astype(np.float64)
    rounded = [tuple(float(f"{value:.6g}") for value in found) for found in (exact.mean(axis=0), exact.std(axis=0))]
    return rounded[0], rounded[1]


def ranks(scores: NDArray[np.floating[Any]], *, up: bool) -> tuple[float, ...]:
    """Return the sorted scores (n,), rounded to six decimals, at most MOST_RANKS of them: at the ranks ceil(j n / m).

    Confidences are rounded down and strangeness up, so that rounding rejects nothing and leaves no class out.
    """
    ordered = np.sort(scores.astype(np.float64)) * 1e6
    kept = min(len(ordered), MOST_RANKS)
    places = [math.ceil(place * len(ordered) / kept - 1e-9) - 1 for place in range(1, kept + 1)]
    rounded = np.ceil(ordered[places] - 1e-6) if up else np.floor(ordered[places] + 1e-6)
    return tuple((rounded / 1e6).tolist())


def scaled(logits: NDArray[np.float32], calibration: Calibration | None) -> NDArray[np.float32]:
    """Return logits, float32 (n, classes), divided by the temperature; the same array without a calibration."""
    return logits if calibration is None else logits / np.float32(calibration.temperature)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability of each class by itself for logits, both float32 (n, classes)."""
    small = np.exp(-np.abs(logits))
    return (np.where(logits >= 0, np.float32(1), small) / (1 + small)).astype(np.float32, copy=False)


def thresholds_of(calibration: Calibration | None, classes: int) -> NDArray[np.float32]:
    """Return the probability from which each class is answered, float32 (classes,); UNDECIDED where there is none."""
    if calibration is None or not calibration.thresholds:
        return np.full(classes, UNDECIDED, np.float32)
    return np.array(calibration.thresholds, np.float32)


def rejects(probabilities: NDArray[np.float32], calibration: Calibration, rate: float) -> NDArray[np.bool_]:
    """Return which pictures seem to be of no known class, bool (n,), for probabilities (n, classes).

    The probability of the best class tells such pictures apart better than the largest logit and than the energy of the
    logits, as measured on hand signs with some digits left out of training: see docs/trust.md.
    """
    return probabilities.max(axis=1) < np.float32(calibration.threshold(rate))


def label_sets(probabilities: NDArray[np.float32], calibration: Calibration, coverage: float) -> NDArray[np.bool_]:
    """Return which classes are in the label set of each picture: bool (n, classes) for probabilities (n, classes).

    The set of a new picture contains its label with probability `coverage` or more, if it is like the validation
    pictures. It always contains the most probable class.
    """
    least = np.float32(1 - calibration.most_strange(coverage) - 1e-6)  # ranks are rounded to six digits
    return (probabilities >= least) | (probabilities == probabilities.max(axis=1, keepdims=True))
