"""The blocks and layers of a spec, from which sizes and costs are computed, and the words that its fields accept."""

import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from resnetkit.models.spec import ModelSpec

BlockName = Literal["basic", "bottleneck"]
StemName = Literal["imagenet", "cifar", "deep"]
ShortcutName = Literal["A", "B", "C", "none"]
StridedKernel = Literal["1x1", "3x3"]
OrderName = Literal["post", "pre"]
AttentionName = Literal["none", "se"]
NormName = Literal["batch", "group", "frozen"]
BlockShortcut = Literal["identity", "pad", "project", "none"]

CONVOLUTIONS: dict[BlockName, int] = {"basic": 2, "bottleneck": 3}
EXPANSION: dict[BlockName, int] = {"basic": 1, "bottleneck": 4}
NORM_GROUPS = 32  # groups of group normalisation: the best number in arXiv:1803.08494, Table 3
BLURS = (0, 3, 5, 7)  # a filter of even size would shift the map by half a position
ONE_PLACE = sys.maxsize  # a reduction after which the map of any picture has one position

# The shortcut of a block that (keeps, changes) the dimensions, for each option. Sec. 4.1, "identity vs. projection".
SHORTCUTS: dict[ShortcutName, tuple[BlockShortcut, BlockShortcut]] = {
    "A": ("identity", "pad"),
    "B": ("identity", "project"),
    "C": ("project", "project"),
    "none": ("none", "none"),
}


