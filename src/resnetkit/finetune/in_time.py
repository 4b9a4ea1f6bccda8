"""Features within `minutes`: of large data, of as many training pictures as the time allows, drawn evenly."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resnetkit.finetune.features import FeatureCache

MEASURED = 64
"""Pictures after the first ones whose time tells how long the others take."""


def drawn_evenly(strata: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return the indices of n pictures, int64 (n,), in an order that `seed` decides.

    One picture of each class comes first. After that, any number of pictures from the beginning has each class in its
    share. `strata` is the class of each picture, int64 (n,), from 0.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    drawn = rng.permutation(len(strata))
    by_class = drawn[np.argsort(strata[drawn], kind="stable")]
    ordered = strata[by_class]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    turn = rank / np.maximum(np.bincount(ordered)[ordered], 1)
    return by_class[np.lexsort((rng.random(len(turn)), turn))]


class Enough:
    """Says when to stop computing features.

    It is asked before each batch. The pace is measured on the way, without the first pictures: these wait for the
    network to be compiled.
    """

    def __init__(self, cache: FeatureCache, end: float, *, least: int, tell: Callable[[int, float], object]) -> None:
        """Stop before time.monotonic() is `end`.

        `tell` is called once, when the pace is known: with the number of pictures that are likely to have features in
        the end, `least` at least, and the seconds until they have.
        """
        self._cache, self._end, self._least = cache, end, least
        self._tell: Callable[[int, float], object] | None = tell
        self._before = cache.computed
        self._first: tuple[float, int] | None = None

    def __call__(self, there: int) -> bool:
        """Return whether it is time to stop; `there` pictures have features, or are begun."""
        now, computed = time.monotonic(), self._cache.computed
        if computed == self._before:
            return False
        if self._first is None:
            self._first = now, computed
        began, at = self._first
        if computed - at < MEASURED:
            return False
        if self._tell is not None:
            pace = (now - began) / (computed - at)
            fitting = max(there + max(int((self._end - now) / pace), 0), self._least)
            self._tell(fitting, (fitting - there) * pace)
            self._tell = None
        return now >= self._end
