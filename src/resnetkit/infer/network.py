"""The network as it is exported: batch normalisation folded into the convolutions, one output, normalised input."""

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.models.blocks import BasicBlock, Bottleneck
from resnetkit.models.layers import FrozenBatchNorm2d
from resnetkit.models.preactivation import PreBasicBlock, PreBottleneck
from resnetkit.models.resnet import ResNet

Net = TypeVar("Net", bound=nn.Module)

ExportOutput: TypeAlias = Literal["logits", "probabilities", "pool", "c5"]
"""logits and probabilities (n, classes); c5, the feature map of the last stage (n, channels, h, w), which in a CIFAR
network is the third stage; pool, the mean of c5 over h and w (n, channels)."""


class ExportedNetwork(nn.Module):
    """A network with one output, and with the normalisation of its input if asked.

    With `with_preprocess`, the input is pixels from Preprocess.pixels, uint8 (n, size, size, channels), and is
    normalised as by Preprocess.normalize. Without it, the input is normalised images, float32 (n, channels, size,
    size). Probabilities are those of the logits divided by `temperature`: sigmoids if `multilabel`, else a softmax.
    `net` is not copied.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: ResNet,
        preprocess: Preprocess,
        *,
        output: ExportOutput = "logits",
        with_preprocess: bool = True,
        temperature: float = 1.0,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.output: ExportOutput = output
        self.with_preprocess = with_preprocess
        self.temperature = temperature
        self.multilabel = multilabel
        self.preprocess = preprocess
        side = 1 if len(preprocess.mean) == preprocess.channels else preprocess.size
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, preprocess.channels, side, side))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, preprocess.channels, 1, 1))

    @property
    def input(self) -> str:
        """The name of the input: pixels or images."""
        return "pixels" if self.with_preprocess else "images"

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the input for a batch of `batch` pictures."""
        channels, size = self.preprocess.channels, self.preprocess.size
        return (batch, size, size, channels) if self.with_preprocess else (batch, channels, size, size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the output for pixels or images, in float32; ExportOutput gives the shapes."""
        images = self.normalize(pixels) if self.with_preprocess else pixels
        last = self.net.run(images, last=self.net.stage_names[-1])
        if self.output == "c5":
            return last
        pooled = last.mean((2, 3))  # equals ResNet.avgpool, and is a single operator in every format
        if self.output == "pool":
            return pooled
        logits = self.net.fc(pooled)
        if self.output == "logits":
            return logits
        logits = logits if self.temperature == 1 else logits / self.temperature
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise pixels: uint8 (n, size, size, channels) to float32 (n, channels, size, size)."""
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std


def folded(net: Net) -> Net:
    """Return a copy in evaluation mode with every batch normalisation that follows a convolution folded into it.

    The weights are multiplied by the factor of the normalisation, and its offset becomes the bias; both are computed in
    float64. In a pre-activation network, the first normalisation of a block follows an addition and is not folded.
    """
    net = deepcopy(net).eval()
    for owner in list(net.modules()):
        for conv, name in normalised_convolutions(owner):
            norm = getattr(owner, name)
            if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d) and norm.running_mean is not None:
                _fold(conv, norm)
                setattr(owner, name, nn.Identity())
    return net


def normalised_convolutions(owner: nn.Module) -> Iterator[tuple[nn.Conv2d, str]]:
    """Yield each convolution whose output only one normalisation of `owner` uses, and the name of this one."""
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
        case nn.Sequential():  # projections, and the first two convolutions of a deep stem
            names = list(pairwise(dict(owner.named_children())))
        case _:
            return
    for conv_name, norm_name in names:
        conv = getattr(owner, conv_name)
        conv = conv[-1] if isinstance(conv, nn.Sequential) and len(conv) else conv  # the last one of a deep stem
        if isinstance(conv, nn.Conv2d):
            yield conv, norm_name


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    """Make conv(x) equal norm(conv(x)) = (W x + b - mean) · gain + bias, with gain = weight / sqrt(var + eps)."""
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
