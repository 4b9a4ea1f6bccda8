"""Drift: how far the pictures that are served are from those of the validation, by their logits alone."""

from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LAST = 1000
"""Number of pictures that count: of the confidences exactly the last ones, of the moments so many in effect."""
LEAST = 2
"""Pictures without which there are no moments."""


class Scores:
    """The confidences (probabilities of the best class) of the last LAST pictures, beside those of the validation."""

    def __init__(self, validation: Sequence[float]) -> None:
        """`validation` are the model's `calibration.confidences`."""
        self._validation = np.array(validation)
        self._last: deque[float] = deque(maxlen=LAST)
        self._lock = Lock()

    def add(self, scores: Iterable[float]) -> None:
        """Take the confidences of pictures; the oldest are forgotten."""
        with self._lock:
            self._last.extend(map(float, scores))

    def distance(self) -> float:
        """Return the Kolmogorov-Smirnov distance of the two distributions, 0 to 1; 0 if one of them is empty.

        With n of each, pictures of one kind give more than 1.36 sqrt(2 / n) in one of twenty cases: 0.06 for
        1000.
        """
        with self._lock:
            served = np.sort(self._last)
        if not len(served) or not len(self._validation):
            return 0.0
        places = np.concatenate([served, self._validation])
        shares = [np.searchsorted(one, places, side="right") / len(one) for one in (served, self._validation)]
        return float(np.abs(shares[0] - shares[1]).max())


class Distance(NamedTuple):
    """How far the moments of the served logits are from those of the validation, in its standard deviations."""

    shift: float
    """The mean over the classes of the distance of the two means."""
    frechet: float
    """The root of the mean over the classes of the squared Fréchet distance of two normal distributions: squared
    distance of the means plus squared distance of the standard deviations."""
    pictures: int
    """Number of pictures that the served moments rest on, up to LAST."""


class Moments:
    """The mean and the variance of the logits of each class over the last pictures; no logits are kept.

    Logits are a linear projection of the pooled features, one direction for each class, which every backend gives. The
    first LAST pictures count the same. Later, older ones count less and less, in effect LAST of them.
    """

    def __init__(self, means: Sequence[float], deviations: Sequence[float]) -> None:
        """Take the model's `calibration.logit_means` and `logit_deviations`; constant logits are left out."""
        self._expected_means, self._expected_deviations = np.array(means), np.array(deviations)
        self._used = self._expected_deviations > 0
        self._means = np.zeros(len(self._expected_means))
        self._variances = np.zeros(len(self._expected_means))
        self._count = 0
        self._lock = Lock()

    def add(self, logits: NDArray[np.float32]) -> None:
        """Take the logits of pictures, float32 (n, classes). Rows that are not finite are left out."""
        rows = logits[np.isfinite(logits).all(axis=1)].astype(np.float64)
        if not len(rows):
            return
        means, variances = rows.mean(axis=0), rows.var(axis=0)
        with self._lock:
            # Moments of two sets joined (Chan, Golub and LeVeque, 1979); what would exceed LAST is taken off the old.
            old, new = max(min(self._count, LAST - len(rows)), 0), len(rows)
            share = new / (old + new)
            apart = means - self._means
            self._means = self._means + share * apart
            self._variances = (1 - share) * self._variances + share * variances + share * (1 - share) * apart**2
            self._count = min(old + new, LAST)

    def distance(self) -> Distance | None:
        """Return the distance from the validation; None before LEAST pictures, and if all its logits were constant.

        Of n pictures like the m of the validation, both parts are about 0 but for chance: with logits that are normal,
        the shift is about 0.8 sqrt(1/n + 1/m), and the Fréchet distance about sqrt(1.5 (1/n + 1/m)).
        """
        with self._lock:
            means, deviations, count = self._means, np.sqrt(self._variances), self._count
        if count < LEAST or not self._used.any():
            return None
        scale = self._expected_deviations[self._used]
        shifts = (means - self._expected_means)[self._used] / scale
        spreads = (deviations - self._expected_deviations)[self._used] / scale
        return Distance(float(np.abs(shifts).mean()), float(np.sqrt((shifts**2 + spreads**2).mean())), count)
