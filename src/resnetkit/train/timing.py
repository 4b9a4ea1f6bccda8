"""Measures the time of a step before a run with `minutes`, and fits the recipe into the time."""

import math
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import torch
from torch import nn

from resnetkit.display import count
from resnetkit.train.fitting import LONG_BATCH, describe, expected_error, fit, mean_cost
from resnetkit.train.loop import Training
from resnetkit.train.monitor import Monitor
from resnetkit.train.pace import Cost
from resnetkit.train.recipe import Recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.task import Task

ENOUGH_STEPS = 100
"""Steps that a run with `minutes` should have. If there is time for fewer, the batch size is reduced."""
FIRST_BATCH = 2
"""Pictures in the first measured step: few, so that it takes little time on a slow machine."""
ENOUGH_SECONDS = 0.2
"""Shortest validation that is accepted as a measurement."""
FEW_STEPS, FEW_EPOCHS = 50, 3.0
"""A run that has both fewer steps and fewer epochs than these is too short to learn."""


def fit_to_clock(
    task: Task[Any], recipe: Recipe, run: RunFolder, monitor: Monitor, *, started: float
) -> tuple[Recipe, Cost]:
    """Return the recipe with a batch size that suits its minutes, and the measured times. `task` stays unchanged.

    A line is printed about the number of steps and what follows from it.
    """
    monitor.doing("measuring the time of a step")
    with Untouched(task.net):
        trial = Training(task, recipe, run, monitor, started=started)

        def step_seconds(size: int) -> float:
            batch = task.example(size)
            began = monotonic()
            trial.descend([batch], 0.0)
            return monotonic() - began

        task.train_mode()
        step_seconds(FIRST_BATCH)  # the first one allocates
        picture_seconds = validation_seconds(task)
        task.train_mode()
        left = 60 * (recipe.minutes or 0) - trial.elapsed()
        left -= picture_seconds * task.validation_pictures
        smaller, seconds = fit_batch(recipe, step_seconds, left_seconds=left)
    if smaller != recipe:
        steps = max(int(left / seconds), 1)
        monitor.say(
            f"`minutes` {recipe.minutes:g} is short here for batches of {recipe.batch_size}: the run takes about "
            f"{count(steps, 'step')} on batches of {smaller.batch_size} at `lr` {smaller.lr:g}; "
            f"give `batch_size` {recipe.batch_size} to keep it"
        )
        return smaller, Cost(seconds, picture_seconds)
    work = left / seconds * recipe.batch_size * recipe.accumulate / LONG_BATCH
    fitted = fit(recipe, work)
    seconds *= fitted.batch_size / recipe.batch_size
    steps = max(int(left / (seconds * mean_cost(fitted))), 1)
    expected = expected_error(recipe, str(task.header.data["name"]), work)
    if line := describe(recipe, fitted, steps=steps, error=expected):
        monitor.say(line)
    return fitted, Cost(seconds, picture_seconds)


def batch_sizes(batch_size: int, least: int) -> list[int]:
    """Return `batch_size`, its half, its quarter and so on down to `least`, the smallest first."""
    sizes = [batch_size]
    while sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]


def fit_batch(recipe: Recipe, step_seconds: Callable[[int], float], *, left_seconds: float) -> tuple[Recipe, float]:
    """Return the recipe with the largest batch size that allows ENOUGH_STEPS in `left_seconds`, and its step's seconds.

    `step_seconds` returns the measured seconds of a step on a given number of pictures. It is called with larger and
    larger numbers, until a step takes too long, and twice with the last one if there is much time. The learning rates
    change in proportion to the batch size (Goyal et al. 2017, arXiv:1706.02677, Sec. 2.1).
    """
    least = min(recipe.least_batch_size or recipe.batch_size, recipe.batch_size)
    size, chosen, seconds = recipe.batch_size, 0, 0.0
    for size in batch_sizes(recipe.batch_size, min(least, FIRST_BATCH)):
        seconds = step_seconds(size) * recipe.accumulate
        if seconds * ENOUGH_STEPS > left_seconds:
            break
        chosen = size
    if chosen == recipe.batch_size and 2 * ENOUGH_STEPS * seconds <= left_seconds:
        # The first step on so many pictures allocates memory; if there is time, a second one tells more.
        seconds = min(seconds, step_seconds(chosen) * recipe.accumulate)
    chosen = max(chosen, min(batch_sizes(recipe.batch_size, least)))
    return with_batch(recipe, chosen), seconds * chosen / size


def with_batch(recipe: Recipe, batch_size: int) -> Recipe:
    """Return the recipe with another batch size, and learning rates in proportion to it."""
    if batch_size == recipe.batch_size:
        return recipe
    share = batch_size / recipe.batch_size
    return replace(
        recipe,
        batch_size=batch_size,
        least_batch_size=None,
        lr=share * recipe.lr,
        muon_lr=share * recipe.muon_lr,
        warmup_lr=share * recipe.warmup_lr,
    )


def validation_seconds(task: Task[Any]) -> float:
    """Return the measured seconds of the validation of one picture.

    Batches grow up to the validation's batch, or until one takes ENOUGH_SECONDS. A CIFAR picture takes several times as
    long in a batch of two as in a batch of a hundred.
    """
    most = task.validated_at_once
    size = min(FIRST_BATCH, most)

    def seconds(count: int) -> float:
        began = monotonic()
        task.validate_example(count)
        return monotonic() - began

    seconds(size)  # the first one allocates
    while (took := seconds(size)) < ENOUGH_SECONDS and size < most:
        size = min(4 * size, most)
    return took / size


class Untouched:
    """A context that restores the network's weights and statistics and torch's random state at its end."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __enter__(self) -> None:
        self._weights = {name: tensor.clone() for name, tensor in self._net.state_dict().items()}
        self._random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def __exit__(self, *_: object) -> None:
        self._net.load_state_dict(self._weights)
        self._net.zero_grad(set_to_none=True)
        cpu, cuda = self._random
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def too_short(recipe: Recipe, steps: int, epochs: float) -> str | None:
    """Return a warning if a run of `steps` steps was too short to learn, else None."""
    if steps >= FEW_STEPS or epochs >= FEW_EPOCHS:
        return None
    if recipe.minutes:
        minutes = math.ceil(recipe.minutes * ENOUGH_STEPS / max(steps, 1))
        advice = f"give `minutes` {minutes} or more, or a smaller `model` or `size`"
    else:
        advice = "give more `epochs`, or `minutes`"
    took = f"{count(steps, 'step')}, {epochs:.2f} epochs"
    return f"too short to learn much: {took} (at least {FEW_STEPS} steps or {FEW_EPOCHS:g} epochs are needed); {advice}"
