"""What a network is made of, as data: names, tables, and the sizes of stems, blocks and convolutions."""

from typing import Literal, NamedTuple

BlockName = Literal["basic", "bottleneck"]
StemName = Literal["imagenet", "cifar"]
ShortcutName = Literal["A", "B", "C", "none"]
StridedKernel = Literal["1x1", "3x3"]
BlockShortcut = Literal["identity", "pad", "project", "none"]

CONVOLUTIONS: dict[BlockName, int] = {"basic": 2, "bottleneck": 3}
EXPANSION: dict[BlockName, int] = {"basic": 1, "bottleneck": 4}

# What a shortcut option puts beside a block that (keeps, changes) the dimensions. Sec. 4.1, "identity vs. projection".
SHORTCUTS: dict[ShortcutName, tuple[BlockShortcut, BlockShortcut]] = {
    "A": ("identity", "pad"),
    "B": ("identity", "project"),
    "C": ("project", "project"),
    "none": ("none", "none"),
}


class Stem(NamedTuple):
    """What comes before the first stage."""

    kernel: int
    """Width of the first convolution's square kernel."""
    stride: int
    """Stride of that convolution."""
    pool_stride: int
    """Stride of the max pooling after it; 1 is no pooling."""
    input_size: int
    """Side in pixels of the pictures that the stem was designed for."""


STEMS: dict[StemName, Stem] = {"imagenet": Stem(7, 2, 2, 224), "cifar": Stem(3, 1, 1, 32)}


class BlockSpec(NamedTuple):
    """One block of a network."""

    inputs: int
    planes: int
    """Channels of a basic block's convolutions; a bottleneck's inner width follows from it."""
    outputs: int
    stride: int
    dilation: int
    """Of the map that comes in: used by convolutions up to and including the one with the stride."""
    out_dilation: int
    """Of the map that goes out: used by the convolutions after that one."""
    reduction: int
    """Side of the picture over side of the map that goes out."""
    shortcut: BlockShortcut


class Convolution(NamedTuple):
    """One convolution without bias, with the normalisation behind it."""

    inputs: int
    outputs: int
    kernel: int
    reduction: int
    """Side of the picture over side of the map that goes out."""
    groups: int = 1

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    def macs(self, size: int) -> int:
        """Multiply-adds for one picture of `size` × `size` pixels."""
        # Every convolution and pooling of the family pads by half its kernel, so each stride rounds the side up.
        return self.weights * (-(-size // self.reduction)) ** 2


def bottleneck_width(planes: int, groups: int, width_per_group: int) -> int:
    """Return the channels of a bottleneck's 3×3 convolution: ResNeXt's cardinality × width, scaled to the stage."""
    return int(planes * (width_per_group / 64)) * groups
