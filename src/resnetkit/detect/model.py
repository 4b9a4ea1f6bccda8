"""A detector as a torch module: Faster R-CNN (arXiv:1506.01497), built from torchvision's parts around our trunk.

Tensors have the names of torchvision's detectors. Boxes are left, top, right and bottom in pixels, float32.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import floor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.computing import ContextHead, ContextPool, RegionPool, with_kernels
from resnetkit.detect.spec import DetectorSpec
from resnetkit.detect.trunk import make_trunk
from resnetkit.errors import UsageError
from resnetkit.models.layers import FrozenBatchNorm2d
from resnetkit.models.resnet import ResNet
from resnetkit.models.spec import ModelSpec

POOLED = 7  # positions of a region's map, in each direction
C4_POOLED = 14  # c4: before the stride of the trunk's last stage
DIVISIBLE = 32  # sides of a batch are multiples of it, so that all maps of a pyramid fit onto each other


class PyramidTrunk(nn.Module):
    """The trunk, and the feature pyramid on its maps."""

    def __init__(self, trunk: ModelSpec, spec: DetectorSpec) -> None:
        super().__init__()
        self.body = make_trunk(trunk, eps=spec.norm_eps)
        self.first = spec.first_level - 2
        self.fpn = FeaturePyramidNetwork(
            list(self.body.channels[self.first :]),
            spec.width,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=FrozenBatchNorm2d if spec.norm == "frozen" else None,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (n, 3, h, w) to maps (n, width, h / stride, w / stride): "0", "1", ... and "pool"."""
        maps = self.body.features(images)[self.first :]
        return self.fpn(OrderedDict((str(place), x) for place, x in enumerate(maps)))


