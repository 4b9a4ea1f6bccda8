"""How many pictures are evaluated at once. Network and size alone decide it, so every machine gets the same bits."""

from collections.abc import Mapping

from torch import nn

from resnetkit.models.maps import map_sizes
from resnetkit.models.resnet import ResNet

MAPS = 8  # that memory holds at once in an evaluation, counted as if all were the largest, with unused memory between
BYTES = 2**29  # that those maps may take
MOST_PICTURES = 250  # in a batch: the published results on CIFAR are of such batches


def evaluation_batch(net: ResNet, size: int) -> int:
    """How many pictures of `size` × `size` pixels to evaluate at once: 250, or fewer where they need half a GiB."""
    return pictures_at_once(map_sizes(net, size))


def pictures_at_once(sizes: Mapping[nn.Module, int]) -> int:
    """`evaluation_batch` where it is known how many numbers each map of one picture has."""
    return max(1, min(MOST_PICTURES, BYTES // bytes_per_picture(sizes)))


def bytes_per_picture(sizes: Mapping[nn.Module, int]) -> int:
    """Bytes that one picture takes in an evaluation, in float32; `sizes` as in `pictures_at_once`."""
    return MAPS * 4 * max(sizes.values())
