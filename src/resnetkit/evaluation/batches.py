"""How many pictures are evaluated at once: by network and size alone, so that every machine gets the same bits."""

from collections.abc import Mapping

from torch import nn

from resnetkit.models.maps import map_sizes
from resnetkit.models.resnet import ResNet

MAPS = 8  # of the largest size, in an evaluation, with the holes between them
BYTES = 2**29  # for those maps
MOST_PICTURES = 250  # at once: the kept results of CIFAR are of such batches


def evaluation_batch(net: ResNet, size: int) -> int:
    """Pictures of `size` × `size` that are evaluated at once: up to 250, and as many as take half a GiB."""
    return pictures_at_once(map_sizes(net, size))


def pictures_at_once(sizes: Mapping[nn.Module, int]) -> int:
    """The same for known maps: the numbers in each, for one picture."""
    return max(1, min(MOST_PICTURES, BYTES // bytes_per_picture(sizes)))


def bytes_per_picture(sizes: Mapping[nn.Module, int]) -> int:
    """Bytes that a picture takes in an evaluation, which is in float32."""
    return MAPS * 4 * max(sizes.values())