class SharedTrunk(nn.Module):
    """The parts of the trunk before its last stage, which the proposals and the regions share."""

    def __init__(self, trunk: ModelSpec, spec: DetectorSpec) -> None:
        super().__init__()
        self.body = make_trunk(trunk, eps=spec.norm_eps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (n, 3, h, w) to the map of the last stage but one."""
        return {"0": self.body.run(images, last=self.body.stage_names[-2])}


class StageHead(nn.Module):
    """The trunk's last stage, then the average over positions: the head of each region in `c4`."""

    def __init__(self, body: ResNet) -> None:
        super().__init__()
        self._body = (body,)  # its tensors are those of the trunk, not of this module

    def forward(self, regions: Tensor) -> Tensor:
        """Map regions (n, channels, 14, 14) to features (n, channels of the last stage)."""
        (body,) = self._body
        return body.run(regions, first=body.stage_names[-1], last=body.stage_names[-1]).mean((2, 3))


class Detector(nn.Module):
    """Faster R-CNN with the classes of its model file; class i has label i + 1 within torchvision's parts.

    Raises UsageError if the trunk does not fit the detector.
    """

    def __init__(self, trunk: ModelSpec, spec: DetectorSpec, preprocess: Preprocess, *, classes: int) -> None:
        super().__init__()
        _refuse_misfit(trunk, spec)
        self.trunk, self.spec, self.preprocess, self.classes = trunk, spec, preprocess, classes
        channels = trunk.channels[-2] if spec.head == "c4" else spec.width
        self.backbone = SharedTrunk(trunk, spec) if spec.head == "c4" else PyramidTrunk(trunk, spec)
        self.rpn = RegionProposalNetwork(
            make_anchors(spec),
            RPNHead(channels, spec.anchors_per_position, conv_depth=spec.rpn_convolutions),
            fg_iou_thresh=spec.rpn_iou[0],
            bg_iou_thresh=spec.rpn_iou[1],
            batch_size_per_image=spec.rpn_sampled,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(("training", "testing"), spec.candidates, strict=True)),
            post_nms_top_n=dict(zip(("training", "testing"), spec.proposals, strict=True)),
            nms_thresh=0.7,
        )
        pooled, head, features = _region_head(self.backbone.body, spec)
        strides = map_strides(trunk, spec)
        self.pooled_strides = strides if spec.head == "c4" else strides[:-1]
        pool = ContextPool if spec.context else RegionPool
        self.roi_heads = RoIHeads(
            pool(self.pooled_strides, output_size=pooled, sampling_ratio=2),
            ContextHead(head) if spec.context else head,
            FastRCNNPredictor((1 + spec.context) * features, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=spec.regions_sampled,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=spec.score_threshold,
            nms_thresh=spec.nms_iou,
            detections_per_img=spec.most_detections,
        )
        for part in (self.backbone, self.rpn.head, self.roi_heads.box_head):
            with_kernels(part)

    @property
    def body(self) -> ResNet:
        """The trunk."""
        return self.backbone.body

    def resized(self, image: Tensor, shorter_side: int | None = None, *, longest: int | None = None) -> Tensor:
        """Resize a picture, uint8 or float (3, h, w), so that no side is longer than `longest`.

        `shorter_side` is by default the size of the preprocessing, `longest` that of the spec. Returns float32
        (3, h', w'), with uint8 values scaled to 0 to 1. Sizes are rounded as in torchvision's detectors.
        """
        shorter = self.preprocess.size if shorter_side is None else shorter_side
        pixels = image.float() / 255 if image.dtype == torch.uint8 else image
        sides = image.shape[-2:]
        scale = min(shorter / min(sides), (longest or self.spec.longest) / max(sides))
        size = [max(1, floor(side * scale)) for side in sides]
        if size == list(sides):
            return pixels
        smooth = self.spec.antialias
        return functional.interpolate(pixels[None], size=size, mode="bilinear", antialias=smooth)[0]

    def batch(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise resized pictures and put them into the top left corners of one tensor, float32 (n, 3, h, w)."""
        weight = next(self.rpn.parameters())
        # A detector without weights, on the meta device, prepares the input of an exported graph.
        kind: dict[str, Any] = {"device": "cpu" if weight.is_meta else weight.device, "dtype": weight.dtype}
        mean = torch.tensor(self.preprocess.mean, **kind)[:, None, None]
        std = torch.tensor(self.preprocess.std, **kind)[:, None, None]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (-(-max(sides) // DIVISIBLE) * DIVISIBLE for sides in zip(*sizes, strict=True))
        batch = torch.zeros(len(images), 3, height, width, **kind).to(memory_format=torch.channels_last)
        for place, image, (h, w) in zip(batch, images, sizes, strict=True):
            place[:, :h, :w] = (image.to(**kind) - mean) / std
        return ImageList(batch, sizes)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Find objects in pictures, each uint8 (3, h, w), or float with values from 0 to 1.

        The network must be in evaluation mode. Returns for each picture boxes (n, 4) in its own pixels, labels int64
        (n,) from 0, and scores (n,), the highest first.
        """
        batch = self.batch([self.resized(image) for image in images])
        maps = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, maps)
        found, _ = self.roi_heads(maps, proposals, batch.image_sizes)
        return [
            {
                "boxes": scaled(one["boxes"], size, (image.shape[-2], image.shape[-1])),
                "labels": one["labels"] - 1,
                "scores": one["scores"],
            }
            for one, size, image in zip(found, batch.image_sizes, images, strict=True)
        ]

    def losses(self, images: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the four losses of resized pictures, each a mean over the pictures. The mode must be training.

        `images` are as from `resized`; `boxes` (n, 4) are in their pixels and not empty, `labels` int64 (n,) are from
        0. A picture may have no boxes. Anchors and regions are drawn from torch's global generator.
        """
        batch = self.batch(images)
        targets = [
            {"boxes": box.to(batch.tensors.device), "labels": label.to(batch.tensors.device) + 1}
            for box, label in zip(boxes, labels, strict=True)
        ]
        maps = self.backbone(batch.tensors)
        proposals, of_proposals = self.rpn(batch, maps, targets)
        _, of_regions = self.roi_heads(maps, proposals, batch.image_sizes, targets)
        return {**of_proposals, **of_regions}


def map_strides(trunk: ModelSpec, spec: DetectorSpec) -> tuple[int, ...]:
    """Return the distance of positions, in pixels of the resized picture, for each map that has proposals."""
    if spec.head == "c4":
        return trunk.strides[-2:-1]
    return (*trunk.strides[spec.first_level - 2 :], 2 * trunk.strides[-1])


def make_anchors(spec: DetectorSpec) -> AnchorGenerator:
    """Return the anchors of a detector."""
    return AnchorGenerator(spec.anchor_sizes, (spec.anchor_ratios,) * len(spec.anchor_sizes))


def scaled(boxes: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return boxes (n, 4) of a picture of `size` (height, width) in the pixels of the same picture of size `to`."""
    (height, width), (new_height, new_width) = size, to
    factors = torch.tensor([new_width, new_height, new_width, new_height], dtype=torch.float32)
    return boxes * (factors / torch.tensor([width, height, width, height], dtype=torch.float32)).to(boxes.device)


def _region_head(body: ResNet, spec: DetectorSpec) -> tuple[int, nn.Module, int]:
    """Return the positions of a region's map in each direction, its head, and the features that the head returns."""
    if spec.head == "c4":
        return C4_POOLED, StageHead(body), body.channels[-1]
    if not spec.head_convolutions:
        return POOLED, TwoMLPHead(spec.width * POOLED**2, spec.hidden), spec.hidden
    norm = FrozenBatchNorm2d if spec.norm == "frozen" else None
    convolutions = [spec.width] * spec.head_convolutions
    head = FastRCNNConvFCHead((spec.width, POOLED, POOLED), convolutions, [spec.hidden], norm_layer=norm)
    return POOLED, head, spec.hidden


def _refuse_misfit(trunk: ModelSpec, spec: DetectorSpec) -> None:
    stages = len(trunk.depths)
    if trunk.norm != "frozen" or trunk.in_channels != 3:
        raise UsageError("the trunk of a detector has norm=frozen and in_channels=3")
    maps = 1 if spec.head == "c4" else stages - (spec.first_level - 2) + 1
    if maps < 2 and spec.head == "fpn":
        raise UsageError(f"`first_level` is {spec.first_level}, and the trunk has {stages} stages; give a lower one")
    if len(spec.anchor_sizes) != maps:
        raise UsageError(f"`anchor_sizes` are for {len(spec.anchor_sizes)} maps; this detector has {maps}")
