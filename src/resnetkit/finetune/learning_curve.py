"""Would more pictures help: errors of heads on shares of the pictures, and the power law through them. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.finetune.heads import PENALTIES
from resnetkit.finetune.out_of_sample import FOLDS, LEAST, out_of_sample
from resnetkit.progress import Advance, ignore

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the pictures that heads are fitted to."""
DRAWS = 2
"""How often folds and shares are drawn."""
TIMES = (1, 2, 4)
"""The multiples of the pictures at which the error is extrapolated; 1 is all pictures, without a held-out fold."""
EXPONENTS = np.linspace(0.1, 1.5, 29)
"""Exponents of the power law that are tried; learning curves of networks have 0.1 to 1 (arXiv:1712.00409)."""
RESAMPLES = 400
CONFIDENCE = 0.95
LEAST_SHARE = 2
"""Fewest pictures of each class, on average, in a share that is measured."""


@dataclass(frozen=True)
class Point:
    """An error with a number of pictures to learn from."""

    pictures: int
    top1_error_percent: float
    interval_percent: tuple[float, float]
    """95 % interval."""


@dataclass(frozen=True)
class ClassCurve:
    """What more pictures do for one class."""

    pictures: int
    """Pictures of the class that there are."""
    now: Point
    """The error on its pictures with all pictures that there are."""
    doubled: Point
    """The same with twice as many pictures of every class."""


@dataclass(frozen=True)
class LearningCurve:
    """The error of heads, by the number of pictures that they are fitted to."""

    pictures: int
    measured: tuple[Point, ...]
    extrapolated: tuple[Point, ...]
    """At TIMES the number of pictures."""
    gain_percent: tuple[float, float, float]
    """Points of error that twice the pictures save: the estimate, and the ends of its 95 % interval."""
    law: tuple[float, float, float]
    """a, b and c of error = a · pictures^-b + c, as shares from 0 to 1."""
    per_class: dict[str, ClassCurve]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return {
            "pictures": self.pictures,
            "measured": [_document(point) for point in self.measured],
            "extrapolated": [_document(point) for point in self.extrapolated],
            "doubling_saves_percent": self.gain_percent[0],
            "doubling_saves_interval_percent": list(self.gain_percent[1:]),
            "law": dict(zip("abc", self.law, strict=True)),
            "per_class": {
                name: {
                    "pictures": curve.pictures,
                    "top1_error_percent": curve.now.top1_error_percent,
                    "doubled": _document(curve.doubled),
                }
                for name, curve in self.per_class.items()
            },
        }


def _document(point: Point) -> dict[str, Any]:
    return {
        "pictures": point.pictures,
        "top1_error_percent": point.top1_error_percent,
        "interval_percent": list(point.interval_percent),
    }


def learning_curve(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    classes: Sequence[str],
    shares: Sequence[float] = SHARES,
    draws: int = DRAWS,
    folds: int = FOLDS,
    seed: int = 0,
    advance: Advance = ignore,
) -> LearningCurve:
    """Measure the error of heads on shares of the pictures, out of sample, and extrapolate it by a power law.

    `features` are float32 (n, channels), `labels` int64 (n,), indices into `classes`. Every picture is predicted, in
    each of the `draws` and for each share, by a head that was not fitted to it. The intervals come from resampling the
    pictures, with all of their predictions. They contain what is known from these pictures and a curve of this form;
    other cameras, places or people are not in them. `advance` is called with 1 after each fold.

    Raises DataError if there are too few pictures for three shares or more.
    """
    totals = np.bincount(labels, minlength=len(classes))
    present = np.flatnonzero(totals)
    fewest = LEAST_SHARE * len(present) * folds / (folds - 1)
    shares = [share for share in shares if share * len(labels) >= fewest]
    if len(shares) < 3 or len(present) < 2:
        raise DataError(
            f"{len(labels)} pictures of {len(present)} classes are too few for a learning curve; it needs two classes, "
            f"and {round(4 * fewest / len(present))} pictures of each"
        )
    own = np.searchsorted(present, labels)
    wrong = np.zeros((len(labels), len(shares), draws), bool)
    sizes = np.zeros(len(shares))
    for draw in range(draws):
        for place, share in enumerate(shares):
            found = out_of_sample(
                features,
                own,
                classes=len(present),
                count=folds,
                share=share,
                seed=seed + draw,
                penalties=PENALTIES[::2],
                advance=advance,
            )
            wrong[:, place, draw] = found.probabilities.argmax(axis=1) != own
            sizes[place] += found.fitted_to / draws
    return _curve(wrong, sizes, labels, classes)


