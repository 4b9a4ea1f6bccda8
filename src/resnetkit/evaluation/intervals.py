"""How far a measured error may be from the true one, and what so many pictures can show. NumPy only."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError

CONFIDENCE = 0.95
FEW = 10
"""With fewer wrong or fewer right pictures than this, a bootstrap is too narrow, and the exact interval is used."""
Z, Z_POWER = 1.959964, 0.841621
"""Normal quantiles of 0.975 and of 0.8: a test at 5 %, and the power of 80 %."""
RESAMPLES = 10_000
MOST_DRAWS = 10_000_000


def error_interval(wrong: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval, 0 to 1, of the share that `wrong` of `total` pictures are.

    It is the bootstrap percentile interval without resampling noise: the number of wrong pictures in a resampled set is
    binomial. With fewer than FEW wrong or right ones, it is the exact interval of Clopper and Pearson.
    """
    if not total:
        return 0.0, 1.0
    tail = (1 - CONFIDENCE) / 2
    if min(wrong, total - wrong) < FEW:
        low = _crossing(lambda share: _at_least(wrong, total, share) - tail) if wrong else 0.0
        high = _crossing(lambda share: tail - _at_most(wrong, total, share)) if wrong < total else 1.0
        return low, high
    reached = np.cumsum(_binomial(total, wrong / total))
    low, high = np.searchsorted(reached, (tail, 1 - tail))
    return float(low) / total, float(high) / total


def _binomial(total: int, share: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 to `total` wrong pictures, float64 (total + 1,); `share` is over 0 and below 1."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    chosen = np.arange(total + 1)
    logs = factorials[-1] - factorials - factorials[::-1]
    return np.exp(logs + chosen * math.log(share) + (total - chosen) * math.log1p(-share))


def _at_most(wrong: int, total: int, share: float) -> float:
    return float(_binomial(total, share)[: wrong + 1].sum())


def _at_least(wrong: int, total: int, share: float) -> float:
    return float(_binomial(total, share)[wrong:].sum())


def _crossing(rises: Callable[[float], float]) -> float:
    """Return where an increasing function of a share, over 0 and below 1, is zero, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) > 0 else (middle, high)
    return (low + high) / 2


def smallest_difference(wrong: int, total: int) -> float:
    """Return the smallest difference between two models' errors, 0 to 1, that so many pictures are likely to show.

    A difference of this size is found by McNemar's test at 5 % in four of five such sets, if the other model's mistakes
    do not depend on this one's: they then differ on about 2 p (1 - p) of the pictures (Miettinen, 1968). Five pictures
    that differ are the fewest that its mid-p value can call a difference.
    """
    if not total:
        return 1.0
    share = (wrong + 1) / (total + 2)
    return min(1.0, max((Z + Z_POWER) * math.sqrt(2 * share * (1 - share) / total), 5 / total))


def weighted_error(confusion: NDArray[np.int64], shares: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Return the error, 0 to 1, for other `shares` (classes,) of the classes, and its 95 % bootstrap interval.

    `confusion`, int64 (classes, classes), has a row for each label. Each class is resampled by itself; one more right
    and one more wrong picture are added to it there, so that a class without a mistake is not taken for perfect.
    """
    there = shares > 0
    shares = shares[there] / shares.sum()
    totals = confusion.sum(axis=1)[there]
    wrong = totals - confusion.diagonal()[there]
    resamples = max(200, min(RESAMPLES, MOST_DRAWS // len(shares)))
    drawn = np.random.default_rng(0).binomial(totals, (wrong + 1) / (totals + 2), (resamples, len(totals)))
    low, high = np.quantile(drawn / totals @ shares, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(wrong / totals @ shares), (float(low), float(high))


def class_shares(given: Mapping[str, float], classes: Sequence[str], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each class, float64 (classes,), from shares by name that sum to 1 (or 100).

    Raises UsageError for a class that there is not or that has no picture, and for other numbers.
    """
    shares = np.zeros(len(classes))
    for name, share in given.items():
        if name not in classes:
            raise UsageError(f"`class_share` names {name}; the classes are {', '.join(classes[:10])}")
        place = list(classes).index(name)
        if share > 0 and not totals[place]:
            raise UsageError(f"`class_share` names {name}, of which there is no picture to measure an error on")
        if not 0 <= share < math.inf:
            raise UsageError(f"`class_share` of {name} is {share:g}; it must be from 0 to 1")
        shares[place] = share
    total = shares.sum()
    if min(abs(total - 1), abs(total / 100 - 1)) > 0.01:
        raise UsageError(f"`class_share` sums to {total:g}; the shares of all classes must sum to 1")
    return shares / total
