"""The shapes of the maps in a network, found without computing anything."""

import copy

import torch
from torch import Tensor, nn

from resnetkit.models.resnet import ResNet


def map_shapes(net: ResNet, size: int) -> dict[nn.Module, torch.Size]:
    """For each convolution, batch norm and block: the shape (1, channels, height, width) of its output for one picture.

    The picture has `size` × `size` pixels. Nothing is computed, and no weight is copied.
    """
    shapes: dict[nn.Module, torch.Size] = {}
    empty = {id(tensor): tensor.detach().to("meta") for tensor in (*net.parameters(), *net.buffers())}
    shadow: ResNet = copy.deepcopy(net, dict(empty))
    twins = dict(zip(shadow.modules(), net.modules(), strict=True))

    def note(module: nn.Module, _: object, out: Tensor) -> None:
        shapes[twins[module]] = out.shape

    blocks = set(shadow.blocks)
    for module in shadow.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):  # copies of those that the caller set
            hooks.clear()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) or module in blocks:
            module.register_forward_hook(note)
    with torch.no_grad():
        shadow.eval()(torch.empty(1, net.spec.in_channels, size, size, device="meta"))
    return shapes


def map_sizes(net: ResNet, size: int) -> dict[nn.Module, int]:
    """How many numbers each of the maps of `map_shapes` has."""
    return {module: shape.numel() for module, shape in map_shapes(net, size).items()}
