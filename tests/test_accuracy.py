"""The check of how much accuracy a network loses in a faster precision."""

import numpy as np
import pytest

from resnetkit.errors import UsageError
from resnetkit.infer.backends.backend import softmax
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, check_loss, unseen_loss


def logits(best: list[int], classes: int = 10) -> np.ndarray:
    """Return logits whose largest values are at the classes `best`."""
    return np.eye(classes, dtype=np.float32)[best]


RIGHT = [i % 10 for i in range(200)]


@pytest.fixture(scope="module")
def population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the logits of 20,000 pictures, labels drawn with their probabilities, and noise, (n, 10)."""
    drawn = np.random.default_rng(0)
    reference = (3 * drawn.standard_normal((20_000, 10))).astype(np.float32)
    cumulated = softmax(reference).cumsum(axis=1)
    labels = (drawn.random((20_000, 1)) > cumulated).sum(axis=1).clip(max=9)
    return reference, labels, drawn.standard_normal((20_000, 10)).astype(np.float32)


def error(found: np.ndarray, labels: np.ndarray) -> float:
    return 100 * (found.argmax(1) != labels).mean()


@pytest.mark.parametrize("images", [50, 100, 300])
@pytest.mark.parametrize("noise", [0.2, 0.5, 1.0])
def test_a_few_pictures_bound_the_loss_on_the_others(
    population: tuple[np.ndarray, np.ndarray, np.ndarray], images: int, noise: float
) -> None:
    reference, labels, drawn = population
    logits = reference + noise * drawn
    everywhere = np.arange(len(labels))
    kept = softmax(reference)[everywhere, logits.argmax(1)].mean()
    loss = 100 * (softmax(reference).max(axis=1).mean() - kept)  # 0.4, 2.1 and 7.3 points
    assert error(logits, labels) - error(reference, labels) == pytest.approx(loss, abs=0.3)
    rows = np.random.default_rng(1).integers(0, len(labels), (200, images))
    verdicts = [AccuracyCheck(reference[row], None, 100).judge(logits[row]) for row in rows]
    assert abs(np.mean([verdict.expected_loss for verdict in verdicts]) - loss) <= 0.1 + 0.15 * loss
    assert np.mean([verdict.highest_loss >= loss for verdict in verdicts]) >= 0.75
    assert np.mean([verdict.highest_loss for verdict in verdicts]) <= loss + (0.2 + 0.7 * loss) * (100 / images) ** 0.5
    counted = np.std([error(logits[row], labels[row]) - error(reference[row], labels[row]) for row in rows])
    assert np.std([verdict.expected_loss for verdict in verdicts]) <= counted / 2


def test_fewer_pictures_show_less(population: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """The same noise passes with a thousand pictures, and not with twenty."""
    reference, _, drawn = population
    verdicts = [AccuracyCheck(reference[:n], None, 0.5).judge((reference + 0.15 * drawn)[:n]) for n in (1, 20, 1000)]
    assert [verdict.passes for verdict in verdicts] == [False, False, True]
    assert [verdict.images for verdict in verdicts] == [1, 20, 1000]
    assert verdicts[0].highest_loss == 100


def test_the_same_logits_pass_without_any_loss_allowed() -> None:
    verdict = AccuracyCheck.of(logits(RIGHT), np.array(RIGHT), max_top1_loss=0).judge(logits(RIGHT))
    assert (verdict.expected_loss, verdict.highest_loss, verdict.top1_loss, verdict.passes) == (0, 0, 0, True)


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (2, True), (6, False)])
def test_counted_errors_may_not_exceed_chance(wrong: int, passes: bool) -> None:
    """With labels that contradict the probabilities, counting decides: here the old best class is certainly right."""
    near = logits(RIGHT) * np.float32(1e-4)  # a change of the best class costs no probability
    check = AccuracyCheck.of(near, np.array(RIGHT), max_top1_loss=0.5)
    verdict = check.judge(changed(near, wrong))
    assert verdict.expected_loss <= 0.01
    assert verdict.passes == passes
    assert verdict.top1_error_percent == verdict.top1_loss == wrong / 2
    assert verdict.agreement_percent == 100 - wrong / 2


def test_many_labels_count_more_than_probabilities() -> None:
    """No label is lost here, but the probabilities expect a loss, as they are those of an overconfident network."""
    sure, labels = np.tile(logits(RIGHT), (20, 1)) * np.float32(20), np.array(20 * RIGHT)
    sure[::20] = np.roll(sure[::20], 1, axis=1)  # wrong, and with the new logits wrong in another way
    new = sure.copy()
    new[::20] = np.roll(new[::20], 1, axis=1)
    alone = AccuracyCheck(sure, None, 0.5).judge(new)
    counted = AccuracyCheck.of(sure, labels, max_top1_loss=0.5).judge(new)
    assert (alone.passes, counted.passes, counted.top1_loss) == (False, True, 0)
    assert alone.expected_loss > 1
    assert counted.highest_loss == pytest.approx(100 * 1.645**2 / 4000)
    few = AccuracyCheck.of(sure[:200], labels[:200], max_top1_loss=0.5).judge(new[:200])
    assert (few.passes, few.top1_loss) == (False, 0)


def changed(values: np.ndarray, count: int) -> np.ndarray:
    """Return the logits with another best class in the first `count` rows."""
    return np.concatenate([np.roll(values[:count], 1, axis=1), values[count:]])


def test_errors_that_are_mended_are_no_loss() -> None:
    reference = [9] * 20 + RIGHT[20:]  # 18 wrong, and 2 of the class 9 right
    check = AccuracyCheck.of(logits(reference), np.array(RIGHT), max_top1_loss=5)
    verdict = check.judge(logits(RIGHT))
    assert (verdict.passes, verdict.top1_loss, verdict.agreement_percent) == (True, -9, 91)


def test_without_labels_nothing_is_counted() -> None:
    verdict = AccuracyCheck.of(logits(RIGHT), None, max_top1_loss=0.5).judge(changed(logits(RIGHT), 1))
    assert (verdict.agreement_percent, verdict.passes) == (99.5, True)
    assert verdict.top1_error_percent is verdict.top1_loss is None


@pytest.mark.parametrize(("images", "points"), [(16, 17.1), (100, 2.95), (600, 0.498), (10_000, 0.03)])
def test_what_counting_cannot_exclude(images: int, points: float) -> None:
    assert unseen_loss(images) == pytest.approx(points, rel=0.01)


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


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_networks_with_few_classes_can_be_judged(classes: int) -> None:
    same = np.zeros((30, classes), np.float32)
    assert AccuracyCheck(same, None, 0.5).judge(same).highest_loss == 0
