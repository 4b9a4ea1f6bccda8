"""Measure how much the outputs of an exported file and of its model differ on pictures. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import sigmoid
from resnetkit.infer.backends.backend import softmax

BATCH_SIZES = (1, 3, 16)
"""A file is run with each of these, because exported graphs are often correct for one batch size only."""

Compute: TypeAlias = Callable[[NDArray[np.generic]], NDArray[np.float32]]
"""Runs a file: takes a batch of inputs, returns the outputs."""


@dataclass(frozen=True)
class Gap:
    """The largest differences between the outputs of a file and of its model, over all pictures and batch sizes."""

    pictures: int
    values: float | None
    """Difference of logits or features, divided by their standard deviation; None if the file outputs probabilities."""
    probabilities: float | None
    """Difference of probabilities; None for features."""
    agreement: float | None
    """Fraction of the pictures, 0 to 1, whose best class is the same; None for features."""

    def within(self, tolerance: float) -> bool:
        """Whether no difference is larger than `tolerance`. NaN counts as larger."""
        return all(gap <= tolerance for gap in (self.values, self.probabilities) if gap is not None)


def measure(
    compute: Compute,
    inputs: NDArray[np.generic],
    expected: NDArray[np.float32],
    *,
    output: str,
    multilabel: bool = False,
) -> Gap:
    """Run a file on `inputs` with each of BATCH_SIZES, compare its outputs with `expected`, and return the gap.

    `output` is the name of the outputs: logits, probabilities, or pool or c5 for features. Probabilities of logits are
    sigmoids if `multilabel`, else a softmax.
    """
    activation = sigmoid if multilabel else softmax
    pictures = len(inputs)
    rows = np.arange(max(pictures, *BATCH_SIZES)) % pictures  # pictures are repeated if there are too few
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
            both = (found, source) if output == "probabilities" else (activation(found), activation(source))
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
    """Return one batch of each smaller size from the first pictures, then all pictures in batches of the largest."""
    *small, largest = BATCH_SIZES
    return [
        *(slice(0, size) for size in small),
        *(slice(first, first + largest) for first in range(0, pictures, largest)),
    ]


def _nan_is_largest(gap: float) -> float:
    return gap if gap == gap else float("inf")
