"""Check how much accuracy a network loses in a faster precision, on pictures that did not calibrate it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError

LEAST_OVER_CHANCE = 5.0
"""Percentage points by which float32's accuracy must exceed chance; otherwise the labels belong to other classes."""


@dataclass(frozen=True)
class Verdict:
    """The accuracy of a network in some precision, compared with its accuracy in float32."""

    images: int
    """Number of pictures that were predicted."""
    agreement_percent: float
    """Share of the pictures with the same best class as in float32, 0 to 100."""
    top1_error_percent: float | None
    """Top-1 error, 0 to 100; None without labels."""
    top1_loss: float | None
    """Top-1 error minus the top-1 error in float32, in percentage points; None without labels."""
    passes: bool
    """Whether the loss of accuracy is allowed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Such as `top-1 error 17.60 % (+0.40), the same best class as float32 on 98.8 %`."""
        agreement = f"the same best class as float32 on {self.agreement_percent:.4g} %"
        if self.top1_error_percent is None or self.top1_loss is None:
            return agreement
        loss = self.top1_loss + 0.0  # no "-0.00"
        return f"top-1 error {self.top1_error_percent:.2f} % ({loss:+.2f}), {agreement}"


def check_loss(max_top1_loss: float) -> None:
    """Raise UsageError if `max_top1_loss` is not from 0 to 100."""
    if not 0 <= max_top1_loss <= 100:
        raise UsageError(f"`max_top1_loss` is {max_top1_loss:g}; give percentage points from 0 to 100")


@dataclass(frozen=True)
class AccuracyCheck:
    """A check that a network in another precision is nearly as accurate as in float32, on the same pictures.

    With labels, its top-1 error may be up to `max_top1_loss` percentage points higher than in float32. Without labels,
    its best class may differ from float32's on up to `max_top1_loss` percent of the pictures. The unknown error is then
    also at most that much higher.
    """

    reference: NDArray[np.float32]
    """The logits in float32 (n, classes)."""
    labels: NDArray[np.int64] | None
    """The class of each picture as its index in the logits, (n,); None if the classes are not known."""
    max_top1_loss: float
    """Percentage points, 0 to 100."""

    @classmethod
    def of(
        cls, reference: NDArray[np.float32], labels: NDArray[np.int64] | None, *, max_top1_loss: float
    ) -> "AccuracyCheck":
        """Return a check by `labels`, or without them if float32 is hardly better than chance (LEAST_OVER_CHANCE)."""
        known = labels is not None and 100 * (reference.argmax(1) == labels).mean() >= (
            100 / reference.shape[1] + LEAST_OVER_CHANCE
        )
        return cls(reference, labels if known else None, max_top1_loss)

    def judge(self, logits: NDArray[np.float32]) -> Verdict:
        """Compare logits (n, classes) of the same pictures. A picture with a NaN or infinity counts as wrong."""
        finite = np.isfinite(logits).all(axis=1)
        found, expected = np.where(finite, logits.argmax(1), -1), self.reference.argmax(1)
        differing = int((found != expected).sum())
        agreement = 100 * (1 - differing / len(found))
        if self.labels is None:
            # Compare numbers of pictures, because percentages are rounded: 1 of 200 is 0.5 %.
            passes = differing <= self.max_top1_loss / 100 * len(found) + 1e-9
            return Verdict(len(found), agreement, None, None, bool(passes))
        wrong, before = (int((best != self.labels).sum()) for best in (found, expected))
        passes = wrong - before <= self.max_top1_loss / 100 * len(found) + 1e-9
        return Verdict(
            len(found), agreement, 100 * wrong / len(found), 100 * (wrong - before) / len(found), bool(passes)
        )
