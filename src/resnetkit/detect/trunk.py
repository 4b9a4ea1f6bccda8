"""The trunk of a detector: a residual network without its classifier, with its fixed normalisations folded."""

from typing import cast

from torch import Tensor, nn

from resnetkit.detect.computing import KernelConv2d
from resnetkit.infer.network import normalised_convolutions
from resnetkit.models.layers import FrozenBatchNorm2d
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import ModelSpec


class ScaledConv2d(KernelConv2d):
    """A convolution with the fixed normalisation after it, as one convolution whose weights are trained.

    The weight is that of the plain convolution, and is multiplied by the normalisation's gain at every call. So the map
    is read and written once, and not a second time for the normalisation.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        super().__init__(conv, bias=False)
        self._norm = (norm,)  # in a tuple, so that its tensors are not also those of this module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, the name in torch
        """(n, in_channels, h, w) to (n, out_channels, h / stride, w / stride), normalised."""
        (norm,) = self._norm
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.convolve(input, self.weight * gain[:, None, None, None], norm.bias - norm.running_mean * gain)

    def plain(self) -> nn.Conv2d:
        """Return the convolution without the normalisation, with the same weight."""
        kernel, stride, padding, dilation = self.kernel_size, self.stride, self.padding, self.dilation
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            cast("tuple[int, int]", kernel),
            cast("tuple[int, int]", stride),
            padding=cast("tuple[int, int]", padding),
            dilation=cast("tuple[int, int]", dilation),
            groups=self.groups,
            bias=False,
            device="meta",
        )
        conv.weight = self.weight
        return conv


def without_scaled(net: nn.Module) -> None:
    """Replace, in place, each ScaledConv2d of a network by its plain convolution, which misses the normalisation."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ScaledConv2d):
                setattr(parent, name, child.plain())


class FoldedNorm2d(FrozenBatchNorm2d):
    """The tensors of a fixed normalisation that the convolution before it computes."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, which is normalised already."""
        return x


def make_trunk(spec: ModelSpec, *, eps: float) -> ResNet:
    """Return the network of `spec`, whose norm must be frozen, without its classifier, and with random weights.

    Its tensors have the same names as those of the plain network.
    """
    net = build(spec, norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps))
    net.fc = cast("nn.Linear", nn.Identity())
    for owner in list(net.modules()):
        for conv, name in normalised_convolutions(owner):
            norm = getattr(owner, name)
            if not isinstance(norm, FrozenBatchNorm2d):  # the stem of a pre-activation net has none
                continue
            folded = FoldedNorm2d(len(norm.weight), eps)
            setattr(owner, name, folded)
            _replace(owner, conv, ScaledConv2d(conv, folded))
    return net


def _replace(owner: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` into the place of `old`, which is below `owner`."""
    for parent in owner.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
