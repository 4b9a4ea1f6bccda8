"""Two models on the same pictures: McNemar's test and the interval of the difference of their errors."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnetkit.errors import UsageError
from resnetkit.evaluation.intervals import Z
from resnetkit.evaluation.records import Records

LEVEL = 0.05
"""A p-value below it tells two models apart."""


@dataclass(frozen=True)
class Comparison:
    """Counts of the pictures on which two models differ."""

    pictures: int
    """Pictures that both models predicted."""
    only_first_wrong: int
    only_second_wrong: int

    @classmethod
    def of(cls, first: Records, second: Records) -> "Comparison":
        """Compare the records of two models on the same pictures; those that only one could read are left out.

        Raises UsageError if no picture is in both.
        """
        _, one, other = np.intersect1d(first.indices, second.indices, return_indices=True)
        if not len(one):
            raise UsageError("the two models have no picture in common")
        right, others = first.right[one], second.right[other]
        return cls(len(one), int((~right & others).sum()), int((right & ~others).sum()))

    @property
    def percent(self) -> float:
        """The error of the first model minus that of the second, in percentage points."""
        return round(100 * (self.only_first_wrong - self.only_second_wrong) / self.pictures, 4)

    @property
    def interval_percent(self) -> tuple[float, float]:
        """The 95 % interval of `percent`: the adjusted Wald interval for paired shares (Bonett and Price, 2012)."""
        total = self.pictures + 2
        first, second = (self.only_first_wrong + 1) / total, (self.only_second_wrong + 1) / total
        half = Z * math.sqrt(max(0.0, first + second - (first - second) ** 2) / total)
        low, high = max(-1.0, first - second - half), min(1.0, first - second + half)
        return round(100 * low, 4), round(100 * high, 4)

    @property
    def p(self) -> float:
        """The two-sided mid-p value of McNemar's test on the pictures that differ (Fagerland et al., 2013)."""
        differ, fewer = (
            self.only_first_wrong + self.only_second_wrong,
            min(self.only_first_wrong, self.only_second_wrong),
        )
        if not differ:
            return 1.0
        logs = [math.lgamma(differ + 1) - math.lgamma(k + 1) - math.lgamma(differ - k + 1) for k in range(fewer + 1)]
        terms = [math.exp(log - differ * math.log(2)) for log in logs]
        return min(1.0, 2 * sum(terms) - terms[-1])

    @property
    def verdict(self) -> str:
        """`better` or `worse`, of the first model, or `can't be told apart`."""
        if self.p >= LEVEL:
            return "can't be told apart"
        return "better" if self.percent < 0 else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain values for JSON."""
        return {
            "pictures": self.pictures,
            "only_first_wrong": self.only_first_wrong,
            "only_second_wrong": self.only_second_wrong,
            "percent": self.percent,
            "interval_percent": list(self.interval_percent),
            "p": round(self.p, 6),
            "verdict": self.verdict,
        }
