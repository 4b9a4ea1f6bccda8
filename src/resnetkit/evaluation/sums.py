"""Sums without rounding. They are the same in any order, so merged evaluations are equal to the bit."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

UNIT_BITS = 149  # the smallest float32 over 0 is 2^-149; every finite float32 is a whole multiple of it


@dataclass(frozen=True)
class ExactSum:
    """The exact sum of float32 numbers.

    A sum of floats is rounded at each addition, so its last bits depend on the order of the additions. Python's
    integers have any size and are never rounded.
    """

    units: int = 0
    """Sum of the finite numbers, in units of 2^-149."""
    not_finite: float = 0.0
    """Sum of the numbers that are infinite or NaN; 0 if there are none."""

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "ExactSum":
        """Return the sum of `numbers`, each a float32 or a sum of float32 numbers."""
        units, not_finite = 0, 0.0
        for number in numbers:
            if isfinite(number):
                numerator, denominator = number.as_integer_ratio()
                units += (numerator << UNIT_BITS) // denominator
            else:
                not_finite += number
        return cls(units, not_finite)

    def __add__(self, other: "ExactSum") -> "ExactSum":
        return ExactSum(self.units + other.units, self.not_finite + other.not_finite)

    def over(self, count: int) -> float:
        """Return the sum divided by `count` (1 or more), rounded once."""
        return self.not_finite or self.units / (count << UNIT_BITS)