def _curve(
    wrong: NDArray[np.bool_], sizes: NDArray[np.float64], labels: NDArray[np.int64], classes: Sequence[str]
) -> LearningCurve:
    """Return the curve through errors, bool (n, shares, draws), of heads that were fitted to `sizes` pictures."""
    rng = np.random.default_rng(0)
    at = np.concatenate([sizes, len(labels) * np.array(TIMES, np.float64)])
    errors, resampled = _resampled(wrong, rng)
    weights = _weights(errors, len(labels))
    law = fit_power_law(sizes, errors[None], weights)
    laws = fit_power_law(sizes, resampled, weights)
    estimate, spread = _values(law, at)[0], _values(laws, at)
    first = len(sizes)
    measured = [
        _point(size, error, np.sort(resampled[:, place]))
        for place, (size, error) in enumerate(zip(sizes, errors, strict=True))
    ]
    extrapolated = [_point(at[place], estimate[place], spread[:, place]) for place in range(first, len(at))]
    gain = 100 * np.quantile(spread[:, first] - spread[:, first + 1], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    exponents = np.concatenate([law[:, 1], laws[:, 1]])
    totals = np.bincount(labels, minlength=len(classes))
    rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(totals)[:-1])
    per_class = {
        name: _class_curve(wrong[of], sizes, exponents, at[first : first + 2], rng)
        for name, of in zip(classes, rows, strict=True)
        if len(of) >= LEAST
    }
    saved = 100 * float(estimate[first] - estimate[first + 1])
    return LearningCurve(
        len(labels),
        tuple(measured),
        tuple(extrapolated),
        (saved, float(gain[0]), float(gain[1])),
        (float(law[0, 0]), float(law[0, 1]), float(law[0, 2])),
        per_class,
    )


def _class_curve(
    wrong: NDArray[np.bool_],
    sizes: NDArray[np.float64],
    exponents: NDArray[np.float64],
    at: NDArray[np.float64],
    rng: np.random.Generator,
) -> ClassCurve:
    """Return the curve of one class; its exponents are those of all classes, since it alone has few pictures."""
    errors, resampled = _resampled(wrong, rng)
    weights = _weights(errors, len(wrong))
    estimate = _values(fit_power_law(sizes, errors[None], weights, exponents[:1]), at)[0]
    spread = _values(fit_power_law(sizes, resampled, weights, exponents[1:]), at)
    points = [
        _point(len(wrong) * times, error, spread[:, place])
        for place, (times, error) in enumerate(zip(TIMES, estimate, strict=False))
    ]
    return ClassCurve(len(wrong), *points)


def _resampled(wrong: NDArray[np.bool_], rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the errors (shares,) of all pictures, and of resampled ones (RESAMPLES, shares).

    Pictures with the same outcomes are drawn together. One more right and one more wrong picture are among them, so
    that an error without a mistake is not taken for 0.
    """
    outcomes, counts = np.unique(wrong.mean(axis=2), axis=0, return_counts=True)
    errors = counts @ outcomes / counts.sum()
    outcomes = np.concatenate([outcomes, np.zeros((1, outcomes.shape[1])), np.ones((1, outcomes.shape[1]))])
    shares = np.append(counts, (0.5, 0.5)) / (counts.sum() + 1)
    drawn = rng.multinomial(int(counts.sum()), shares, RESAMPLES)
    return errors, drawn @ outcomes / counts.sum()


def _weights(errors: NDArray[np.float64], pictures: int) -> NDArray[np.float64]:
    """Return one over the variance of each error, float64 (shares,)."""
    likely = (errors * pictures + 0.5) / (pictures + 1)
    return pictures / (likely * (1 - likely))


def fit_power_law(
    sizes: NDArray[np.float64],
    errors: NDArray[np.float64],
    weights: NDArray[np.float64],
    exponents: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return a, b and c, float64 (m, 3), of the laws a · size^-b + c through errors (m, sizes), by weighted squares.

    a and c are at least 0, and b is one of EXPONENTS, or that of `exponents`, (m,), for each row.
    """
    best = np.zeros((len(errors), 3))
    least = np.full(len(errors), np.inf)
    total = weights.sum()
    for b in EXPONENTS if exponents is None else np.unique(exponents):
        x = sizes**-b
        mean_x, mean_y = weights @ x / total, errors @ weights / total
        a = (errors - mean_y[:, None]) @ (weights * (x - mean_x)) / (weights @ np.square(x - mean_x))
        a = np.maximum(a, 0.0)
        c = mean_y - a * mean_x
        through_zero = c < 0
        a[through_zero] = errors[through_zero] @ (weights * x) / (weights @ np.square(x))
        c[through_zero] = 0.0
        squares = np.square(a[:, None] * x + c[:, None] - errors) @ weights
        better = squares < least if exponents is None else exponents == b
        best[better] = np.stack([a, np.full(len(a), b), c], axis=1)[better]
        least[better] = squares[better]
    return best


def _values(laws: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the errors of laws (m, 3) at sizes (s,): float64 (m, s)."""
    a, b, c = (laws[:, place, None] for place in range(3))
    return np.minimum(a * sizes**-b + c, 1.0)


def _point(pictures: float, error: float, spread: NDArray[np.float64]) -> Point:
    low, high = np.quantile(spread, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Point(round(pictures), 100 * float(error), (100 * float(low), 100 * float(high)))
