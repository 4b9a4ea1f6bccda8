"""Freezing: the first parts of a network keep their weights while the other parts are trained."""

from torch import nn

from resnetkit.errors import UsageError
from resnetkit.models.resnet import ResNet


def freeze(net: ResNet, parts: int) -> None:
    """Freeze the first `parts` of `net.parts`: 1 is the stem, 2 also the first stage, and so on; 0 freezes nothing.

    Frozen weights get no gradients. Frozen batch normalisation uses its running statistics and does not change them.
    The last normalisation of a pre-activation net is never frozen. Raises UsageError if the network has fewer parts
    before its head.
    """
    *before_head, _ = net.parts.values()
    if parts > len(before_head):
        raise UsageError(f"`freeze` is {parts}; this network has {len(before_head)} parts before its head")
    for module in (module for part in before_head[:parts] for module in part if module is not net.norm):
        module.requires_grad_(False)
        module.eval()


def keep_statistics(net: ResNet) -> None:
    """Let every batch norm use its running statistics, and not change them. Factors and offsets are still trained."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
