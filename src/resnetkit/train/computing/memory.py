"""Estimates of the memory that a training step and an evaluation need, from the sizes of the feature maps."""

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
"""Most maps kept for each convolution: its output, and the output of the normalisation after it."""
PER_BLOCK = 2
"""Maps for each block that is computed again: its output, and unused space that its other maps leave in the heap."""
IN_FLIGHT = 6
"""Maps of the largest size that the backward pass holds at the same time."""
PER_WEIGHT = 4
"""Numbers for each weight: the weight, its gradient, its momentum, and a copy while it is cast or saved."""
UNFOLDED = 8
"""Column buffers of the largest size, if maps are unfolded: those in use, and unused space in the heap."""
SHARE = 0.9
"""The largest share of the free memory that a run may need."""


@dataclass(frozen=True)
class Need:
    """Bytes that training needs in addition to the present memory of the process."""

    kept: int
    """Bytes if every map is kept for the backward pass."""
    recomputed: int
    """Bytes if the maps inside each block are computed again."""
    evaluated: int = 0
    """Bytes in an evaluation, which begins after the maps of a step are freed."""


def training_need(net: ResNet, *, batch_size: int, size: int, precision: str, unfolds: bool) -> Need:
    """Estimate the bytes of a step on `batch_size` pictures of `size` × `size` pixels, without running the network.

    `unfolds` says that torch copies maps into columns before it convolves them in this precision; see
    `precision.unfolds_bfloat16`. The evaluation is counted for batches of `evaluation_batch` pictures.
    """
    sizes = map_sizes(net, size)

    def kept(module: nn.Module) -> int:
        """Return how many numbers per picture are kept for the convolutions in a module; frozen ones keep none."""
        trained = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        return PER_CONVOLUTION * sum(sizes[conv] for conv in trained)

    def kept_again(block: nn.Module) -> int:
        """Return how many numbers per picture are kept for a block that is computed again, and for its projection."""
        projection = getattr(block, "downsample", None)
        shortcut = kept(projection) // PER_CONVOLUTION if isinstance(projection, nn.Module) else 0
        return (PER_BLOCK * sizes[block] if kept(block) else 0) + shortcut

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
    """Return the size of the columns of one picture's map for `conv`, whose output has `given` numbers."""
    if (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
        return 0  # such a convolution uses the map without columns
    return conv.weight[0].numel() * given // conv.out_channels


def choose_recompute(need: Need, recipe: Recipe, available: int | None) -> bool:
    """Return whether blocks compute their maps again in the backward pass.

    `available` is the free memory in bytes; None if the system does not report it. Raises TrainingError if the run
    does not fit into it.
    """
    if available is None:
        return recipe.recompute == "on"
    if need.evaluated > SHARE * available:
        raise TrainingError(
            f"evaluating {recipe.model} needs about {need.evaluated / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB "
            "are free; give a smaller `size` or `model`"
        )
    fits, recomputed_fits = need.kept <= SHARE * available, need.recomputed <= SHARE * available
    recompute = recipe.recompute == "on" or (recipe.recompute == "auto" and not fits)
    if not (recomputed_fits if recompute else fits):
        wanted = need.recomputed if recompute else need.kept
        other = " or `recompute` on" if recomputed_fits and not recompute else ""
        raise TrainingError(
            f"training {recipe.model} needs about {wanted / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free; "
            f"give a smaller `batch_size` than {recipe.batch_size}{other}"
        )
    return recompute


def available_memory() -> int | None:
    """Return the bytes that this process can still allocate; None if the system does not report them."""
    return read_machine().available_bytes
