"""How a training step is computed on this machine: by our kernels, by torch.compile, or one operation at a time."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnetkit.errors import UsageError
from resnetkit.models.maps import map_shapes
from resnetkit.models.resnet import ResNet
from resnetkit.native import find_compiler
from resnetkit.train.computing.fused import FusedNet, why_not
from resnetkit.train.computing.measuring import Forward, fastest, worth_measuring
from resnetkit.train.recipe import Recipe

PAYS_FROM_STEPS, PAYS_FROM_MINUTES = 20_000, 30.0
"""Shortest run for which torch.compile, which takes a minute, saves time, if our kernels do not support the network."""


def choose_forward(
    net: ResNet,
    recipe: Recipe,
    device: torch.device,
    precision: str,
    *,
    size: int,
    recompute: bool = False,
    steps: int | None = None,
    before: str | None = None,
) -> tuple[Forward, str]:
    """Return the network's forward pass in training, and the name of the way it is computed.

    The function maps normalised images, float32 (n, channels, h, w), to logits (n, classes). The names are kernels,
    torch.compile and eager. If a run is long enough, kernels and eager are measured on pictures of `size` × `size`, and
    the faster one is chosen. `steps` is the length of the whole run (`Recipe.total_steps`), None if it is not known.
    `before` is the way in which a resumed run was computed until now: it is chosen again if it is possible. Raises
    UsageError if the recipe's `compile` does not support this network.
    """
    reason = "it is not on a CPU" if device.type != "cpu" else why_not(net)
    if recipe.keep_statistics and (precision != "float32" or recompute):
        # In bfloat16 the kernels' gain is the normalisation by the batch's statistics; and without these, all maps are
        # kept.
        reason = reason or "its batch norm keeps its statistics, and it is not in float32 with all maps kept"
    if recipe.compile == "kernels" and reason:
        raise UsageError(f"`compile` kernels does not support this network: {reason}. Give `compile` auto")
    if recipe.compile == "inductor" and recompute:
        raise UsageError(
            "`compile` inductor can't compute maps again, which `recompute` on or too little memory requires here. "
            f"Give `compile` auto, or `recompute` off and a smaller `batch_size` than {recipe.batch_size}"
        )

    def make(name: str, net: ResNet) -> Forward:
        if name == "kernels":
            return FusedNet(net, getattr(torch, precision), recompute=recompute)
        plain: Forward = Recomputed(net) if recompute else net
        return _in_precision(torch.compile(plain) if name == "torch.compile" else plain, name, device, precision)

    if recipe.compile != "auto":
        name = {"kernels": "kernels", "inductor": "torch.compile", "off": "eager"}[recipe.compile]
    elif reason:
        name = "torch.compile" if not recompute and _pays(recipe, device, steps) else "eager"
    elif before in ("kernels", "eager"):
        name = before
    elif worth_measuring(net.spec, recipe, size=size, steps=steps):
        setting = ", ".join([precision, *["recomputing"] * recompute, *["kept statistics"] * recipe.keep_statistics])
        name = fastest(("kernels", "eager"), make, net, batch_size=recipe.batch_size, size=size, setting=setting)
    else:
        name = "kernels"
    return make(name, net), name


def _in_precision(forward: Forward, name: str, device: torch.device, precision: str) -> Forward:
    def in_precision(images: Tensor) -> Tensor:
        if name == "torch.compile":
            # Without this, a second picture size would be compiled with dynamic shapes, and a run that is resumed after
            # the change of size would get other bits.
            torch._dynamo.mark_static(images, [2, 3])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return forward(images)

    return in_precision


def _pays(recipe: Recipe, device: torch.device, steps: int | None) -> bool:
    """Return whether the run is long enough for torch.compile. A resumed run gets the same answer."""
    if device.type == "cpu" and find_compiler() is None:
        return False
    return (steps or 0) >= PAYS_FROM_STEPS or (recipe.minutes or 0) >= PAYS_FROM_MINUTES


def refuse_single_values(net: ResNet, *, batch_size: int, size: int) -> None:
    """Raise UsageError if a batch of pictures of `size` × `size` gives a batch norm only one value per channel.

    This value equals the mean, so the norm's output is its bias for every picture, and no layer before it learns.
    """
    if batch_size > 1:
        return
    shapes = map_shapes(net, size)
    trained = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    if any(shapes[norm][2:].numel() == 1 for norm in trained if norm in shapes):
        raise UsageError(
            f"one picture of {size} × {size} in a batch gives batch norm a single value per channel, so nothing is "
            "learnt; give a larger `batch_size` (with at least as many pictures), or a larger `size`"
        )


class Recomputed:
    """A network that keeps only the input of each block, and runs the block again in the backward pass.

    See arXiv:1604.06174.
    """

    def __init__(self, net: ResNet) -> None:
        self.net = net

    def __call__(self, images: Tensor) -> Tensor:
        """(n, in_channels, h, w) to logits (n, classes)."""
        return self.net.run(images, run_stage=_run_checkpointed)


def _run_checkpointed(stage: nn.Module, x: Tensor) -> Tensor:
    for block in stage.children():
        x = checkpoint(block, x, use_reentrant=False, context_fn=lambda block=block: _contexts(block))
    return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's first and second run."""
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Generator[None]:
    """Leave the running statistics unchanged, since the first run has counted the batch.

    Batch norm still receives the statistics: the second run must save the same tensors as the first.
    """
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
