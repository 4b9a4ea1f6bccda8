"""Sums without rounding, compared with fractions."""

import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.evaluation.sums import ExactSum

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30)


@settings(deadline=None)
@given(FLOATS, FLOATS)
def test_a_sum_is_exact(some: list[float], others: list[float]) -> None:
    whole = ExactSum.of(some) + ExactSum.of(others)
    assert whole == ExactSum.of(sorted(some + others))
    assert Fraction(whole.units, 2**149) == sum(map(Fraction, some + others))
    assert whole.over(3) == float(sum(map(Fraction, some + others)) / 3)


def test_the_smallest_float_is_one_unit() -> None:
    (smallest,) = struct.unpack("<f", b"\x01\0\0\0")
    assert ExactSum.of([smallest]) == ExactSum(1)
    assert ExactSum.of([1e300]).over(1) == 1e300, "a sum of an earlier version may be any float"


@pytest.mark.parametrize("order", [1, -1])
def test_numbers_that_are_not_finite(order: int) -> None:
    assert ExactSum.of([1.0, math.inf, 2.0][::order]) == ExactSum(3 * 2**149, math.inf)
    assert ExactSum.of([math.inf, 1.0][::order]).over(2) == math.inf
    assert math.isnan((ExactSum.of([math.nan]) + ExactSum.of([math.inf])).over(1))
    assert ExactSum().over(1) == 0
