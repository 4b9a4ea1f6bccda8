"""The batch size of evaluation. It depends only on the network and the picture size, so all machines get equal bits."""

from collections.abc import Mapping

from torch import nn

from resnetkit.models.maps import map_sizes
from resnetkit.models.resnet import ResNet

MAPS = 8  # maps of the largest size whose memory equals that of an evaluation, including unused space in the heap
BYTES = 2**29  # bytes that these maps may need
MOST_PICTURES = 250  # largest batch; the published results on CIFAR were measured with this batch size


def evaluation_batch(net: ResNet, size: int) -> int:
    """Return the batch size for pictures of `size` × `size` pixels: 250, or as many as fit into half a GiB."""
    return pictures_at_once(map_sizes(net, size))


def pictures_at_once(sizes: Mapping[nn.Module, int]) -> int:
    """Return the batch size for maps of these sizes: the number of elements of each map for one picture."""
    return max(1, min(MOST_PICTURES, BYTES // bytes_per_picture(sizes)))


def bytes_per_picture(sizes: Mapping[nn.Module, int]) -> int:
    """Return the bytes that one picture needs in an evaluation in float32; `sizes` as in `pictures_at_once`."""
    return MAPS * 4 * max(sizes.values())
