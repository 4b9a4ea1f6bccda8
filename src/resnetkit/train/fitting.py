"""The batch size that suits the length of a run, and the error to expect: pure functions of the run's work.

The work of a run is counted in steps on 128 pictures of full size. A step on 64 pictures is half a step of work, and a
picture of 24 px instead of 32 is (24 / 32)² of one, because the time of a convolution is proportional to its pixels.
"""

from dataclasses import fields, replace
from itertools import pairwise
from math import log

from resnetkit.display import count
from resnetkit.train.recipe import LENGTHS, RECIPES, Recipe

LONG_BATCH = 128
"""Batch size of long runs, and number of pictures in a step of work."""
SHORT_BATCH = 64
"""Batch size of short runs: more steps for the same work.

The learning rates stay the same, and the other values of the recipe suit short runs, too. Experiments on validation
pictures showed both: docs/log.md, "Short runs"."""
SHORT_BELOW = 1000
"""A run of less work than this is short."""
ERRORS = ((100.0, 45.7), (200.0, 30.5), (400.0, 22.0), (800.0, 16.0), (1700.0, 11.7), (2750.0, 9.3), (8240.0, 8.0))
"""(work, validation error in percent) of resnet20 on CIFAR-10 by the recipe `cifar10`: docs/log.md, "Short runs"."""

NEUTRAL = frozenset(
    {
        *("train_split", "seed", "strict", "precision", "channels_last", "compile", "recompute", "device", "threads"),
        *("workers", "evaluate_every", "log_every", "save_every", *LENGTHS),
    }
)
"""Fields that change the error for a given amount of work little or not at all."""


def suitable_batch(work: float) -> int:
    """Return the batch size that suits a run of `work`."""
    return SHORT_BATCH if work < SHORT_BELOW else LONG_BATCH


def fit(recipe: Recipe, work: float) -> Recipe:
    """Return the recipe with the batch size that suits `work`, if the recipe has `batch_by_length`.

    A batch size other than LONG_BATCH stays: somebody chose it, or the recipe was fitted before. With `iterations` it
    stays too, because the number of its steps is given.
    """
    free = recipe.batch_by_length and recipe.batch_size == LONG_BATCH and recipe.iterations is None
    return replace(recipe, batch_size=suitable_batch(work)) if free else recipe


def work_of(recipe: Recipe, pictures: int) -> float | None:
    """Return the work of a run on `pictures` training pictures; None for a run with `minutes`, which is measured."""
    if recipe.minutes:
        return None
    if recipe.iterations:
        seen = float(recipe.iterations * recipe.batch_size * recipe.accumulate)
    else:
        seen = (recipe.epochs or 0) * pictures
    return seen / LONG_BATCH * mean_cost(recipe)


def mean_cost(recipe: Recipe) -> float:
    """Return the work for a picture, over 0 to 1, as a mean over the whole run with its small crops."""
    from resnetkit.data.transforms.augment import SIZED  # imports numpy, which a list of recipes does not need

    early = min(recipe.early_until, recipe.center_crop_from) if recipe.crop in SIZED else 0.0
    return 1 - early * (1 - recipe.early_scale**2)


def expected_error(recipe: Recipe, data: str, work: float) -> float | None:
    """Return the validation error in percent to expect of a run of `work` with `recipe`, before it is fitted.

    It is interpolated between the measured errors on a logarithmic scale. None if no such run was measured: on other
    data than cifar10, with another network or other values than those of the recipe `cifar10`, or if the work is less
    than half of the shortest measured run or more than twice the longest.
    """
    own, (least, _), (most, best) = RECIPES["cifar10"], ERRORS[0], ERRORS[-1]
    same = all(getattr(recipe, f.name) == getattr(own, f.name) for f in fields(Recipe) if f.name not in NEUTRAL)
    if data != "cifar10" or not same or recipe.iterations or not least / 2 <= work <= 2 * most:
        return None
    for (less, worse), (more, better) in pairwise(ERRORS):
        if work <= more:
            return worse + (better - worse) * log(work / less) / log(more / less)
    return best


def describe(recipe: Recipe, fitted: Recipe, *, steps: int, error: float | None) -> str | None:
    """Return a line about a run of about `steps` steps: its batch size, and the error to expect.

    `recipe` is the recipe before it was fitted. None if nothing was fitted and no error is known.
    """
    if fitted.batch_size == recipe.batch_size and error is None:
        return None
    smaller = ", which suits so short a run" if fitted.batch_size < recipe.batch_size else ""
    expected = f"; expect a validation error of about {error:.0f} %" if error is not None else ""
    pictures = count(fitted.batch_size * fitted.accumulate, "picture")
    return f"about {count(steps, 'step')} of {pictures}{smaller}{expected}"
