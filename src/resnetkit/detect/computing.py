"""The parts of a detector that our kernels compute in training: 3×3 convolutions, and the pooling of regions.

Predictions, validation and exports are computed by torch and torchvision, whose results differ by rounding only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from resnetkit.kernels import operations as kernels
from resnetkit.kernels.convolution import convolve
from resnetkit.kernels.library import library

CANONICAL_SCALE, CANONICAL_LEVEL = 224, 4  # arXiv:1612.03144, Sec. 4.2


def use_kernels(net: nn.Module) -> bool:
    """Let our kernels compute the training of a network on a CPU. Return whether there are kernels."""
    if library() is None:
        return False
    for module in net.modules():
        if isinstance(module, KernelConv2d | RegionPool):
            module.by_kernels = True
    return True


class KernelConv2d(nn.Conv2d):
    """A convolution that our kernels compute in training, after `use_kernels`, if they are faster."""

    by_kernels = False

    def __init__(self, conv: nn.Conv2d, *, bias: bool) -> None:
        """Take the settings and the parameters of `conv`; with `bias`, that too."""
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast("tuple[int, int]", conv.kernel_size),
            cast("tuple[int, int]", conv.stride),
            padding=cast("tuple[int, int]", conv.padding),
            dilation=cast("tuple[int, int]", conv.dilation),
            groups=conv.groups,
            bias=bias and conv.bias is not None,
            device="meta",
        )
        self.weight = conv.weight
        if self.bias is not None:
            self.bias = conv.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, the name in torch
        """(n, in_channels, h, w) to (n, out_channels, h / stride, w / stride)."""
        return self.convolve(input, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution with another weight and bias of the same shape."""
        if self.by_kernels and torch.is_grad_enabled() and kernels.winograd_serves(self, x):
            return convolve(x, weight, bias)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def with_kernels(module: nn.Module) -> None:
    """Put a KernelConv2d with the same tensors into the place of each 3×3 convolution of torchvision's in `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and child.kernel_size == (3, 3):
                setattr(parent, name, KernelConv2d(child, bias=True))


class RegionPool(MultiScaleRoIAlign):
    """torchvision's pooling of regions from the maps of a pyramid, with known strides.

    torchvision takes the strides from the first picture, whose border of zeros makes them wrong if it is very narrow.
    """

    by_kernels = False

    def __init__(self, strides: Sequence[int], output_size: int, sampling_ratio: int) -> None:
        super().__init__([str(place) for place in range(len(strides))], output_size, sampling_ratio)
        self.scales = [1 / stride for stride in strides]
        lowest, highest = ((stride.bit_length() - 1) for stride in (strides[0], strides[-1]))
        self.map_levels = LevelMapper(lowest, highest, CANONICAL_SCALE, CANONICAL_LEVEL)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Return values float32 (regions, channels, output_size, output_size); `boxes` are in pixels of the images."""
        maps = [x[name] for name in self.featmap_names]
        fits = maps[0].dtype == torch.float32 and maps[0].shape[1] % kernels.LANES == 0
        if not (self.by_kernels and torch.is_grad_enabled() and fits):
            return super().forward(x, boxes, image_shapes)
        images = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(one) for one in boxes]))
        regions = torch.cat((images[:, None].to(torch.float32), torch.cat(boxes)), 1)
        levels = cast("LevelMapper", self.map_levels)(boxes)
        where = kernels.Pyramid(regions, levels, tuple(cast("list[float]", self.scales)))
        return cast("Tensor", _Regions.apply(where, self.output_size[0], self.sampling_ratio, *maps))


class Pooled(NamedTuple):
    """Values of regions and of whole pictures, each float32 (n, channels, output_size, output_size)."""

    regions: Tensor
    wholes: Tensor
    """One for each picture."""
    images: Tensor
    """int64 (regions,): the index of each region's picture."""


class ContextPool(RegionPool):
    """A pooling of regions, and of the whole pictures as regions of their own."""

    # pyrefly: ignore[bad-override]
    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Pooled:
        """Return the values; `boxes` are in pixels of the images."""
        wholes = [
            one.new_tensor([[0, 0, width, height]]) for one, (height, width) in zip(boxes, image_shapes, strict=True)
        ]
        values = super().forward(x, [torch.cat(pair) for pair in zip(boxes, wholes, strict=True)], image_shapes)
        counts = torch.tensor([len(one) for one in boxes], device=values.device)
        last = (counts + 1).cumsum(0) - 1
        regions = torch.ones(len(values), dtype=torch.bool, device=values.device).index_fill(0, last, False)
        return Pooled(
            values[regions], values[last], torch.arange(len(boxes), device=counts.device).repeat_interleave(counts)
        )


class ContextHead(nn.Module):
    """A head of regions whose features are followed by those of the region's whole picture (appendix B)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Pooled) -> Tensor:
        """Return features (regions, 2 * features of the head)."""
        return torch.cat((self.head(pooled.regions), self.head(pooled.wholes)[pooled.images]), 1)


class _Regions(torch.autograd.Function):
    """RoI align by our kernels."""

    @staticmethod
    # pyrefly: ignore[bad-override]
    def forward(ctx: Any, where: kernels.Pyramid, bins: int, samples: int, *maps: Tensor) -> Tensor:
        ctx.where, ctx.bins, ctx.samples = where, bins, samples
        ctx.shapes = [one.shape for one in maps]
        return kernels.roi_align_forward(maps, where, bins=bins, samples=samples)

    @staticmethod
    # pyrefly: ignore[bad-override]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = kernels.roi_align_backward(grad, ctx.shapes, ctx.where, bins=ctx.bins, samples=ctx.samples)
        return None, None, None, *gradients
