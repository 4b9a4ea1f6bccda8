"""Values of a recipe that suit the length of a run, and the error to expect of it: pure functions of the run's work.

The work of a run is counted in steps on 128 pictures of full size. A step on 64 pictures is half a step of work, and a
picture of 24 px instead of 32 is (24 / 32)² of one, because the time of a convolution is proportional to its pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from math import log
from typing import Any

from resnetkit.data.transforms.augment import SIZED
from resnetkit.display import count
from resnetkit.train.recipe import LENGTHS, RECIPES, Recipe

PICTURES = 128
"""Number of pictures in a step of work."""


@dataclass(frozen=True)
class Short:
    """A row of the table of short runs."""

    below: float
    """The row is for runs of less work than this, and of at least as much work as in the row before."""
    values: Mapping[str, Any]
    """Field of the recipe: value that suits such a run. The other fields keep the recipe's own values."""


SHORT_RUNS = (
    Short(600, {"batch_size": 64, "early_until": 0.8}),
    Short(3000, {"batch_size": 64}),
)
"""What suits short runs of the recipe `cifar10`, the shortest first. Longer runs have the recipe's own values.

The values were chosen by experiments on validation pictures: docs/log.md, "Short runs"."""

ERRORS = ((200.0, 33.0), (400.0, 22.0), (800.0, 17.0), (1600.0, 13.5), (3200.0, 11.0), (6400.0, 9.5), (8240.0, 8.3))
"""(work, validation error in percent) of resnet20 on CIFAR-10, from the same experiments."""

NEUTRAL = frozenset(
    {
        *("train_split", "seed", "strict", "precision", "channels_last", "compile", "recompute", "device", "threads"),
        *("workers", "evaluate_every", "log_every", "save_every", *LENGTHS),
    }
)
"""Fields that change the error for a given amount of work little or not at all."""


def suitable(work: float) -> Mapping[str, Any]:
    """Return the values that suit a run of `work`, by field; none for a long run."""
    return next((row.values for row in SHORT_RUNS if work < row.below), {})


def free_fields(recipe: Recipe) -> set[str]:
    """Return the fields of `by_length` that follow from the length, without those that somebody changed.

    A changed field has another value than in the recipe `cifar10`. With `iterations` the batch size is not free
    either, because the number of its steps is given.
    """
    own = RECIPES["cifar10"]
    free = {name for name in recipe.by_length if getattr(recipe, name) == getattr(own, name)}
    return free - {"batch_size"} if recipe.iterations else free


def fit(recipe: Recipe, work: float) -> Recipe:
    """Return the recipe with the values that suit `work` in its free fields.

    `by_length` of the result has only the fields with other values than in a long run.
    """
    free, own = free_fields(recipe), RECIPES["cifar10"]
    fitted = replace(recipe, **{name: value for name, value in suitable(work).items() if name in free})
    short = tuple(name for name in recipe.by_length if getattr(fitted, name) != getattr(own, name))
    return replace(fitted, by_length=short)


def work_of(recipe: Recipe, pictures: int) -> float | None:
    """Return the work of a run on `pictures` training pictures; None for a run with `minutes`, which is measured.

    Crops are counted as the recipe has them before it is fitted.
    """
    if recipe.minutes:
        return None
    size = recipe.batch_size * recipe.accumulate
    seen = recipe.iterations * size if recipe.iterations else (recipe.epochs or 0) * pictures
    return seen / PICTURES * mean_cost(recipe)


def mean_cost(recipe: Recipe) -> float:
    """Return the mean work for a picture over the whole run, over 0 to 1, with the small crops of the recipe."""
    early = min(recipe.early_until, recipe.center_crop_from) if recipe.crop in SIZED else 0.0
    return 1 - early * (1 - recipe.early_scale**2)


def expected_error(recipe: Recipe, data: str, work: float) -> float | None:
    """Return the validation error in percent of a run of `work` with `recipe`, before it is fitted.

    It is interpolated between the measured errors on a logarithmic scale. None if no such run was measured: on other
    data than cifar10, with another network or with other values than those of the recipe `cifar10`, or if the work is
    less or more than half or twice that of every measured run.
    """
    own = RECIPES["cifar10"]
    same = all(getattr(recipe, f.name) == getattr(own, f.name) for f in fields(Recipe) if f.name not in NEUTRAL)
    if data != "cifar10" or not same or recipe.iterations or not ERRORS[0][0] / 2 <= work <= 2 * ERRORS[-1][0]:
        return None
    work = min(max(work, ERRORS[0][0]), ERRORS[-1][0])
    for (less, worse), (more, better) in pairwise(ERRORS):
        if work <= more:
            return worse + (better - worse) * log(work / less) / log(more / less)
    return ERRORS[-1][1]


def describe(recipe: Recipe, fitted: Recipe, *, steps: int, error: float | None) -> str | None:
    """Return a line about a run of about `steps` steps: what was fitted, and the error to expect; None if neither.

    `recipe` is the recipe before it was fitted.
    """
    names = [name for name in recipe.by_length if getattr(fitted, name) != getattr(recipe, name)]
    if not names and error is None:
        return None
    steps_of = f"about {count(steps, 'step')} of {count(fitted.batch_size * fitted.accumulate, 'picture')}"
    values = [f"`{name}` {getattr(fitted, name):g}" for name in names if name != "batch_size"]
    about = ", ".join([steps_of, *values, *(["as suits so short a run"] if names else [])])
    return about if error is None else f"{about}; expect a validation error of about {error:.0f} %"
