"""The score from which detections of a class are best shown: the one with the largest F1 on validation pictures."""

from dataclasses import dataclass

import numpy as np

from resnetkit.evaluation.detection.matching import Matches


@dataclass(frozen=True)
class Threshold:
    """Detections of a class with this score or more, and what they are worth."""

    score: float
    """0 to 1."""
    precision: float
    """Share of right ones among these detections, 0 to 1."""
    recall: float
    """Share of the objects that they find, 0 to 1."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def best_threshold(matches: Matches) -> Threshold | None:
    """Return the threshold with the largest F1; None for a class without objects or without right detections.

    It lies in the middle between the last score that belongs and the next lower one, so that a score that differs in
    its last bit, as from another backend, stays on the same side.
    """
    if not matches.objects or not matches.right.any():
        return None
    f1 = 2 * np.cumsum(matches.right) / (matches.objects + np.arange(1, len(matches.right) + 1))
    # Equal scores can't be told apart by a threshold: only the last of them is a place for it.
    last = np.append(np.diff(matches.scores) != 0, True)
    best = int(np.flatnonzero(last)[f1[last].argmax()])
    after = matches.scores[best + 1] if best + 1 < len(f1) else 0.0
    score = float(matches.scores[best] + after) / 2
    return Threshold(score, float(matches.precisions[best]), float(matches.recalls[best]))
