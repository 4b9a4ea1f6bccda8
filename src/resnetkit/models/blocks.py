"""The blocks of Fig. 5 and their shortcuts. Tensor names and initial values are those of torchvision.

Images and maps are float tensors of shape (n, channels, height, width).
"""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from resnetkit.errors import UsageError
from resnetkit.models.geometry import EXPANSION, AttentionName, StridedKernel, bottleneck_width
from resnetkit.models.layers import Blur, DilatedAverage, DropPath, SqueezeExcitation

NormLayer = Callable[[int], nn.Module]
"""Returns a normalisation for a map with the given number of channels."""


def conv3x3(in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a 3×3 convolution without bias. Height and width are divided by `stride` and rounded up."""
    return nn.Conv2d(in_planes, out_planes, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1×1 convolution without bias."""
    return nn.Conv2d(in_planes, out_planes, 1, stride, bias=False)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th position of the map, and zeros for the new channels. It has no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ⌈h / stride⌉, ⌈w / stride⌉); the new channels are the last ones."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(inputs: int, outputs: int, stride: int = 1, norm_layer: NormLayer = nn.BatchNorm2d) -> nn.Sequential:
    """Return option B: a 1×1 convolution and its normalisation."""
    return nn.Sequential(conv1x1(inputs, outputs, stride), norm_layer(outputs))


def pooled_projection(
    inputs: int,
    outputs: int,
    stride: int = 1,
    norm_layer: NormLayer = nn.BatchNorm2d,
    *,
    dilation: int = 1,
    out_dilation: int = 1,
) -> nn.Sequential:
    """Return ResNet-D's projection: 2×2 averages instead of a stride that skips positions (arXiv:1812.01187, Fig. 2c).

    `dilation` is that of the input map, `out_dilation` that of the output map.
    """
    pool: nn.Module = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True)
    elif dilation != out_dilation:
        pool = DilatedAverage(dilation)
    return nn.Sequential(pool, conv1x1(inputs, outputs), norm_layer(outputs))


def _blurred(blur: int, stride: int, dilation: int, out_dilation: int) -> tuple[int, nn.Module]:
    """Return the stride of a convolution, and the blur after it. If there is a blur, it has the stride."""
    if blur and (stride > 1 or dilation != out_dilation):
        return 1, Blur(blur, stride, dilation)
    return stride, nn.Identity()


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (Fig. 5, left). Raises UsageError for groups or another base width.

    `dilation` is that of the input map, `out_dilation` that of the output map (default: the same). They differ if
    dilation replaces a stride; the block then combines the same positions as with the stride. `blur` is the size of the
    filter that has the stride instead of the convolution (0: no filter). `drop_path` is the probability, below 1, that
    a training step leaves out the residual.
    """

    expansion: ClassVar[int] = EXPANSION["basic"]
    relu1_in_place: ClassVar[bool] = True

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
        attention: AttentionName = "none",
        blur: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if (groups, base_width, downsample_in) != (1, 64, "3x3"):
            raise UsageError(
                "a basic block needs `groups` 1, `base_width` 64 and `downsample_in` 3x3; use a bottleneck for others"
            )
        norm_layer = norm_layer or nn.BatchNorm2d
        out_dilation = out_dilation or dilation
        stride, blurred = _blurred(blur, stride, dilation, out_dilation)
        self.conv1 = conv3x3(inplanes, planes, stride, dilation=dilation)
        self.bn1 = norm_layer(self.normalised(self.conv1))
        self.relu1 = nn.ReLU(inplace=self.relu1_in_place)
        self.blur = blurred
        self.conv2 = conv3x3(planes, planes, dilation=out_dilation)
        self.bn2 = norm_layer(self.normalised(self.conv2))
        self.se = SqueezeExcitation(planes) if attention == "se" else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = downsample or nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def normalised(conv: nn.Conv2d) -> int:
        """Channels of the normalisation that belongs to a convolution."""
        return conv.out_channels

    @property
    def last_layer(self) -> nn.Module:
        """The last layer whose `weight` scales the residual before the addition."""
        return self.bn2

    def residual(self, x: Tensor) -> Tensor:
        """F(x) of Eq. 1: shape (n, planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition and its ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(self.blur(x)))
        return self.drop_path(self.se(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x) + self.downsample(x))


class Bottleneck(nn.Module):
    """Convolutions of 1×1, 3×3 and 1×1 and a shortcut (Fig. 5, right); with groups, ResNeXt's block.

    `downsample_in` names the convolution with the stride; with a blur, the blur after the 3×3 has the stride. Other
    arguments are those of BasicBlock. Raises UsageError for a blur with `downsample_in` 1x1.
    """

    expansion: ClassVar[int] = EXPANSION["bottleneck"]
    relu1_in_place: ClassVar[bool] = True

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
        attention: AttentionName = "none",
        blur: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if blur and downsample_in == "1x1":
            raise UsageError("a bottleneck with a `blur` has its stride in the 3x3; leave out `downsample_in` 1x1")
        norm_layer = norm_layer or nn.BatchNorm2d
        out_dilation = out_dilation or dilation
        width = bottleneck_width(planes, groups, base_width)
        outputs = planes * self.expansion
        stride, blurred = _blurred(blur, stride, dilation, out_dilation)
        if downsample_in == "1x1":  # the 3×3 then comes after the stride, and its input has the dilation of the output
            strides, dilation = (stride, 1), out_dilation
        else:
            strides = (1, stride)
        self.conv1 = conv1x1(inplanes, width, strides[0])
        self.bn1 = norm_layer(self.normalised(self.conv1))
        self.relu1 = nn.ReLU(inplace=self.relu1_in_place)
        self.conv2 = conv3x3(width, width, strides[1], groups, dilation)
        self.bn2 = norm_layer(self.normalised(self.conv2))
        self.relu2 = nn.ReLU(inplace=True)
        self.blur = blurred
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = norm_layer(self.normalised(self.conv3))
        self.se = SqueezeExcitation(outputs) if attention == "se" else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.downsample = downsample or nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def normalised(conv: nn.Conv2d) -> int:
        """Channels of the normalisation that belongs to a convolution."""
        return conv.out_channels

    @property
    def last_layer(self) -> nn.Module:
        """The last layer whose `weight` scales the residual before the addition."""
        return self.bn3

    def residual(self, x: Tensor) -> Tensor:
        """F(x) of Eq. 1: shape (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition and its ReLU."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(self.blur(x)))
        return self.drop_path(self.se(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x) + self.downsample(x))


class PlainBasicBlock(BasicBlock):
    """A BasicBlock without a shortcut: the block of the paper's plain nets."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x))


class PlainBottleneck(Bottleneck):
    """A Bottleneck without a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.relu(self.residual(x))
