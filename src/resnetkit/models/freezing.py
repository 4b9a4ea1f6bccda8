"""Keeping the first parts of a network as they are while the others are trained."""

from resnetkit.errors import UsageError
from resnetkit.models.resnet import ResNet


def freeze(net: ResNet, parts: int) -> None:
    """Freeze the first `parts` of `net.parts`: 1 is the stem, 2 also the first stage, and so on; 0 freezes nothing.

    Their weights get no gradients, and their batch normalisation keeps its running statistics and computes with them.
    The last normalisation of a pre-activation net is never frozen. Raises UsageError where there are fewer parts
    before the head.
    """
    *before_head, _ = net.parts.values()
    if parts > len(before_head):
        raise UsageError(f"`freeze` is {parts}; this network has {len(before_head)} parts before its head")
    for module in (module for part in before_head[:parts] for module in part if module is not net.norm):
        module.requires_grad_(False)
        module.eval()
