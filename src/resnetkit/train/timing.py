"""What computing takes here, measured before a run on the clock begins, and the batch that goes with it."""

import math
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import torch
from torch import nn

from resnetkit.display import count
from resnetkit.train.checkpoint import RunFolder
from resnetkit.train.loop import Training
from resnetkit.train.monitor import Monitor
from resnetkit.train.optim import Cost
from resnetkit.train.recipe import Recipe
from resnetkit.train.task import Task

ENOUGH_STEPS = 100
"""Steps that a run on the clock should have: for fewer, the batch is made smaller."""
FIRST_BATCH = 2
"""Pictures in the first step that is measured: so few that it takes little where computing is slow."""
ENOUGH_SECONDS = 0.2
"""From which a measured evaluation tells what one takes."""
FEW_STEPS, FEW_EPOCHS = 50, 3.0
"""A run of fewer steps that is also one of fewer epochs is too short to learn."""


def fit_to_clock(
    task: Task[Any], recipe: Recipe, run: RunFolder, monitor: Monitor, *, started: float
) -> tuple[Recipe, Cost]:
    """The recipe with a batch that its minutes are enough for, and what computing takes; nothing of `task` changes."""
    monitor.doing("measuring what a step takes")
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
        fitted, seconds = fit_batch(recipe, step_seconds, left_seconds=left)
    steps = max(int(left / seconds), 1)
    if fitted != recipe:
        monitor.say(
            f"`minutes` {recipe.minutes:g} is short here for batches of {recipe.batch_size}: about "
            f"{count(steps, 'step')} on batches of {fitted.batch_size} at `lr` {fitted.lr:g}; "
            "`batch_size` keeps the others"
        )
    return fitted, Cost(seconds, picture_seconds)


def batch_sizes(batch_size: int, least: int) -> list[int]:
    """`batch_size` and what halving it gives down to `least`, the smallest first."""
    sizes = [batch_size]
    while sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes[::-1]


def fit_batch(recipe: Recipe, step_seconds: Callable[[int], float], *, left_seconds: float) -> tuple[Recipe, float]:
    """The recipe with the largest of its batches that allows ENOUGH_STEPS, and what a step of it takes.

    `step_seconds` measures a step on so many pictures. It is asked for larger and larger ones, until one takes too
    long. The rates change as the batch does (Goyal et al. 2017, arXiv:1706.02677, Sec. 2.1).
    """
    least = min(recipe.least_batch_size or recipe.batch_size, recipe.batch_size)
    size, chosen, seconds = recipe.batch_size, 0, 0.0
    for size in batch_sizes(recipe.batch_size, min(least, FIRST_BATCH)):
        seconds = step_seconds(size) * recipe.accumulate
        if seconds * ENOUGH_STEPS > left_seconds:
            break
        chosen = size
    chosen = max(chosen, min(batch_sizes(recipe.batch_size, least)))
    return with_batch(recipe, chosen), seconds * chosen / size


def with_batch(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe with another batch size, and rates in proportion to it."""
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
    """What the validation of a picture takes, in the batches that it has, or in the largest that takes ENOUGH_SECONDS.

    A picture of CIFAR's takes several times as long in a batch of two as in one of a hundred.
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
    """Brings the weights, the statistics and the random numbers back to what they were when the block ends."""

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
    """What to say of a run of `steps` if it was too short to learn."""
    if steps >= FEW_STEPS or epochs >= FEW_EPOCHS:
        return None
    if recipe.minutes:
        minutes = math.ceil(recipe.minutes * ENOUGH_STEPS / max(steps, 1))
        mend = f"give `minutes` {minutes} or more, or a smaller `model` or `size`"
    else:
        mend = "give more `epochs`, or `minutes`"
    took = f"{count(steps, 'step')}, {epochs:.2f} epochs"
    return f"too short to learn much: {took} (it takes {FEW_STEPS} or {FEW_EPOCHS:g}); {mend}"
