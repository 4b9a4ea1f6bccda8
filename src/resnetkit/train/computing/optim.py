"""The optimiser and its parameter groups, learning-rate schedules, and the moving average of the weights."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.errors import UsageError
from resnetkit.models.resnet import ResNet
from resnetkit.train.computing.muon import Muon
from resnetkit.train.recipe import Recipe


def make_optimizer(net: nn.Module, recipe: Recipe, *, kernels: bool = False) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for the weights of `net` that are not frozen.

    With `optimizer` muon, all convolutions except the first get orthogonal steps, other weights SGD. With `kernels`,
    Muon uses our kernels.
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    orthogonal: list[nn.Parameter] = []
    if recipe.optimizer == "muon":
        convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        # Convolutions with a bias (squeeze-and-excitation) have no normalisation after them: their scale matters.
        free = {id(c.weight) for c in convolutions[1:] if c.bias is None}
        orthogonal = [p for p in trained if id(p) in free]
    taken = set(map(id, orthogonal))
    rest = [p for p in trained if id(p) not in taken]
    # Weights of convolutions and of the last layer have two or more dimensions; norms and biases have one.
    decayed = [p for p in rest if recipe.decay_norm_and_bias or p.ndim > 1]
    others = [p for p in rest if not recipe.decay_norm_and_bias and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if orthogonal:
        groups.append({"params": orthogonal, "orthogonal": True, "scale": recipe.muon_lr / recipe.lr})
    if recipe.layer_decay < 1:
        groups = _by_part(groups, _as_resnet(net), recipe.layer_decay)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, momentum=recipe.momentum, kernels=kernels)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def _by_part(groups: Sequence[dict[str, Any]], net: ResNet, decay: float) -> list[dict[str, Any]]:
    """Return the groups divided by the parts of the network, each with the factor of its rate as `lr_scale`.

    The head's factor is 1, and each part before it has `decay` times the factor of the next one.
    """
    parts = [{id(p) for module in modules for p in module.parameters()} for modules in net.parts.values()]
    divided = []
    for group in groups:
        for before_head, members in enumerate(reversed(parts)):
            own = [p for p in group["params"] if id(p) in members]
            if own:
                divided.append(group | {"params": own, "lr_scale": decay**before_head})
    return divided


def _as_resnet(net: nn.Module) -> ResNet:
    if not isinstance(net, ResNet):
        raise UsageError("`layer_decay` needs a residual network; give `layer_decay` 1")
    return net


def learning_rate(recipe: Recipe, progress: float, *, drops: int = 0) -> float:
    """Return the learning rate at `progress` (0 to 1) of the run; `drops` is the number of plateaus so far."""
    match recipe.schedule:
        case "one-cycle":
            rising = progress / recipe.peak_at
            falling = (1 - progress) / (1 - recipe.peak_at) if recipe.peak_at < 1 else 1.0
            return recipe.lr * max(min(rising, falling), 0.01)
        case "cosine":
            return recipe.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return recipe.lr * recipe.lr_drop ** sum(progress >= m for m in recipe.milestones)
        case "plateau":
            return recipe.lr * recipe.lr_drop**drops
        case "constant":
            return recipe.lr


def plateaus(errors: Sequence[float], *, patience: int) -> int:
    """Count the plateaus: `patience` evaluations in a row without a new lowest error."""
    drops, waited, lowest = 0, 0, float("inf")
    for error in errors:
        if error < lowest:
            lowest, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            drops, waited = drops + 1, 0
    return drops


def evaluations_without_better(scores: Sequence[float]) -> int:
    """Count the evaluations since the one with the lowest score; the first one, if several have it."""
    return len(scores) - 1 - scores.index(min(scores))


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Return an update for AveragedModel: exponential averages of weights and statistics; counters are copied."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    return update
