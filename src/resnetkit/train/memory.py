"""How much memory a training step and an evaluation will take, counted beforehand."""

from dataclasses import dataclass

import torch
from torch import nn

from resnetkit.errors import TrainingError
from resnetkit.evaluation.batches import bytes_per_picture, pictures_at_once
from resnetkit.machine import read_machine
from resnetkit.models.maps import map_sizes
from resnetkit.models.resnet import ResNet
from resnetkit.train.recipe import Recipe

PER_CONVOLUTION = 2
"""Maps kept for each convolution: its output, and the output of the normalisation behind it."""
PER_BLOCK = 2
"""Maps for each block that is computed again: its output, and the hole that its other maps leave in the heap."""
IN_FLIGHT = 4
"""Maps of the largest size that the backward pass holds at the same time."""
PER_WEIGHT = 4
"""Numbers for each weight: itself, its gradient, its momentum, and a copy while it is cast or saved."""
UNFOLDED = 8
"""Largest columns, where maps are unfolded: those in use, and the holes that earlier ones left in the heap."""
SHARE = 0.9
"""The largest share of the free memory that a run may need."""


@dataclass(frozen=True)
class Need:
    """Bytes that training takes in addition to what the process holds already."""

    kept: int
    """Where every map is kept for the backward pass."""
    recomputed: int
    """Where the maps inside each block are computed again."""
    evaluated: int = 0
    """In an evaluation, which begins when the maps of a step are freed."""


def training_need(net: ResNet, *, batch_size: int, size: int, precision: str, unfolds: bool) -> Need:
    """Count the maps of a step on `batch_size` pictures of `size` × `size` pixels, without computing anything.

    `unfolds` says that torch unfolds maps into columns to convolve them in this precision; see
    `precision.unfolds_bfloat16`. The evaluation is counted for batches of `evaluation_batch` pictures.
    """
    sizes = map_sizes(net, size)

    def kept(module: nn.Module) -> int:
        """Numbers kept for the convolutions in a module; frozen ones keep none."""
        trained = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        return PER_CONVOLUTION * sum(sizes[conv] for conv in trained)

    def kept_again(block: nn.Module) -> int:
        """Numbers kept for a block that is computed again, and for the output of its projection."""
        projection = getattr(block, "downsample", None)
        return (PER_BLOCK * sizes[block] if kept(block) else 0) + (
            kept(projection) // PER_CONVOLUTION if projection else 0
        )

    stem = sum(map(kept, net.parts["stem"]))
    flight = IN_FLIGHT * max(sizes.values())
    if unfolds:
        flight += UNFOLDED * max(_columns(m, sizes[m]) for m in net.modules() if isinstance(m, nn.Conv2d))
    per_map = batch_size * getattr(torch, precision).itemsize
    weights = PER_WEIGHT * 4 * sum(p.numel() for p in net.parameters())
    return Need(
        kept=per_map * (kept(net) + flight) + weights,
        recomputed=per_map * (stem + sum(map(kept_again, net.blocks)) + max(map(kept, net.blocks)) + flight) + weights,
        evaluated=pictures_at_once(sizes) * bytes_per_picture(sizes) + weights,
    )


def _columns(conv: nn.Conv2d, given: int) -> int:
    """How many numbers the columns have that a convolution unfolds one picture's map into; its output has `given`."""
    if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
        return 0  # such a convolution takes the map as it is
    return conv.weight[0].numel() * given // conv.out_channels


def choose_recompute(need: Need, recipe: Recipe, available: int | None) -> bool:
    """Whether blocks compute their maps again. Raises TrainingError where the run does not fit into `available` bytes.

    `available` is None where the system does not say how much memory is free.
    """
    if available is None:
        return recipe.recompute == "on"
    if need.evaluated > SHARE * available:
        raise TrainingError(
            f"evaluating {recipe.model} takes about {need.evaluated / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB "
            "are free; give a smaller `size` or `model`"
        )
    fits, recomputed_fits = need.kept <= SHARE * available, need.recomputed <= SHARE * available
    recompute = recipe.recompute == "on" or (recipe.recompute == "auto" and not fits)
    if not (recomputed_fits if recompute else fits):
        wanted = need.recomputed if recompute else need.kept
        other = " or `recompute` on" if recomputed_fits and not recompute else ""
        raise TrainingError(
            f"training {recipe.model} takes about {wanted / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; "
            f"give a smaller `batch_size` than {recipe.batch_size}{other}"
        )
    return recompute


def available_memory() -> int | None:
    """Bytes that this process can still allocate; None where the system does not say."""
    return read_machine().available_bytes
