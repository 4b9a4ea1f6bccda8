"""A detector as two networks that can be exported: from a picture to proposals, and from regions to boxes.

What is between them depends on the picture: the choice of proposals and the pooling of regions. See `finders`.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.rpn import concat_box_prediction_layers

from resnetkit.detect.computing import ContextHead
from resnetkit.detect.model import DIVISIBLE, Detector
from resnetkit.detect.trunk import without_scaled
from resnetkit.infer.network import folded

PROPOSALS, REGIONS = "proposals", "regions"
"""Names of the two graphs."""
OUTPUTS = {PROPOSALS: ("features", "objectness", "offsets"), REGIONS: ("logits", "offsets")}
"""The names of the outputs of each graph."""
INPUTS = {PROPOSALS: "images", REGIONS: "regions"}


class ProposalGraph(nn.Module):
    """The trunk, the pyramid on its maps, and the head that proposes regions, for one picture of any size."""

    def __init__(self, net: Detector) -> None:
        super().__init__()
        self.backbone, self.head = net.backbone, net.rpn.head
        self.pooled = tuple(net.roi_heads.box_roi_pool.featmap_names)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map a normalised picture, (1, 3, h, w) with sides that DIVISIBLE divides, to features and proposals.

        features (positions, channels): the maps from which regions are pooled, one after the other, row by row.
        objectness (anchors, 1) and offsets (anchors, 4): logits and corrections of all anchors, in torchvision's order.
        """
        maps = self.backbone(images)
        features = torch.cat([maps[name][0].permute(1, 2, 0).flatten(0, 1) for name in self.pooled])
        objectness, offsets = concat_box_prediction_layers(*self.head(list(maps.values())))
        return features, objectness.reshape(-1, 1), offsets


class RegionGraph(nn.Module):
    """The head of the regions."""

    def __init__(self, net: Detector) -> None:
        super().__init__()
        self.context = net.spec.context
        box_head = net.roi_heads.box_head
        self.head = box_head.head if isinstance(box_head, ContextHead) else box_head
        self.predictor = net.roi_heads.box_predictor
        self.side = net.roi_heads.box_roi_pool.output_size[0]
        if isinstance(self.head, TwoMLPHead):
            # Its weights take the order of the input, so that no map has to be reordered.
            weight = self.head.fc6.weight.detach().unflatten(1, (-1, self.side, self.side))
            self.head.fc6.weight = nn.Parameter(weight.permute(0, 2, 3, 1).flatten(1).contiguous())

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Map pooled regions (n, side, side, channels) to logits (n, classes + 1) and offsets (n, 4 (classes + 1)).

        With global context, there is one region more, the last: the whole picture, whose features join all others.
        """
        ordered = isinstance(self.head, TwoMLPHead)
        features = self.head(regions if ordered else regions.permute(0, 3, 1, 2))
        if self.context:
            each, whole = features[:-1], features[-1:]
            features = torch.cat((each, whole.expand(len(each), -1)), 1)
        logits, offsets = self.predictor(features)
        return logits, offsets


def as_graphs(net: Detector) -> tuple[ProposalGraph, RegionGraph]:
    """Return the two networks of a copy of a detector, in evaluation mode and float32 on the CPU.

    Fixed normalisations are folded into the convolutions before them.
    """
    copied = deepcopy(net).eval().float().cpu().requires_grad_(False)
    without_scaled(copied)
    copied = folded(copied)
    return ProposalGraph(copied), RegionGraph(copied)


def example(net: Detector) -> tuple[Tensor, Tensor]:
    """Return an input for each of the two networks, as small as exporting allows."""
    channels = net.trunk.channels[-2] if net.spec.head == "c4" else net.spec.width
    side = net.roi_heads.box_roi_pool.output_size[0]
    return torch.zeros(1, 3, 2 * DIVISIBLE, 3 * DIVISIBLE), torch.zeros(3, side, side, channels)
