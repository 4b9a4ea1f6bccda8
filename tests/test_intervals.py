"""Intervals of errors, and what a number of pictures can show."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from resnetkit.errors import UsageError
from resnetkit.evaluation.intervals import class_shares, error_interval, smallest_difference, weighted_error


@pytest.mark.parametrize(("wrong", "total"), [(0, 1), (0, 40), (1, 40), (9, 300), (40, 40), (39, 40), (5, 50_000)])
def test_few_mistakes_have_the_exact_interval(wrong: int, total: int) -> None:
    oracle = binomtest(wrong, total).proportion_ci(0.95, method="exact")
    assert error_interval(wrong, total) == pytest.approx((oracle.low, oracle.high), abs=1e-6)


@pytest.mark.parametrize(("wrong", "total"), [(10, 30), (100, 153), (850, 10_000), (12_000, 50_000)])
def test_more_mistakes_have_the_quantiles_of_a_bootstrap(wrong: int, total: int) -> None:
    low, high = binom(total, wrong / total).ppf([0.025, 0.975]) / total
    assert error_interval(wrong, total) == pytest.approx((low, high))
    resampled = np.random.default_rng(0).choice([1.0] * wrong + [0.0] * (total - wrong), (2000, min(total, 500)))
    if total <= 500:
        assert error_interval(wrong, total) == pytest.approx(
            tuple(np.quantile(resampled.mean(axis=1), (0.025, 0.975))), abs=0.05
        )


def test_nothing_measured_is_nothing_known() -> None:
    assert error_interval(0, 0) == (0, 1)
    assert smallest_difference(0, 0) == 1


def test_a_difference_of_the_smallest_size_is_found_in_four_of_five_sets() -> None:
    """Models of 10 % and of 10 % plus the difference, with independent mistakes, on 1,000 sets of 2,000 pictures."""
    from resnetkit.evaluation.compare import Comparison

    total, share = 2000, 0.1
    worse = share + smallest_difference(int(share * total), total)
    drawn = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        first, second = drawn.random(total) < share, drawn.random(total) < worse
        found += Comparison(total, int((first & ~second).sum()), int((second & ~first).sum())).verdict == "better"
    assert 720 < found < 850


def test_a_few_pictures_show_little() -> None:
    assert smallest_difference(0, 4) == 1
    assert smallest_difference(0, 40) == pytest.approx(5 / 40, abs=0.03)
    assert smallest_difference(7, 153) == pytest.approx(0.07, abs=0.005)


CONFUSION = np.array([[90, 10, 0], [0, 50, 50], [0, 0, 0]])
NAMES = ("cat", "dog", "fox")


def test_an_error_is_weighted_by_other_shares() -> None:
    even, (low, high) = weighted_error(CONFUSION, np.array([0.5, 0.5, 0.0]))
    assert even == pytest.approx(0.3)
    assert low < 0.3 < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.09 + 0.25) / 2 / 10, rel=0.15), "of two shares, halved"
    rare, _ = weighted_error(CONFUSION, np.array([0.99, 0.01, 0.0]))
    assert rare == pytest.approx(0.99 * 0.1 + 0.01 * 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cow": 1.0}, "names cow; the classes are cat, dog, fox"),
        ({"cat": 0.5, "fox": 0.5}, "names fox, of which there is no picture"),
        ({"cat": 0.5, "dog": 0.2}, "sums to 0.7; the shares of all classes must sum to 1"),
        ({"cat": -1, "dog": 2}, "of cat is -1; it must be from 0 to 1"),
    ],
)
def test_shares_that_say_nothing_are_refused(given: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        class_shares(given, NAMES, CONFUSION.sum(axis=1))


def test_shares_may_be_percentages() -> None:
    assert class_shares({"cat": 70, "dog": 30}, NAMES, CONFUSION.sum(axis=1)).tolist() == pytest.approx([0.7, 0.3, 0])