class Stem(NamedTuple):
    """The layers before the first stage."""

    kernels: tuple[int, ...]
    """Width of each convolution's square kernel."""
    stride: int
    """Stride of the first convolution."""
    pool_stride: int
    """Stride of the max pooling after the convolutions; 1 means no pooling."""
    input_size: int
    """Side in pixels of the pictures that the stem was designed for."""

    def widths(self, width: int) -> tuple[int, ...]:
        """Return the output channels of each convolution: `width` for the last one, half of it for those before."""
        return (*[width // 2] * (len(self.kernels) - 1), width)


STEMS: dict[StemName, Stem] = {
    "imagenet": Stem((7,), 2, 2, 224),
    "cifar": Stem((3,), 1, 1, 32),
    "deep": Stem((3, 3, 3), 2, 2, 224),
}


class BlockSpec(NamedTuple):
    """One block of a network."""

    inputs: int
    planes: int
    """Channels of a basic block's convolutions; a bottleneck's inner width is computed from it."""
    outputs: int
    stride: int
    dilation: int
    """Dilation of the input map: that of the convolutions up to and including the one with the stride."""
    out_dilation: int
    """Dilation of the output map: that of the convolutions after it."""
    reduction: int
    """Side of the picture divided by side of the output map."""
    shortcut: BlockShortcut
    shared: bool
    """With pre-activation: whether the shortcut, too, starts after the block's first ReLU."""
    drop_path: float = 0.0
    """Probability that a training step leaves out the residual."""

    @property
    def coarser(self) -> bool:
        """Whether the block has a stride, or a dilation that replaces one."""
        return self.stride > 1 or self.dilation != self.out_dilation


class Convolution(NamedTuple):
    """One convolution."""

    inputs: int
    outputs: int
    kernel: int
    reduction: int
    """Side of the picture divided by side of the output map."""
    groups: int = 1
    bias: bool = False
    fixed: bool = False
    """Whether its weights are constants that are not trained."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return 0 if self.fixed else self.weights + self.bias * self.outputs

    def macs(self, size: int) -> int:
        """Return the multiply-adds for one picture of `size` × `size` pixels."""
        # Every convolution and pooling pads by half its kernel, so each stride rounds the side up.
        return self.weights * (-(-size // self.reduction)) ** 2


class Normalisation(NamedTuple):
    """One normalisation. Its cost is not counted, as in the paper."""

    channels: int
    fixed: bool = False

    @property
    def parameters(self) -> int:
        """Number of trainable parameters: a gain and an offset for each channel."""
        return 0 if self.fixed else 2 * self.channels

    def macs(self, size: int) -> int:
        """Return 0, for a picture of any size."""
        return 0


def bottleneck_width(planes: int, groups: int, width_per_group: int) -> int:
    """Return the channels of a bottleneck's 3×3 convolution: ResNeXt's cardinality × width, scaled to the stage."""
    return int(planes * (width_per_group / 64)) * groups


def squeezed_width(channels: int) -> int:
    """Return the inner channels of squeeze-and-excitation: a sixteenth (arXiv:1709.01507, Sec. 6.1), and at least 8."""
    return max(8, channels // 16)


def stages(spec: "ModelSpec") -> tuple[tuple[BlockSpec, ...], ...]:
    """Return the blocks of each stage, in order."""
    stem = STEMS[spec.stem]
    inputs, reduction, dilation = spec.width, stem.stride * stem.pool_stride, 1
    dilated = (False, *spec.dilated) if spec.dilated else (False,) * len(spec.depths)
    same, changed = SHORTCUTS[spec.shortcut]
    blocks = sum(spec.depths)
    # arXiv:1603.09382, Sec. 3, "linear decay": the deeper the block, the more often it is left out.
    rates = (spec.drop_path * index / max(1, blocks - 1) for index in range(blocks))
    made: list[tuple[BlockSpec, ...]] = []
    for stage, (depth, dilate) in enumerate(zip(spec.depths, dilated, strict=True)):
        planes = spec.width * 2**stage
        step = 1 if stage == 0 else 2
        outputs = planes * EXPANSION[spec.block]
        stride = 1 if dilate else step
        out_dilation = dilation * step // stride
        reduction *= stride
        joins = same if (stride, inputs) == (1, outputs) else changed
        # arXiv:1603.05027, Appendix: "we adopt the first activation right after conv1 and before splitting". Published
        # networks with a pooling in between don't do so in the first block. All networks do so in blocks that change
        # the dimensions, as in the authors' code.
        shared = joins != "identity" or (stage == 0 and stem.pool_stride == 1)
        first = BlockSpec(inputs, planes, outputs, stride, dilation, out_dilation, reduction, joins, shared)
        later = BlockSpec(outputs, planes, outputs, 1, out_dilation, out_dilation, reduction, same, same != "identity")
        made.append(tuple(block._replace(drop_path=next(rates)) for block in (first, *[later] * (depth - 1))))
        inputs, dilation = outputs, out_dilation
    return tuple(made)


def least_size(spec: "ModelSpec") -> int:
    """Return the smallest side in pixels of a picture. A map before a blur must be larger than half the filter."""
    if not spec.blur:
        return 1
    stem = STEMS[spec.stem]
    blurred = [(stem.stride, 1)] if stem.pool_stride > 1 else []
    blocks = chain.from_iterable(spec.stages)
    blurred += [(block.reduction // block.stride, block.dilation) for block in blocks if block.coarser]
    return 1 + max((reduction * dilation * (spec.blur // 2) for reduction, dilation in blurred), default=0)


def iter_layers(spec: "ModelSpec") -> Iterator[Convolution | Normalisation]:
    """Yield every convolution and normalisation; sizes and costs are sums over them."""
    stem, fixed, pre = STEMS[spec.stem], spec.norm == "frozen", spec.order == "pre"
    inputs = spec.in_channels
    for outputs, kernel in zip(stem.widths(spec.width), stem.kernels, strict=True):
        yield Convolution(inputs, outputs, kernel, stem.stride)
        inputs = outputs
    for channels in stem.widths(spec.width)[: -1 if pre else None]:
        yield Normalisation(channels, fixed)
    if spec.blur and stem.pool_stride > 1:
        yield _blur(spec.width, spec.blur, stem.stride * stem.pool_stride)
    for block in chain.from_iterable(spec.stages):
        convolutions = residual(spec, block)
        for convolution in convolutions:
            yield convolution
            yield Normalisation(convolution.inputs if pre else convolution.outputs, fixed)
        if spec.blur and block.coarser:
            yield _blur(convolutions[-1].inputs, spec.blur, block.reduction)
        if spec.attention == "se":
            inner = squeezed_width(block.outputs)
            yield Convolution(block.outputs, inner, 1, ONE_PLACE, bias=True)
            yield Convolution(inner, block.outputs, 1, ONE_PLACE, bias=True)
        if block.shortcut == "project":
            yield Convolution(block.inputs, block.outputs, 1, block.reduction)
            if not pre:
                yield Normalisation(block.outputs, fixed)
    if pre:
        yield Normalisation(spec.channels[-1], fixed)


def residual(spec: "ModelSpec", block: BlockSpec) -> tuple[Convolution, ...]:
    """Return the convolutions of one block, without that of its shortcut."""
    inputs, planes, outputs, reduction = block.inputs, block.planes, block.outputs, block.reduction
    before = reduction // block.stride
    strided = before if spec.blur else reduction  # a blur has the stride instead of the convolution
    if spec.block == "basic":
        return Convolution(inputs, planes, 3, strided), Convolution(planes, outputs, 3, reduction)
    inner = bottleneck_width(planes, spec.groups, spec.width_per_group)
    return (
        Convolution(inputs, inner, 1, before if spec.downsample_in == "3x3" else strided),
        Convolution(inner, inner, 3, strided, spec.groups),
        Convolution(inner, outputs, 1, reduction),
    )


def _blur(channels: int, kernel: int, reduction: int) -> Convolution:
    return Convolution(channels, channels, kernel, reduction, groups=channels, fixed=True)
