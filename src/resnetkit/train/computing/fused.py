"""A network's forward and backward pass by our kernels: normalisation, addition and ReLU are one pass over memory.

From the stem to the last stage, feature maps have one precision and channels_last memory. Parameters, their gradients
and all sums are float32. The network is not changed: it keeps its modules, parameters and buffers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.kernels import operations as kernels
from resnetkit.kernels.convolution import convolve
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
    """The tensors that the backward pass of a unit needs."""

    x: Tensor
    """Input (n, channels, h, w); the `y` of the unit before if that one has no `z`."""
    y: Tensor
    """Output of the convolution (n, outputs, h, w)."""
    mean: Tensor
    """Mean of y per channel, float32 (outputs,)."""
    inverse_std: Tensor
    """1 over the standard deviation of y per channel, float32 (outputs,)."""
    z: Tensor | None
    """Output of the unit, in the shape of y; None if the next unit computes it from y."""


class FusedNet:
    """A network in training, as a function of normalised images. Raises ValueError if `why_not` returns a reason.

    `dtype` is the type of the maps, float32 or bfloat16. With `recompute`, the maps inside a block are not kept but
    computed again in the backward pass (arXiv:1604.06174).
    """

    def __init__(self, net: ResNet, dtype: torch.dtype, *, recompute: bool = False) -> None:
        if reason := why_not(net):
            raise ValueError(f"the kernels don't support this network: {reason}")
        self.net, self.dtype = net, dtype
        self.stem = FusedUnits([_unit(net.conv1, net.bn1)])
        self.blocks = [FusedBlock(block, recompute=recompute) for block in _blocks(net)]

    def __call__(self, images: Tensor) -> Tensor:
        """Map images, float32 (n, channels, h, w), to logits, float32 (n, classes)."""
        x = images.to(self.dtype, memory_format=torch.channels_last)
        x = self.net.maxpool(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.net.run(x.float(), first="head")


class FusedBlock:
    """A block by our kernels; its class is in FUSED_BLOCKS."""

    def __init__(self, block: BasicBlock | Bottleneck, *, recompute: bool) -> None:
        units = [_unit(block.conv1, block.bn1), _unit(block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            units.append(_unit(block.conv3, block.bn3))
        shortcut = None if isinstance(block, PLAIN) else block.downsample
        projects = isinstance(shortcut, nn.Sequential)
        self.projection = FusedUnits([_unit(*shortcut, relu=False)], recompute=recompute) if projects else None
        self.residual = FusedUnits(units, shortcut=None if projects else shortcut, recompute=recompute)

    def __call__(self, x: Tensor) -> Tensor:
        """Map a feature map (n, channels, h, w) to the block's output, both in the network's precision."""
        return self.residual(x, self.projection(x) if self.projection else None)


class FusedUnits:
    """Units one after another. The last one adds the shortcut's output before its ReLU.

    `shortcut` is a shortcut without parameters (nn.Identity or PadShortcut), or None.
    """

    def __init__(self, units: Sequence[Unit], *, shortcut: nn.Module | None = None, recompute: bool = False) -> None:
        self.units, self.shortcut, self.recompute = tuple(units), shortcut, recompute

    def __call__(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map the input (n, channels, h, w) to the output. `beside` is the output of the projection, or None."""
        if not self.units[0].norm.training:
            return self.frozen(x, self.shortcut(x) if self.shortcut else beside)
        parameters = [p for conv, norm, _ in self.units for p in (conv.weight, norm.weight, norm.bias)]
        return _Units.apply(self, x, beside, *parameters)

    def frozen(self, x: Tensor, beside: Tensor | None) -> Tensor:
        """Compute the output of units that normalise by their running statistics, with all gradients."""
        for number, (conv, norm, relu) in enumerate(self.units):
            x = _normalised(conv, norm, x)
            if beside is not None and number == len(self.units) - 1:
                x = x + beside
            x = F.relu(x) if relu else x
        return x

    def origins(self) -> list[Tensor]:
        """Return a copy of each unit's running mean, which is subtracted before moments are summed, for accuracy."""
        return [norm.running_mean.clone() for _, norm, _ in self.units if norm.running_mean is not None]

    def forward(
        self, x: Tensor, beside: Tensor | None, origins: Sequence[Tensor], *, update: bool = False
    ) -> list[Kept]:
        """Compute every unit's maps. With `update`, the batch changes the running statistics."""
        if self.shortcut:
            beside = self.shortcut(x)
        if beside is not None:
            beside = beside.contiguous(memory_format=torch.channels_last)
        kept: list[Kept] = []
        given: Tensor | kernels.Unfinished = x
        for number, (unit, origin) in enumerate(zip(self.units, origins, strict=True)):
            conv, norm, relu = unit
            added = beside if unit is self.units[-1] else None
            if kernels.winograd_serves(conv, given):
                finish = not self._leaves(number, given)
                y, mean, inverse_std, z = kernels.unit_forward(
                    given, conv, norm, beside=added, origin=origin, relu=relu, update=update, finish=finish
                )
            else:
                y = _convolve(conv, x)
                finish = not self._leaves(number, y)
                z, mean, inverse_std = kernels.norm_forward(
                    y, norm, beside=added, relu=relu, update=update, finish=finish
                )
            kept.append(Kept(x, y, mean, inverse_std, z))
            x, given = (y, kernels.Unfinished(y, norm, mean, inverse_std)) if z is None else (z, z)
        return kept

    def _leaves(self, number: int, x: Tensor | kernels.Unfinished) -> bool:
        """Return whether a unit leaves its batch norm and ReLU to the next unit.

        `x` has the type, height and width of the unit's output.
        """
        if x.dtype != torch.float32 or number + 1 == len(self.units):
            return False
        return self.units[number].relu and kernels.winograd_serves(self.units[number + 1].conv, x)

    def backward(
        self,
        number: int,
        grad: Tensor,
        kept: Sequence[Kept],
        *,
        adds: bool,
        input_too: bool,
        added: Tensor | None,
        products: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor, Tensor | None]:
        """Return the gradients of a unit's input, of the shortcut's output, and of its weight, gain and bias.

        `number` is the unit's index, `grad` the gradient of its output, and `kept` contains the units up to this one.
        `adds` says that the last unit adds a shortcut. Without `input_too`, the first gradient may be None. `added` is
        added to the first gradient. `products` is the last result of the next unit's backward pass, or None.
        """
        (conv, norm, relu), (x, y, mean, inverse_std, z) = self.units[number], kept[number]
        beside = adds and number == len(self.units) - 1
        given: Tensor | kernels.Unfinished = x
        if number and kept[number - 1].z is None:
            given = kernels.Unfinished(
                x, self.units[number - 1].norm, kept[number - 1].mean, kept[number - 1].inverse_std
            )
        if kernels.winograd_serves(conv, given):
            return kernels.unit_backward(
                *(grad, given, y, z, conv, norm, mean, inverse_std),
                input_too=input_too,
                beside=beside,
                added=added,
                relu=relu,
                products=products,
            )
        grad_y, grad_beside, grad_gain, grad_bias = kernels.norm_backward(
            grad, y, z, norm, mean, inverse_std, beside=beside, relu=relu, products=products
        )
        grad_x, grad_weight = _convolution_gradients(conv, x, grad_y, input_too=input_too, beside=added)
        return grad_x, grad_beside, grad_weight, grad_gain, grad_bias, None


