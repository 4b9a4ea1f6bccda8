"""A network's forward and backward pass by our kernels: all that follows a convolution takes one pass over memory.

Maps have one precision and channels_last memory from the stem to the last stage. Parameters, their gradients and all
sums are float32. The network is not changed: it keeps its modules, parameters and buffers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.kernels import operations as kernels
from resnetkit.kernels.library import library
from resnetkit.models.blocks import BasicBlock, Bottleneck, PadShortcut, PlainBasicBlock, PlainBottleneck
from resnetkit.models.resnet import ResNet

PLAIN = (PlainBasicBlock, PlainBottleneck)
FUSED_BLOCKS = (BasicBlock, Bottleneck, *PLAIN)


class Unit(NamedTuple):
    """A convolution, its batch norm, and whether a ReLU follows."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    relu: bool = True


class Kept(NamedTuple):
    """What the backward pass of a unit needs.

    Its input, the convolution's output with its mean and inverse deviation, and the unit's output.
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    inverse_std: Tensor
    z: Tensor


class FusedNet:
    """A network in training, as a function of normalised images. Raises ValueError where `why_not` gives a reason.

    `dtype` is the type of the maps, float32 or bfloat16. With `recompute`, the maps inside a block are computed again
    in the backward pass instead of being kept (arXiv:1604.06174).
    """

    def __init__(self, net: ResNet, dtype: torch.dtype, *, recompute: bool = False) -> None:
        if reason := why_not(net):
            raise ValueError(f"the kernels don't serve this network: {reason}")
        self.net, self.dtype = net, dtype
        self.stem = FusedUnits([_unit(net.conv1, net.bn1)])
        self.blocks = [FusedBlock(block, recompute=recompute) for block in _blocks(net)]

    def __call__(self, images: Tensor) -> Tensor:
        """float32 (n, channels, h, w) to float32 logits (n, classes)."""
        x = images.to(self.dtype, memory_format=torch.channels_last)
        x = self.net.maxpool(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.net.run(x.float(), first="head")


class FusedBlock:
    """A block, of a class in FUSED_BLOCKS."""

    def __init__(self, block: BasicBlock | Bottleneck, *, recompute: bool) -> None:
        units = [_unit(block.conv1, block.bn1), _unit(block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            units.append(_unit(block.conv3, block.bn3))
        shortcut = None if isinstance(block, PLAIN) else block.downsample
        projects = isinstance(shortcut, nn.Sequential)
        self.projection = FusedUnits([_unit(*shortcut, relu=False)], recompute=recompute) if projects else None
        self.residual = FusedUnits(units, shortcut=None if projects else shortcut, recompute=recompute)

    def __call__(self, x: Tensor) -> Tensor:
        """A map to a map, both in the net's precision."""
        return self.residual(x, self.projection(x) if self.projection else None)


