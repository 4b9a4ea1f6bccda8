"""Compare an exported file with its source on real pictures: how far do their outputs differ? No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.infer.backends.backend import softmax

BATCH_SIZES = (1, 3, 16)
"""A file is run at each of them, because exported graphs are often right for one batch size only."""

Compute: TypeAlias = Callable[[NDArray[np.generic]], NDArray[np.float32]]


@dataclass(frozen=True)
class Gap:
    """The largest differences between the outputs of a file and its source, over all pictures and batch sizes."""

    pictures: int
    values: float | None
    """Difference of logits or features, in standard deviations of the source's; None if the file outputs neither."""
    probabilities: float | None
    """Difference of probabilities; None for features."""
    agreement: float | None
    """Fraction of the pictures, 0 to 1, whose best class is the same; None for features."""

    def within(self, tolerance: float) -> bool:
        """Whether no difference is larger than `tolerance`; NaN is."""
        return all(gap <= tolerance for gap in (self.values, self.probabilities) if gap is not None)


def measure(compute: Compute, inputs: NDArray[np.generic], expected: NDArray[np.float32], *, output: str) -> Gap:
    """Run a file on `inputs` in batches of each of BATCH_SIZES, and compare its outputs with `expected`.

    `output` says what both give: logits, probabilities or features.
    """
    pictures = len(inputs)
    rows = np.arange(max(pictures, *BATCH_SIZES)) % pictures  # too few pictures are repeated
    inputs, expected = inputs[rows], expected[rows]
    values = probabilities = 0.0
    agreeing = np.ones(len(inputs), bool)
    spread = float(expected.std()) or 1.0
    for batch in _batches(len(inputs)):
        found, source = compute(inputs[batch]), expected[batch]
        if found.shape != source.shape:
            values = probabilities = float("inf")
            agreeing[:] = False
            break
        values = max(values, float(np.abs(found - source).max()) / spread, key=_nan_is_largest)
        if output in ("logits", "probabilities"):
            both = (found, source) if output == "probabilities" else (softmax(found), softmax(source))
            probabilities = max(probabilities, float(np.abs(both[0] - both[1]).max()), key=_nan_is_largest)
            agreeing[batch] &= found.argmax(1) == source.argmax(1)
    classes = output in ("logits", "probabilities")
    return Gap(
        pictures,
        values if output != "probabilities" else None,
        probabilities if classes else None,
        float(agreeing[:pictures].mean()) if classes else None,
    )


def _batches(pictures: int) -> list[slice]:
    """The first pictures in a batch of each smaller size, then all pictures in batches of the largest."""
    *small, largest = BATCH_SIZES
    return [
        *(slice(0, size) for size in small),
        *(slice(first, first + largest) for first in range(0, pictures, largest)),
    ]


def _nan_is_largest(gap: float) -> float:
    return gap if gap == gap else float("inf")
