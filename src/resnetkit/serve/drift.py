"""Drift: how far the pictures that are served are from those of the validation, by their confidences alone."""

from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np

LAST = 1000
"""Number of pictures whose confidences are kept."""


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
