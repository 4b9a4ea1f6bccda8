"""Fitting a temperature and a threshold for each class to validation pictures with several labels. NumPy only."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import UNDECIDED, Calibration, moments, scaled, sigmoid
from resnetkit.evaluation.calibration import COLDEST, DOUBT, HOTTEST, LEAST_PICTURES, supported

LEAST_POSITIVES = 5
"""A class with fewer validation pictures with it, or without it, keeps the threshold UNDECIDED."""
MOST_NUMBERS = 2**22
"""Logits that a temperature is fitted on; of more pictures, every n-th is used."""


def fit_several(logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> Calibration | None:
    """Fit on validation pictures: logits and labels (n, classes). None for logits that are not finite.

    One temperature for all classes, which is 1 for fewer than LEAST_PICTURES pictures, and where they give no evidence
    for another one. For each class, the threshold of
    the scaled probability with the highest F1 on these pictures.
    """
    if not len(logits) or not np.isfinite(logits).all():
        return None
    temperature = supported_temperature(logits, labels) if len(logits) >= LEAST_PICTURES else 1.0
    probabilities = sigmoid(scaled(logits, Calibration(temperature, len(logits))))
    thresholds = [best_threshold(probabilities[:, i], labels[:, i]) for i in range(labels.shape[1])]
    means, deviations = moments(logits)
    return Calibration(
        temperature,
        len(logits),
        logit_means=means,
        logit_deviations=deviations,
        thresholds=tuple(UNDECIDED if value is None else value for value in thresholds),
        undecided=tuple(place for place, value in enumerate(thresholds) if value is None),
    )


def supported_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> float:
    """Return the temperature of `fit_temperature` if the pictures give evidence for it, else 1; see `supported`."""
    some = slice(None, None, max(1, -(-logits.size // MOST_NUMBERS)))
    logits, labels = logits[some], labels[some]

    def losses(some: NDArray[np.floating[Any]], theirs: NDArray[np.bool_], temperature: float) -> NDArray[np.float64]:
        values = some.astype(np.float64) / temperature
        return (np.logaddexp(0, values) - _targets(theirs, pictures=len(labels)) * values).sum(axis=1)

    return supported(logits, labels, fit_temperature, losses)


def _targets(labels: NDArray[np.bool_], *, pictures: int) -> NDArray[np.float64]:
    doubt = DOUBT / (pictures + 2)
    return np.where(labels, 1 - doubt, doubt)


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.bool_], *, start: float = 1.0) -> float:
    """Return the temperature with the lowest binary cross-entropy of sigmoid(logits / temperature), in float64.

    A label counts 1 - DOUBT/(n + 2) and none DOUBT/(n + 2), so that a validation without an error does not end in
    certainty. The cross-entropy is convex in 1 / temperature; the zero of its derivative is found by Newton's steps
    within a bracket, from `start`.
    """
    values = logits.astype(np.float64)
    targets = _targets(labels, pictures=len(values))
    low, high, inverse = 1 / HOTTEST, 1 / COLDEST, 1 / start
    for _ in range(100):
        probabilities = 1 / (1 + np.exp(-np.clip(inverse * values, -500, 500)))
        slope = (values * (probabilities - targets)).sum()
        curvature = (values**2 * probabilities * (1 - probabilities)).sum()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else high
        step = newton if low < newton < high else (low + high) / 2
        if abs(step - inverse) <= 1e-9 * inverse:
            break
        inverse = step
    return float(f"{1 / inverse:.6g}")


def best_threshold(probabilities: NDArray[np.float32], labels: NDArray[np.bool_]) -> float | None:
    """Return the threshold with the highest F1, for probabilities and labels (n,) of one class; None for too few.

    It is in the middle between two probabilities that occur; of equally good ones, the nearest to UNDECIDED.
    """
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < LEAST_POSITIVES:
        return None
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order].astype(np.float64)
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(values) + 1) + positives)
    cuts = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # after the last of equal probabilities
    below = np.append(values[1:], 0.0)[cuts]
    middles = (values[cuts] + below) / 2
    best = f1[cuts] >= f1[cuts].max() - 1e-12
    best_middles = middles[best]
    choice = float(best_middles[np.lexsort((best_middles, np.abs(best_middles - UNDECIDED)))[0]])
    # As float32, which is what it is compared with; digits that do not move it over a neighbour are left out.
    return float(f"{choice:.7g}")
