"""Estimate how much accuracy a network loses in a faster precision, on pictures that did not calibrate it.

Counted errors say little: among 100 pictures, a few change their best class by chance, and even with no new error a
loss of three points is possible. So the loss on pictures not seen is estimated from the log-probabilities in both
precisions. They tell how near each picture is to a change of its best class, and need no labels.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError
from resnetkit.infer.backends.backend import most_probable, softmax

LEAST_OVER_CHANCE = 5.0
"""Percentage points by which float32's accuracy must exceed chance; otherwise the labels belong to other classes."""
RIVALS = 5
"""The most probable classes of a picture, which may be the best class after a change."""
LEAST_NEIGHBOURS, MOST_NEIGHBOURS = 4, 32
"""Fewest and most pictures on each side, in the order of the margins, whose changes a picture is tried with."""
CONFIDENCE = 0.95
QUANTILE = 1.645
"""Of the standard normal distribution, for one-sided bounds with CONFIDENCE."""


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
    expected_loss: float
    """The loss of top-1 accuracy to expect on other pictures, in percentage points."""
    highest_loss: float
    """Upper bound of this loss, with CONFIDENCE, in percentage points."""
    passes: bool
    """Whether the loss of accuracy is allowed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Such as `top-1 error 17.60 % (+0.40), the same best class as float32 on 98.8 %, ...`."""
        text = (
            f"the same best class as float32 on {self.agreement_percent:.4g} %, expected loss of accuracy on other "
            f"pictures {self.expected_loss:.2f} points, at most {self.highest_loss:.2f}"
        )
        if self.top1_error_percent is None or self.top1_loss is None:
            return text
        loss = self.top1_loss + 0.0  # no "-0.00"
        return f"top-1 error {self.top1_error_percent:.2f} % ({loss:+.2f}), {text}"


def check_loss(max_top1_loss: float) -> None:
    """Raise UsageError if `max_top1_loss` is not from 0 to 100."""
    if not 0 <= max_top1_loss <= 100:
        raise UsageError(f"`max_top1_loss` is {max_top1_loss:g}; give percentage points from 0 to 100")


def unseen_loss(images: int) -> float:
    """Return the loss, in percentage points, that `images` pictures without a single new error can't exclude.

    With this loss, there would be no new error among them with the probability 1 - CONFIDENCE.
    """
    return 100 * (1 - (1 - CONFIDENCE) ** (1 / images))


def estimate_loss(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> tuple[float, float]:
    """Return the loss of top-1 accuracy to expect on other pictures, and its upper bound, in percentage points.

    `reference` are the logits in float32 and `logits` those of the same pictures in another precision, (n, classes).
    The change between them is taken for noise that might as well have met another picture. So each picture is tried
    with the changes of the pictures that have nearly the same margin between their two best classes: confident pictures
    change more. Where its best class changes, it loses the probability of the old class minus that of the new one, both
    in float32. Probabilities of an overconfident network overestimate the loss. Logits that are not finite change the
    best class. The bound is that of the normal distribution with CONFIDENCE; 100 for a single picture.
    """
    count = len(reference)
    if count == 1:
        return 0.0, 100.0
    probabilities = softmax(reference)
    ranked = most_probable(probabilities, RIVALS)
    before = np.take_along_axis(reference, ranked, axis=1).astype(np.float64)
    change = np.take_along_axis(logits, ranked, axis=1) - before
    change[~np.isfinite(logits).all(axis=1)] = [-np.inf, *[0.0] * (ranked.shape[1] - 1)]
    probabilities = np.take_along_axis(probabilities, ranked, axis=1)
    order = np.argsort(before[:, 0] - before[:, min(1, before.shape[1] - 1)], kind="stable")
    before, change, probabilities = before[order], change[order], probabilities[order]
    side = min(max(LEAST_NEIGHBOURS, count // 10), MOST_NEIGHBOURS, (count - 1) // 2)
    sources = np.arange(-side, side + 1) + np.clip(np.arange(count), side, count - 1 - side)[:, None]
    best = (before[:, None] + change[sources]).argmax(axis=2)
    losses = probabilities[:, :1] - np.take_along_axis(probabilities, best, axis=1)  # (n, trials)
    # A picture counts in two ways: by its own losses, and by those that its change brings about in others.
    counts = losses.mean(axis=1) + np.bincount(sources.ravel(), losses.ravel(), minlength=count) / sources.shape[1]
    expected = 100 * float(losses.mean())
    return expected, expected + 100 * QUANTILE * float(counts.std(ddof=1)) / count**0.5


@dataclass(frozen=True)
class AccuracyCheck:
    """A check that a network in another precision is nearly as accurate as in float32 on pictures like the given ones.

    It passes if the upper bound of the loss is at most `max_top1_loss`: see estimate_loss. Fewer pictures give a higher
    bound. With labels, it also passes if the bound of the counted loss is low enough, and only if the counted loss is
    not higher than chance explains.
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
        count = len(logits)
        expected, highest = estimate_loss(self.reference, logits)
        finite = np.isfinite(logits).all(axis=1)
        found, before = np.where(finite, logits.argmax(1), -1), self.reference.argmax(1)
        agreement = 100 * float((found == before).mean())
        if self.labels is None:
            return Verdict(count, agreement, None, None, expected, highest, highest <= self.max_top1_loss + 1e-9)
        lost = (found != self.labels).astype(int) - (before != self.labels)  # 1: right in float32 only, -1: wrong only
        error, loss, changed = 100 * float((found != self.labels).mean()), 100 * float(lost.mean()), np.abs(lost).sum()
        # Of very many pictures, the counted loss tells more: its bound is the score interval of a Poisson count.
        counted = loss + 100 * (QUANTILE**2 / 2 + QUANTILE * float(changed + QUANTILE**2 / 4) ** 0.5) / count
        if counted < highest:
            expected, highest = loss, counted
        by_chance = 100 * QUANTILE * float(changed) ** 0.5 / count
        passes = highest <= self.max_top1_loss + 1e-9 and loss <= self.max_top1_loss + by_chance + 1e-9
        return Verdict(count, agreement, error, loss, expected, highest, passes)
