"""Layers of networks derived from ResNet: squeeze-and-excitation, stochastic depth, blur, frozen batch normalisation.

Maps are float tensors of shape (n, channels, height, width).
"""

from math import comb

import torch
from torch import Tensor, nn
from torch.nn import functional

from resnetkit.models.geometry import squeezed_width


class SqueezeExcitation(nn.Module):
    """Scale each channel by a factor that is computed from the averages of all channels (arXiv:1709.01507, Fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed_width(channels), 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed_width(channels), channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same shape."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(squeezed))))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382), drawn for each picture of a batch.

    In training, a picture's map becomes zero with probability `rate`, which is below 1, and is divided by 1 - rate
    otherwise. In evaluation the map is not changed.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) to the same shape."""
        if not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)

    def extra_repr(self) -> str:
        """Return the rate as text, for repr."""
        return f"rate={self.rate:g}"


class Blur(nn.Module):
    """A binomial filter of `size` × `size` positions with a stride, against aliasing (arXiv:1904.11486, Sec. 4).

    The map is reflected at its borders, so each side must have more than `size // 2 * dilation` positions.
    """

    kernel: Tensor

    def __init__(self, size: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.stride, self.dilation, self.margin = stride, dilation, size // 2 * dilation
        taps = torch.tensor([float(comb(size - 1, tap)) for tap in range(size)]) / 2 ** (size - 1)
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, channels, ⌈h / stride⌉, ⌈w / stride⌉)."""
        channels = x.shape[1]
        x = functional.pad(x, (self.margin,) * 4, mode="reflect")
        weight = self.kernel.expand(channels, 1, -1, -1)
        return functional.conv2d(x, weight, stride=self.stride, dilation=self.dilation, groups=channels)


class DilatedAverage(nn.Module):
    """At every position, the average of 2×2 positions that are `dilation` apart: 2×2 pooling without its stride."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape. The last rows and columns are repeated beyond the border."""
        d = self.dilation
        x = (x + torch.cat([x[:, :, d:], x[:, :, -d:]], 2)) / 2
        return (x + torch.cat([x[:, :, :, d:], x[:, :, :, -d:]], 3)) / 2


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation as a fixed affine layer (appendix on detection), without trained weights or new statistics.

    Its tensors have the same names as those of nn.BatchNorm2d, and its output has the same bits as that of
    nn.BatchNorm2d in evaluation mode.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))  # so that a file fits both layers

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to the same shape."""
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        """Return the channels and epsilon as text, for repr."""
        return f"{len(self.weight)}, eps={self.eps:g}"
