"""What an exported file computes: a network with its normalisations folded, the preprocessing before it on request."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.models.blocks import BasicBlock, Bottleneck
from resnetkit.models.layers import FrozenBatchNorm2d
from resnetkit.models.preactivation import PreBasicBlock, PreBottleneck
from resnetkit.models.resnet import ResNet

ExportOutput: TypeAlias = Literal["logits", "probabilities", "pool", "c5"]
"""logits and probabilities (n, classes); pool, the last map averaged over its places (n, channels); c5, that map itself
(n, channels, h, w): the last one of ResNet.features, which in a CIFAR net is the third."""


class ExportedNetwork(nn.Module):
    """A network from pixels, or from normalised images, to one output. Its weights are those of `net`.

    With preprocessing it takes uint8 (n, size, size, channels), as Preprocess.pixels gives them, and normalises them as
    Preprocess.normalize does; without, float32 (n, channels, size, size), already normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: ResNet, preprocess: Preprocess, *, output: ExportOutput = "logits", with_preprocess: bool = True
    ) -> None:
        super().__init__()
        self.net = net
        self.output: ExportOutput = output
        self.with_preprocess = with_preprocess
        self.preprocess = preprocess
        side = 1 if len(preprocess.mean) == preprocess.channels else preprocess.size
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, preprocess.channels, side, side))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, preprocess.channels, 1, 1))

    @property
    def input(self) -> str:
        """What it takes: pixels or images."""
        return "pixels" if self.with_preprocess else "images"

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Of a batch of so many."""
        channels, size = self.preprocess.channels, self.preprocess.size
        return (batch, size, size, channels) if self.with_preprocess else (batch, channels, size, size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels, or images, to what `output` says, in float32."""
        last = self.net.features(self.normalize(pixels) if self.with_preprocess else pixels)[-1]
        if self.output == "c5":
            return last
        pooled = last.mean((2, 3))  # as ResNet.avgpool computes it, but a single operator in every format
        if self.output == "pool":
            return pooled
        logits = self.net.fc(pooled)
        return logits.softmax(dim=1) if self.output == "probabilities" else logits

    def normalize(self, pixels: Tensor) -> Tensor:
        """Uint8 (n, size, size, channels) to float32 (n, channels, size, size)."""
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


def folded(net: ResNet) -> ResNet:
    """A copy in evaluation mode in which every batch normalisation that follows a convolution has become part of it.

    What the normalisation multiplies by goes into the weights, and what it adds becomes the bias, computed in float64.
    In a pre-activation net those that come first in a block, behind a sum, stay.
    """
    net = deepcopy(net).eval()
    for owner in list(net.modules()):
        for conv, name in _normalised(owner):
            norm = getattr(owner, name)
            if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d) and norm.running_mean is not None:
                _fold(conv, norm)
                setattr(owner, name, nn.Identity())
    return net


def _normalised(owner: nn.Module) -> Iterator[tuple[nn.Conv2d, str]]:
    """The convolutions whose output goes nowhere but into a normalisation in `owner`, with the name of that."""
    match owner:
        case PreBasicBlock():
            names = [("conv1", "bn2")]
        case PreBottleneck():
            names = [("conv1", "bn2"), ("conv2", "bn3")]
        case BasicBlock():
            names = [("conv1", "bn1"), ("conv2", "bn2")]
        case Bottleneck():
            names = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
        case ResNet():
            names = [("conv1", "bn1")]
        case nn.Sequential():  # projections, and the first convolutions of a deep stem
            names = list(pairwise(dict(owner.named_children())))
        case _:
            return
    for conv_name, norm_name in names:
        conv = getattr(owner, conv_name)
        conv = conv[-1] if isinstance(conv, nn.Sequential) and len(conv) else conv  # of a deep stem
        if isinstance(conv, nn.Conv2d):
            yield conv, norm_name


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Make conv(x) what norm(conv(x)) was: (W x + b - mean) · gain + shift, with gain = weight / sqrt(var + eps)."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    gain = (variance.double() + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight.detach().double()
    shift = -mean.double() * gain
    if conv.bias is not None:
        shift += conv.bias.detach().double() * gain
    if norm.bias is not None:
        shift += norm.bias.detach().double()
    weight = conv.weight.detach().double() * gain[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
