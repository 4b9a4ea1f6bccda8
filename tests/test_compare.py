"""Two models on the same pictures."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from resnetkit.errors import UsageError
from resnetkit.evaluation.compare import Comparison
from resnetkit.evaluation.records import Records


def records(wrong: list[int], indices: range) -> Records:
    """Of pictures of class 0; those in `wrong` are predicted as class 1."""
    places = np.array(indices)
    best = np.isin(places, wrong).astype(np.int64)
    plain = np.zeros(len(places), np.float32)
    return Records(places, np.zeros(len(places), np.int64), best[:, None], plain[:, None], plain, plain)


def test_pictures_are_matched_and_counted() -> None:
    found = Comparison.of(records([0, 1, 2, 90], range(100)), records([2, 3, 99], range(10, 100)))
    assert found == Comparison(90, 1, 1)
    found = Comparison.of(records([0, 1, 2, 90], range(100)), records([2, 3, 99], range(100)))
    assert found == Comparison(100, 3, 2)
    assert found.percent == 1.0
    with pytest.raises(UsageError, match="no picture in common"):
        Comparison.of(records([], range(5)), records([], range(5, 9)))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (1, 5), (3, 3), (20, 41), (700, 800)])
def test_the_p_value_is_the_binomial_test_less_half_of_what_was_seen(first: int, second: int) -> None:
    total = first + second
    exact = binomtest(first, total).pvalue if total else 1.0
    seen = binom(total, 0.5).pmf(first) if total else 0.0
    assert Comparison(1000, first, second).p == pytest.approx(min(1, exact - seen) if first != second else 1)


def test_that_they_can_not_be_told_apart_is_an_answer() -> None:
    assert Comparison(153, 4, 7).verdict == "can't be told apart"
    assert Comparison(153, 0, 0).to_dict() == {
        "pictures": 153,
        "only_first_wrong": 0,
        "only_second_wrong": 0,
        "percent": 0.0,
        "interval_percent": [pytest.approx(-1.7882, abs=0.01), pytest.approx(1.7882, abs=0.01)],
        "p": 1.0,
        "verdict": "can't be told apart",
    }
    assert Comparison(153, 2, 14).verdict == "better"
    assert Comparison(153, 14, 2).verdict == "worse"


def test_the_interval_contains_the_true_difference() -> None:
    drawn, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        first, second, _ = drawn.multinomial(150, (0.03, 0.06, 0.91))
        low, high = Comparison(150, int(first), int(second)).interval_percent
        inside += low <= -3 <= high
    assert inside >= 930
