"""The blocks of Fig. 5 and the shortcuts beside them. Tensor names and first values are torchvision's.

Images and maps are float tensors of shape (n, channels, height, width).
"""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from resnetkit.errors import UsageError
from resnetkit.models.geometry import EXPANSION, StridedKernel, bottleneck_width

NormLayer = Callable[[int], nn.Module]
"""Makes the normalisation of a map with so many channels."""


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution without bias that keeps height and width, or divides them by `stride`, rounding up."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th place of the map, with zeros for the channels that are new. No parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, ⌈h / stride⌉, ⌈w / stride⌉); the new channels are the last ones."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(inputs: int, outputs: int, stride: int = 1, norm_layer: NormLayer = nn.BatchNorm2d) -> nn.Sequential:
    """Option B: a 1×1 convolution and its normalisation."""
    return nn.Sequential(conv1x1(inputs, outputs, stride), norm_layer(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (Fig. 5, left). Raises UsageError for groups or another base width.

    `dilation` is that of the map that comes in, `out_dilation` that of the map that goes out (default: the same).
    Where a stride was replaced by dilation they differ, and only then does the block see what it saw with its stride.
    """

    expansion: ClassVar[int] = EXPANSION["basic"]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
        *,
        out_dilation: int | None = None,
    ) -> None:
        super().__init__()
        if (groups, base_width) != (1, 64):
            raise UsageError("a basic block takes no groups and no base_width but 64; use a bottleneck")
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride, dilation=dilation)
        self.bn1 = norm_layer(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(planes, planes, dilation=out_dilation or dilation)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample or nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation just before the addition."""
        return self.bn2

    def residual(self, x: Tensor) -> Tensor:
        """F(x) of Eq. 1: shape (n, planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition and its ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x) + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions of 1×1, 3×3 and 1×1 beside a shortcut (Fig. 5, right); with groups, ResNeXt's block.

    `downsample_in` says which convolution has the stride; dilations as in BasicBlock.
    """

    expansion: ClassVar[int] = EXPANSION["bottleneck"]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
        *,
        out_dilation: int | None = None,
        downsample_in: StridedKernel = "3x3",
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = bottleneck_width(planes, groups, base_width)
        outputs = planes * self.expansion
        if downsample_in == "1x1":  # the 3×3 then comes after the stride, and works on the map that goes out
            strides, dilation = (stride, 1), out_dilation or dilation
        else:
            strides = (1, stride)
        self.conv1 = conv1x1(inplanes, width, strides[0])
        self.bn1 = norm_layer(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, strides[1], groups, dilation)
        self.bn2 = norm_layer(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = norm_layer(outputs)
        self.downsample = downsample or nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norm(self) -> nn.Module:
        """The normalisation just before the addition."""
        return self.bn3

    def residual(self, x: Tensor) -> Tensor:
        """F(x) of Eq. 1: shape (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition and its ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x) + self.downsample(x))


class PlainBasicBlock(BasicBlock):
    """The same convolutions without a shortcut: the paper's plain net."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x))


class PlainBottleneck(Bottleneck):
    """The same convolutions without a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x))
