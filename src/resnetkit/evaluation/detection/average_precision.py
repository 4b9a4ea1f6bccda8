"""Average precision of one class, in the two ways of PASCAL VOC."""

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation.detection.matching import Matches

POINTS = 11
"""Number of recalls of the older rule: 0, 0.1, ... 1."""


def average_precision(matches: Matches) -> float:
    """Return the area under the curve of precision over recall, 0 to 1; NaN for a class without objects.

    It is VOC's rule from 2010 on: precision at a recall is the largest precision at this or a larger recall.
    """
    if not matches.objects:
        return float("nan")
    recalls, precisions = _envelope(matches)
    return float(np.sum(np.diff(recalls, prepend=0.0) * precisions))


def average_precision_11_points(matches: Matches) -> float:
    """Return the mean of the largest precisions at recalls of at least 0, 0.1, ... 1: VOC's rule until 2009.

    The result is between 0 and 1; NaN for a class without objects.
    """
    if not matches.objects:
        return float("nan")
    _, precisions = _envelope(matches)
    # In whole numbers: in float64, 3 * 0.1 is larger than 3 / 10.
    needed = -(-np.arange(POINTS) * matches.objects // (POINTS - 1))
    places = np.searchsorted(np.cumsum(matches.right), needed)
    return float(np.sum(precisions[places[places < len(precisions)]]) / POINTS)


def _envelope(matches: Matches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return recalls and, for each, the largest precision at it or a larger recall, both float64 (n,)."""
    return matches.recalls, np.maximum.accumulate(matches.precisions[::-1])[::-1]
