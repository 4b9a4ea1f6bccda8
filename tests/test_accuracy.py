"""The check of how much accuracy a network loses in a faster precision."""

import numpy as np
import pytest

from resnetkit.errors import UsageError
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, check_loss


def logits(best: list[int], classes: int = 10) -> np.ndarray:
    """Return logits whose largest values are at the classes `best`."""
    return np.eye(classes, dtype=np.float32)[best]


RIGHT = [i % 10 for i in range(200)]


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False)])
def test_labels_may_lose_half_a_point(wrong: int, passes: bool) -> None:
    check = AccuracyCheck.of(logits(RIGHT), np.array(RIGHT), max_top1_loss=0.5)
    verdict = check.judge(logits([(best + (place < wrong)) % 10 for place, best in enumerate(RIGHT)]))
    assert verdict.passes == passes
    assert verdict.top1_error_percent == verdict.top1_loss == wrong / 2
    assert verdict.agreement_percent == 100 - wrong / 2


def test_with_labels_it_is_the_error_that_counts_and_not_the_agreement() -> None:
    reference = [9] * 20 + RIGHT[20:]  # 18 wrong, and 2 of the class 9 right
    check = AccuracyCheck.of(logits(reference), np.array(RIGHT), max_top1_loss=0)
    verdict = check.judge(logits(RIGHT))
    assert (verdict.passes, verdict.top1_loss, verdict.agreement_percent) == (True, -9, 91)


@pytest.mark.parametrize(("differing", "passes"), [(1, True), (2, False)])
def test_without_labels_the_best_class_must_stay(differing: int, passes: bool) -> None:
    check = AccuracyCheck.of(logits(RIGHT), None, max_top1_loss=0.5)
    verdict = check.judge(logits([9] * differing + RIGHT[differing:]))
    assert (verdict.agreement_percent, verdict.passes) == (100 - differing / 2, passes)
    assert verdict.top1_error_percent is verdict.top1_loss is None


def test_labels_of_another_set_are_left_aside() -> None:
    other = np.array([(best + 3) % 10 for best in RIGHT])
    assert AccuracyCheck.of(logits(RIGHT), other, max_top1_loss=0.5).labels is None
    assert AccuracyCheck.of(logits(RIGHT), np.array(RIGHT), max_top1_loss=0.5).labels is not None


@pytest.mark.parametrize("loss", [-1, 101, float("nan")])
def test_a_loss_that_is_no_difference_of_percentages(loss: float) -> None:
    with pytest.raises(UsageError, match=r"`max_top1_loss` is .*; give percentage points from 0 to 100"):
        check_loss(loss)


def test_logits_that_are_no_numbers_agree_with_nothing() -> None:
    broken = logits(RIGHT)
    broken[:] = np.nan
    verdict = AccuracyCheck.of(logits([0] * 200), None, max_top1_loss=0.5).judge(broken)
    assert (verdict.agreement_percent, verdict.passes) == (0, False)
