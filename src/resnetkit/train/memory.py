"""How much memory a training step and an evaluation take, before they take it."""

from dataclasses import dataclass

import torch
from torch import nn

from resnetkit.errors import TrainingError
from resnetkit.evaluation.batches import bytes_per_picture, pictures_at_once
from resnetkit.machine import read_machine
from resnetkit.models.maps import map_sizes
from resnetkit.models.resnet import ResNet
from resnetkit.train.recipe import Recipe

PER_CONVOLUTION = 2  # maps kept: what it gives, and what normalisation makes of it
PER_BLOCK = 2  # maps where a block is computed again: what it gives, and the hole that the others leave in the heap
IN_FLIGHT = 4  # maps of the largest size that a gradient's way back needs at once
PER_WEIGHT = 4  # numbers: the weight, its gradient, its momentum, and a copy while it is cast or saved
UNFOLDED = (
    8  # of the largest columns, where maps are unfolded: one in use, and holes that earlier ones left in the heap
)
SHARE = 0.9  # of the memory there is, for all of it


@dataclass(frozen=True)
class Need:
    """Bytes that training takes beside what the process holds already."""

    kept: int
    """With every map kept for its gradient."""
    recomputed: int
    """With a block's inner maps computed again."""
    evaluated: int = 0
    """In an evaluation, whose maps come when a step's have gone."""


def training_need(net: ResNet, *, batch_size: int, size: int, precision: str, unfolds: bool) -> Need:
    """Count the maps of a step on `batch_size` pictures of `size` × `size`, without computing anything.

    `unfolds`: torch convolves in this precision by unfolding maps into columns, as `precision.unfolds_bfloat16` says of
    a machine. The evaluation is that of `evaluation_batch` pictures.
    """
    sizes = map_sizes(net, size)
    blocks = [block for stage in net.stages for block in stage.children()]

    def kept(part: nn.Module) -> int:
        """Numbers kept of a part's convolutions; what is frozen keeps none."""
        trained = [m for m in part.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        return PER_CONVOLUTION * sum(sizes[module] for module in trained)

    def kept_again(block: nn.Module) -> int:
        """Numbers held for a block that is computed again, with what its projection gives."""
        projection = getattr(block, "downsample", None)
        return (PER_BLOCK * sizes[block] if kept(block) else 0) + (
            kept(projection) // PER_CONVOLUTION if projection else 0
        )

    flight = IN_FLIGHT * max(sizes.values())
    if unfolds:
        flight += UNFOLDED * max(_columns(m, sizes[m]) for m in net.modules() if isinstance(m, nn.Conv2d))
    per_map = batch_size * getattr(torch, precision).itemsize
    weights = PER_WEIGHT * 4 * sum(p.numel() for p in net.parameters())
    return Need(
        kept=per_map * (kept(net) + flight) + weights,
        recomputed=per_map * (kept(net.conv1) + sum(map(kept_again, blocks)) + max(map(kept, blocks)) + flight)
        + weights,
        evaluated=pictures_at_once(sizes) * bytes_per_picture(sizes) + weights,
    )


def _columns(conv: nn.Conv2d, given: int) -> int:
    """Numbers in the columns that a picture's map is unfolded into, where the convolution gives `given` numbers."""
    if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
        return 0  # the map itself will do
    return conv.weight[0].numel() * given // conv.out_channels


def choose_recompute(need: Need, recipe: Recipe, available: int | None) -> bool:
    """Whether blocks compute their maps again. TrainingError where neither way fits into `available` bytes."""
    if available is None:
        return recipe.recompute == "on"
    if need.evaluated > SHARE * available:
        raise TrainingError(
            f"evaluating {recipe.model} takes about {need.evaluated / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB "
            "are free; give a smaller --size or --model"
        )
    fits, recomputed_fits = need.kept <= SHARE * available, need.recomputed <= SHARE * available
    recompute = recipe.recompute == "on" or (recipe.recompute == "auto" and not fits)
    if not (recomputed_fits if recompute else fits):
        wanted = need.recomputed if recompute else need.kept
        other = " or --recompute on" if recomputed_fits and not recompute else ""
        raise TrainingError(
            f"training {recipe.model} takes about {wanted / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; "
            f"give a smaller --batch-size than {recipe.batch_size}{other}"
        )
    return recompute


def available_memory() -> int | None:
    """Bytes that this process can still have; None where the system does not say."""
    return read_machine().available_bytes
