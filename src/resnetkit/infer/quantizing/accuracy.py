"""What a faster way to compute a network may cost: judged by predictions on pictures that nothing was fitted to."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError

LEAST_OVER_CHANCE = 5.0
"""Points by which float32 must be better than guessing; labels that it knows less of are not the network's."""


@dataclass(frozen=True)
class Verdict:
    """How predictions compare with float32's."""

    images: int
    agreement_percent: float
    """Pictures with the same best class as in float32."""
    top1_error_percent: float | None
    """None without labels."""
    top1_loss: float | None
    """Points of top-1 error more than float32 has; negative where it is better. None without labels."""
    passes: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Such as `top-1 error 17.60 % (+0.40), the same best class as float32 on 98.8 %`."""
        agreement = f"the same best class as float32 on {self.agreement_percent:.4g} %"
        if self.top1_error_percent is None or self.top1_loss is None:
            return agreement
        loss = self.top1_loss + 0.0  # no "-0.00"
        return f"top-1 error {self.top1_error_percent:.2f} % ({loss:+.2f}), {agreement}"


def check_loss(max_top1_loss: float) -> None:
    """Raise UsageError for what is no difference of percentages."""
    if not 0 <= max_top1_loss <= 100:
        raise UsageError(f"--max-top1-loss is {max_top1_loss:g}; it is a difference of percentages, from 0 to 100")


@dataclass(frozen=True)
class AccuracyCheck:
    """Predictions of float32 on some pictures, and how far others may be from them.

    With labels, the top-1 error may be `max_top1_loss` points over float32's. Without, the best class must be float32's
    on all but `max_top1_loss` percent of the pictures: then the error, whatever it is, is no more than that over
    float32's either.
    """

    reference: NDArray[np.float32]
    """float32's logits (n, classes)."""
    labels: NDArray[np.int64] | None
    max_top1_loss: float

    @classmethod
    def of(
        cls, reference: NDArray[np.float32], labels: NDArray[np.int64] | None, *, max_top1_loss: float
    ) -> "AccuracyCheck":
        """A guard by `labels`, unless float32 gets no more of them right than by chance: they are another set's."""
        known = labels is not None and 100 * (reference.argmax(1) == labels).mean() >= (
            100 / reference.shape[1] + LEAST_OVER_CHANCE
        )
        return cls(reference, labels if known else None, max_top1_loss)

    def judge(self, logits: NDArray[np.float32]) -> Verdict:
        """Compare logits (n, classes) of the same pictures. Logits that are no numbers agree with nothing."""
        finite = np.isfinite(logits).all(axis=1)
        found, expected = np.where(finite, logits.argmax(1), -1), self.reference.argmax(1)
        differing = int((found != expected).sum())
        agreement = 100 * (1 - differing / len(found))
        if self.labels is None:
            # Counted, and not compared as rounded percentages: 1 of 200 is 0.5 %.
            passes = differing <= self.max_top1_loss / 100 * len(found) + 1e-9
            return Verdict(len(found), agreement, None, None, bool(passes))
        wrong, before = (int((best != self.labels).sum()) for best in (found, expected))
        passes = wrong - before <= self.max_top1_loss / 100 * len(found) + 1e-9
        return Verdict(
            len(found), agreement, 100 * wrong / len(found), 100 * (wrong - before) / len(found), bool(passes)
        )
