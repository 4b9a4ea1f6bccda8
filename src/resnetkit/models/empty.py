"""A network without weights, into which the weights of a file are put."""

import torch

from resnetkit.models.layers import Blur
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import ModelSpec


def empty_network(spec: ModelSpec) -> ResNet:
    """Return a network on the meta device: its tensors have shapes and dtypes, but no memory and no values."""
    with torch.device("meta"):
        net = build(spec)
    for module in net.modules():
        if isinstance(module, Blur):  # its kernel is a constant that files do not contain
            module.kernel = Blur(len(module.kernel), module.stride).kernel
    return net