class _Units(torch.autograd.Function):
    """FusedUnits as an autograd function."""

    @staticmethod
    # pyrefly: ignore[bad-override]
    def forward(ctx: Any, units: FusedUnits, x: Tensor, beside: Tensor | None, *parameters: Tensor) -> Tensor:
        origins = units.origins()
        kept = units.forward(x, beside, origins, update=True)
        ctx.units, ctx.adds = units, bool(units.shortcut) or beside is not None
        if (z := kept[-1].z) is None:
            raise RuntimeError("the last unit computes its own output")
        if units.recompute:
            ctx.save_for_backward(x, beside, *origins)
        else:
            ctx.save_for_backward(*(tensor for each in kept for tensor in each))
        return z

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
        products: Tensor | None = None
        gradients: list[Tensor | None] = []
        for number in reversed(range(len(kept))):
            grad_x, beside, *more, products = units.backward(
                number,
                grad if grad_x is None else grad_x,
                kept,
                products=products,
                adds=ctx.adds,
                input_too=number > 0 or ctx.needs_input_grad[1],
                added=grad_beside if number == 0 and isinstance(units.shortcut, nn.Identity) else None,
            )
            kept.pop()
            grad_beside = beside if beside is not None else grad_beside
            gradients = [*more, *gradients]
        if isinstance(units.shortcut, PadShortcut) and grad_x is not None and grad_beside is not None:
            stride = units.shortcut.stride
            grad_x[:, :, ::stride, ::stride] += grad_beside[:, : grad_x.shape[1]]
        return None, grad_x, None if units.shortcut else grad_beside, *gradients


def why_not(net: ResNet) -> str | None:
    """Return the reason why the kernels can't train this network on this machine; None if they can."""
    if library() is None:
        return "the kernels are off (resnetkit doctor gives the reason)"
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
        return "a convolution has no batch norm"
    if any(isinstance(module, nn.Conv2d) and module.bias is not None for module in net.modules()):
        return "a convolution has a bias"
    if any(norm.momentum is None or not norm.affine or not norm.track_running_stats for norm in norms):
        return "its batch norm has no momentum, parameters or running statistics"
    if any(norm.num_features % kernels.LANES for norm in norms):
        return f"its channels are not multiples of {kernels.LANES}"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in net.parameters()):
        return "its parameters are not float32 on the CPU"
    return None


def _blocks(net: ResNet) -> list[BasicBlock | Bottleneck]:
    """Return the blocks whose class is in FUSED_BLOCKS, in their order."""
    return [block for block in net.blocks if isinstance(block, BasicBlock | Bottleneck) and type(block) in FUSED_BLOCKS]


def _unit(conv: nn.Module, norm: nn.Module, *, relu: bool = True) -> Unit:
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"{type(conv).__name__} and {type(norm).__name__} are not a convolution with batch norm")
    return Unit(conv, norm, relu)


def _normalised(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return norm(conv(x)), where `norm` uses its running statistics.

    The normalisation is then an affine function. In float32 it is multiplied into the convolution, so no map is kept
    for it.
    """
    mean, variance = norm.running_mean, norm.running_var
    if x.dtype != torch.float32 or mean is None or variance is None:
        return norm(_convolve(conv, x).float()).to(x.dtype)
    gain = norm.weight * (variance + norm.eps).rsqrt()
    weight, bias = conv.weight * gain[:, None, None, None], norm.bias - mean * gain
    if kernels.winograd_serves(conv, x):
        return convolve(x, weight, bias)
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.contiguous(memory_format=torch.channels_last)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = F.conv2d(x, conv.weight.to(x.dtype), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.contiguous(memory_format=torch.channels_last)


def _convolution_gradients(
    conv: nn.Conv2d, x: Tensor, grad: Tensor, *, input_too: bool, beside: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input and of the weight, from the gradient `grad` of the output.

    The gradient of the input is None without `input_too`; `beside` is added to it.
    """
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
