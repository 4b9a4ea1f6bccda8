"""A learning rate for a recipe and its data, by a short run in which the rate rises (Smith 2017, arXiv:1506.01186)."""

import math
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from resnetkit.data.samples import Dataset
from resnetkit.errors import TrainingError, UsageError
from resnetkit.progress import Advance
from resnetkit.train.classification import prepare
from resnetkit.train.loop import Training, draw
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import Recipe
from resnetkit.train.run_folder import RunFolder

LOWEST, HIGHEST = 1e-5, 10.0
"""First and last learning rate."""
STEPS = 100
SMOOTHING = 0.9
"""Decay per step of the moving average of the losses."""
DIVERGED = 4.0
"""The search ends when the averaged loss is so many times the lowest one."""
MARGIN = 10.0
"""The suggestion is the rate of the lowest loss, divided by this: at the lowest loss, training is about to diverge."""
FALLS = 0.99
"""The loss falls if its lowest average is at most this share of the average of the first tenth of the steps."""


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    suggestion: float
    """A learning rate for `Recipe.lr`."""
    lowest_at: float
    """The learning rate at which the averaged loss was lowest."""
    steepest_at: float
    """The learning rate at which the averaged loss fell fastest, per factor of the rate."""
    curve: list[tuple[float, float]]
    """(learning rate, averaged loss in nats) of each step."""
    batch_size: int
    """Pictures in a step. A rate fits this number only."""


def find_learning_rate(recipe: Recipe, dataset: Dataset, *, advance: Advance | None = None) -> Found:
    """Train for up to STEPS steps while the rate rises from LOWEST to HIGHEST, and discard the weights.

    `advance` is called with 1 after each step. Batches are those of the recipe at its beginning. Raises the errors of a
    run, and TrainingError if the loss never falls.
    """
    if recipe.optimizer == "muon":
        raise UsageError("`optimizer` muon has two learning rates; a search is for `optimizer` sgd")
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        task = prepare(recipe, dataset)
        with Monitor(run, quiet=True) as monitor:
            training = Training(task, recipe, run, monitor, started=time.monotonic())
            here = training.position
            batches = draw(task, here, recipe.accumulate, progress=lambda: 0.0)
            task.train_mode()
            curve: list[tuple[float, float]] = []
            averaged = 0.0
            for step in range(STEPS):
                rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
                here.window_loss, here.window_images = 0.0, 0
                try:
                    training.descend(next(batches), rate)
                except TrainingError:  # the loss is no longer finite
                    break
                averaged = SMOOTHING * averaged + (1 - SMOOTHING) * training.trained()["loss"]
                curve.append((rate, averaged / (1 - SMOOTHING ** (step + 1))))
                if advance:
                    advance(1)
                if curve[-1][1] > DIVERGED * min(loss for _, loss in curve):
                    break
            batches.close()
    return judged(curve, batch_size=min(recipe.batch_size, len(dataset.train or ())) * recipe.accumulate)


def judged(curve: list[tuple[float, float]], *, batch_size: int) -> Found:
    """Return what a curve of (rate, averaged loss) suggests. Raises TrainingError if its loss never falls."""
    first = max(1, len(curve) // 10)
    began = sum(loss for _, loss in curve[:first]) / first
    settled = curve[first:]  # the first averages are of a few batches only
    if len(settled) < 2 or min(loss for _, loss in settled) > FALLS * began:
        raise TrainingError(
            "the loss falls at no learning rate, so none can be suggested; see the pictures as the network sees them: "
            "resnetkit data samples DATA DIR --augmented"
        )
    lowest_at, _ = min(settled, key=lambda point: point[1])
    before = [point for point in curve[first - 1 :] if point[0] <= lowest_at]
    slopes = [(later - loss) / math.log(next_rate / rate) for (rate, loss), (next_rate, later) in pairwise(before)]
    steepest_at = before[slopes.index(min(slopes))][0]
    return Found(_two_digits(lowest_at / MARGIN), lowest_at, steepest_at, curve, batch_size)


def _two_digits(rate: float) -> float:
    return float(f"{rate:.2g}")