class FusedUnits:
    """Units one after another. The last one adds the shortcut's output before its ReLU.

    `shortcut` is a shortcut without parameters (nn.Identity or PadShortcut), or None.
    """

    def __init__(self, units: Sequence[Unit], *, shortcut: nn.Module | None = None, recompute: bool = False) -> None:
        self.units, self.shortcut, self.recompute = tuple(units), shortcut, recompute

    def __call__(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """A map to a map. `beside` is the output of a shortcut that was computed elsewhere."""
        if not self.units[0].norm.training:
            return self.frozen(x, self.shortcut(x) if self.shortcut else beside)
        parameters = [p for conv, norm, _ in self.units for p in (conv.weight, norm.weight, norm.bias)]
        return _Units.apply(self, x, beside, *parameters)

    def frozen(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """The same for frozen units, which normalise by their running statistics."""
        for number, (conv, norm, relu) in enumerate(self.units):
            x = norm(_convolve(conv, x).float()).to(x.dtype)
            if beside is not None and number == len(self.units) - 1:
                x = x + beside
            x = F.relu(x) if relu else x
        return x

    def origins(self) -> list[Tensor]:
        """For each unit, a copy of its running mean: the value that is subtracted before moments are summed."""
        return [norm.running_mean.clone() for _, norm, _ in self.units if norm.running_mean is not None]

    def forward(
        self, x: Tensor, beside: Tensor | None, origins: Sequence[Tensor], *, update: bool = False
    ) -> list[Kept]:
        """Compute every unit's maps. `update` counts the batch in the running statistics."""
        if self.shortcut:
            beside = self.shortcut(x)
        if beside is not None:
            beside = beside.contiguous(memory_format=torch.channels_last)
        kept: list[Kept] = []
        for unit, origin in zip(self.units, origins, strict=True):
            added = beside if unit is self.units[-1] else None
            if kernels.winograd_serves(unit.conv, x):
                conv, norm, relu = unit
                y, mean, inverse_std, z = kernels.unit_forward(
                    x, conv, norm, beside=added, origin=origin, relu=relu, update=update
                )
            else:
                y = _convolve(unit.conv, x)
                z, mean, inverse_std = kernels.norm_forward(y, unit.norm, beside=added, relu=unit.relu, update=update)
            kept.append(Kept(x, y, mean, inverse_std, z))
            x = z
        return kept

    def backward(
        self, number: int, grad: Tensor, kept: Kept, *, adds: bool, input_too: bool, added: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]:
        """Return the gradients of a unit's input (plus `added`), of what was beside it, and of its parameters."""
        (conv, norm, relu), (x, y, mean, inverse_std, z) = self.units[number], kept
        beside = adds and number == len(self.units) - 1
        if kernels.winograd_serves(conv, x):
            return kernels.unit_backward(
                grad, x, y, z, conv, norm, mean, inverse_std, input_too=input_too, beside=beside, added=added, relu=relu
            )
        grad_y, grad_beside, grad_gain, grad_bias = kernels.norm_backward(
            grad, y, z, norm, mean, inverse_std, beside=beside, relu=relu
        )
        grad_x, grad_weight = _convolution_gradients(conv, x, grad_y, input_too=input_too, beside=added)
        return grad_x, grad_beside, grad_weight, grad_gain, grad_bias


class _Units(torch.autograd.Function):
    """FusedUnits as an operation that autograd knows."""

    @staticmethod
    # pyrefly: ignore[bad-override]
    def forward(ctx: Any, units: FusedUnits, x: Tensor, beside: Tensor | None, *parameters: Tensor) -> Tensor:
        origins = units.origins()
        kept = units.forward(x, beside, origins, update=True)
        ctx.units, ctx.adds = units, bool(units.shortcut) or beside is not None
        if units.recompute:
            ctx.save_for_backward(x, beside, *origins)
        else:
            ctx.save_for_backward(*(tensor for each in kept for tensor in each))
        return kept[-1].z

    @staticmethod
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        units: FusedUnits = ctx.units
        if units.recompute:
            x, beside, *origins = ctx.saved_tensors
            kept = units.forward(x, beside, origins)
        else:
            saved, size = ctx.saved_tensors, len(Kept._fields)
            kept = [Kept(*saved[first : first + size]) for first in range(0, len(saved), size)]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x: Tensor | None = grad
        grad_beside: Tensor | None = None
        gradients: list[Tensor | None] = []
        for number in reversed(range(len(kept))):
            grad_x, beside, *more = units.backward(
                number,
                grad if grad_x is None else grad_x,
                kept.pop(),
                adds=ctx.adds,
                input_too=number > 0 or ctx.needs_input_grad[1],
                added=grad_beside if number == 0 and isinstance(units.shortcut, nn.Identity) else None,
            )
            grad_beside = beside if beside is not None else grad_beside
            gradients = [*more, *gradients]
        if isinstance(units.shortcut, PadShortcut) and grad_x is not None and grad_beside is not None:
            stride = units.shortcut.stride
            grad_x[:, :, ::stride, ::stride] += grad_beside[:, : grad_x.shape[1]]
        return None, grad_x, None if units.shortcut else grad_beside, *gradients


def why_not(net: ResNet) -> str | None:
    """Say why the kernels can't train this network on this machine; None if they can."""
    if library() is None:
        return "the kernels are off (resnetkit doctor says why)"
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    blocks, spec = _blocks(net), net.spec
    if type(net.conv1) is not nn.Conv2d or type(net.bn1) is not nn.BatchNorm2d:
        return "its stem is not one convolution with batch norm"
    if len(blocks) < sum(spec.depths) or spec.attention != "none" or spec.blur:
        return "its blocks are not the paper's"
    if any(row.drop_path for stage in spec.stages for row in stage):
        return "it has stochastic depth"
    if any(isinstance(b.downsample, nn.Sequential) and len(b.downsample) != 2 for b in blocks):
        return "its shortcuts pool"
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    if len(norms) != convolutions or any(type(norm) is not nn.BatchNorm2d for norm in norms):
        return "a convolution is without batch norm"
    if any(isinstance(module, nn.Conv2d) and module.bias is not None for module in net.modules()):
        return "a convolution has a bias"
    if any(norm.momentum is None or not norm.affine or not norm.track_running_stats for norm in norms):
        return "its batch norm is not the usual one"
    if any(norm.num_features % kernels.LANES for norm in norms):
        return f"its channels are not multiples of {kernels.LANES}"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in net.parameters()):
        return "its parameters are not float32 on the CPU"
    return None


def _blocks(net: ResNet) -> list[BasicBlock | Bottleneck]:
    """The blocks whose class is in FUSED_BLOCKS, in their order."""
    return [block for block in net.blocks if isinstance(block, BasicBlock | Bottleneck) and type(block) in FUSED_BLOCKS]


def _unit(conv: nn.Module, norm: nn.Module, *, relu: bool = True) -> Unit:
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"{type(conv).__name__} and {type(norm).__name__} are no convolution with batch norm")
    return Unit(conv, norm, relu)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = F.conv2d(x, conv.weight.to(x.dtype), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.contiguous(memory_format=torch.channels_last)


def _convolution_gradients(
    conv: nn.Conv2d, x: Tensor, grad: Tensor, *, input_too: bool, beside: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input (if wanted, with `beside` added) and of the weight, from the output's."""
    if kernels.strided_serves(conv, x):
        grad_x, grad_weight = kernels.strided_gradients(grad, x, conv, input_too=input_too)
        return grad_x if grad_x is None or beside is None else grad_x.add_(beside), grad_weight
    dtype, wanted = x.dtype, [input_too, True, False]
    if x.shape[2:].numel() == 1:
        # In bfloat16, oneDNN leaves the weight's gradient of a strided convolution on such maps unwritten.
        x, grad = x.float(), grad.float()
    weight = conv.weight.to(x.dtype)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, wanted
    )
    if input_too:
        grad_x = grad_x.to(dtype)
        if beside is not None:
            grad_x = grad_x.add_(beside)
    return grad_x.contiguous(memory_format=torch.channels_last) if input_too else None, grad_weight.float()
