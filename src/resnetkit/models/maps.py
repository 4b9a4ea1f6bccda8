"""The shapes of the feature maps in a network, without computing the maps."""

import copy

import torch
from torch import Tensor, nn

from resnetkit.models.resnet import ResNet


def map_shapes(net: ResNet, size: int) -> dict[nn.Module, torch.Size]:
    """Return the output shape (1, channels, height, width) of each convolution, batch norm and block.

    The shapes are for one picture of `size` × `size` pixels. A copy of the network runs on the meta device: no values
    are computed, and no weights are copied.
    """
    shapes: dict[nn.Module, torch.Size] = {}
    empty = {id(tensor): tensor.detach().to("meta") for tensor in (*net.parameters(), *net.buffers())}
    shadow: ResNet = copy.deepcopy(net, dict(empty))
    twins = dict(zip(shadow.modules(), net.modules(), strict=True))

    def note(module: nn.Module, _: object, out: Tensor) -> None:
        shapes[twins[module]] = out.shape

    blocks = set(shadow.blocks)
    for module in shadow.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # copies of the caller's hooks
            hooks.clear()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or module in blocks:
            module.register_forward_hook(note)
    with torch.no_grad():
        shadow.eval()(torch.empty(1, net.spec.in_channels, size, size, device="meta"))
    return shapes


def map_sizes(net: ResNet, size: int) -> dict[nn.Module, int]:
    """Return the number of elements of each map in `map_shapes`."""
    return {module: shape.numel() for module, shape in map_shapes(net, size).items()}
