"""The ladder of the paper's appendix B: box refinement, multi-scale testing and ensembles. It is computed by torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from resnetkit.data.detection.samples import Detections
from resnetkit.detect.evaluate import as_detections
from resnetkit.detect.files import DetectorModel, load_detector
from resnetkit.detect.inference.opening import ReadyDetector
from resnetkit.detect.model import Detector, scaled
from resnetkit.errors import UsageError
from resnetkit.infer.choice import Choice
from resnetkit.precision import exact_float32

REFINED_NMS_IOU = 0.3
"""NMS over the boxes before and after refinement."""
VOTING_IOU = 0.5
"""Boxes that overlap a kept one by more than this vote for its place."""
CANONICAL_SIDE = 224
"""A region is pooled from the two scales at which it is nearest to this size, in pixels (arXiv:1504.06066, Sec. 3)."""
LEAST_SIDE = 1e-2  # pixels, as in torchvision
LEAST_SCALE = 32  # pixels


@dataclass(frozen=True)
class Ladder:
    """How regions are judged. The defaults are a plain prediction. Raises UsageError for impossible scales."""

    refine: bool = False
    """Pool regions again from their regressed boxes, and let the boxes of both passes vote."""
    scales: tuple[int, ...] = ()
    """Shorter sides, in pixels, of the resized pictures from which regions are pooled, each from two adjacent ones.
    Empty: the size of the preprocessing alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(sorted(set(self.scales))))
        if self.scales and (len(self.scales) < 2 or self.scales[0] < LEAST_SCALE):
            raise UsageError(
                f"`scales` are {list(self.scales)}; give two different ones or more, of {LEAST_SCALE} pixels or more"
            )

    @property
    def plain(self) -> bool:
        """Whether nothing differs from a plain prediction."""
        return self == Ladder()


def open_ladder(models: Sequence[str | Path], ladder: Ladder) -> ReadyDetector:
    """Return the detectors of model files or run folders as one; the header, with its thresholds, is the first one's.

    Raises UsageError for detectors of different classes, ModelFileError for a file that is not a detector.
    """
    opened = [load_detector(model) for model in models]
    return ReadyDetector(LadderFinder(opened, ladder), Choice("torch"), opened[0].header, None)


class Judged(NamedTuple):
    """What the heads say of n regions of a picture."""

    probabilities: Tensor
    """float32 (n, 1 + classes); the first is background."""
    boxes: Tensor
    """float32 (n, 1 + classes, 4): the regressed boxes of each class, in pixels of the picture."""


class View(NamedTuple):
    """A picture at one scale, as one detector sees it."""

    maps: dict[str, Tensor]
    batch: ImageList
    shorter_side: int


class LadderFinder:
    """Finds objects with several passes, several scales, or several detectors.

    With several detectors, each proposes regions; each judges all of them; and their probabilities and boxes are
    averaged. They must have the same classes, in the same order; UsageError otherwise. NMS and the number of detections
    are those of the first one.
    """

    def __init__(self, models: Sequence[DetectorModel], ladder: Ladder) -> None:
        first, *others = models
        for other in others:
            if other.header.classes != first.header.classes:
                raise UsageError(
                    "detectors that are combined must find the same classes in the same order; these find "
                    f"{', '.join(first.header.classes[:5])}, and {', '.join(other.header.classes[:5])}"
                )
        self.nets, self.ladder = [model.net for model in models], ladder

    @torch.no_grad()
    @exact_float32()
    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return what is found in an upright picture, uint8 (h, w, 3), the most probable first."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        size = (image.shape[1], image.shape[2])
        views = [self._views(net, image) for net in self.nets]
        regions = torch.cat([_propose(net, seen[0], size) for net, seen in zip(self.nets, views, strict=True)])
        judged = self._judge(views, regions, size)
        if self.ladder.refine:
            likeliest = judged.probabilities[:, 1:].argmax(1) + 1
            moved = clip_boxes_to_image(judged.boxes[torch.arange(len(regions)), likeliest], size)
            moved = moved[((moved[:, 2:] - moved[:, :2]) >= LEAST_SIDE).all(1)]
            second = self._judge(views, moved, size)
            judged = Judged(*map(torch.cat, zip(judged, second, strict=True)))
        return as_detections(self._chosen(judged, size))

    def _views(self, net: Detector, image: Tensor) -> list[View]:
        """Return the picture at the scale of the proposals, and then at those of the regions if they are others."""
        own = net.preprocess.size
        return [_view(net, image, side) for side in (own, *(side for side in self.ladder.scales if side != own))]

    def _judge(self, views: Sequence[Sequence[View]], regions: Tensor, size: tuple[int, int]) -> Judged:
        """Return the detectors' mean for `regions`, float32 (n, 4), in pixels of the picture of `size`."""
        found = [self._judged(net, seen, regions, size) for net, seen in zip(self.nets, views, strict=True)]
        return Judged(*(torch.stack(parts).mean(0) for parts in zip(*found, strict=True)))

    def _judged(self, net: Detector, views: Sequence[View], regions: Tensor, size: tuple[int, int]) -> Judged:
        if self.ladder.scales:
            by_side = {view.shorter_side: view for view in views}
            lower = adjacent_scales(regions, size, self.ladder.scales)
            features = None
            for place, side in enumerate(self.ladder.scales):
                wanted = (lower == place) | (lower == place - 1)
                if not wanted.any():
                    continue
                part = _features(net, by_side[side], regions[wanted], size)
                if features is None:
                    features = part.new_full((len(regions), part.shape[1]), -torch.inf)
                features[wanted] = torch.maximum(features[wanted], part)  # maxout
            features = _features(net, views[0], regions, size) if features is None else features
        else:
            features = _features(net, views[0], regions, size)
        logits, offsets = net.roi_heads.box_predictor(features)
        # Offsets are relative to the sides of a region, so they hold in the pixels of the picture, too.
        boxes = net.roi_heads.box_coder.decode(offsets, [regions]).reshape(len(regions), -1, 4)
        return Judged(logits.softmax(1), boxes)

    def _chosen(self, judged: Judged, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the boxes that are left after thresholds, NMS and, with refinement, voting."""
        spec = self.nets[0].spec
        classes = judged.probabilities.shape[1] - 1
        boxes = clip_boxes_to_image(judged.boxes[:, 1:].reshape(-1, 4), size)
        scores = judged.probabilities[:, 1:].reshape(-1)
        labels = torch.arange(classes, device=boxes.device).repeat(len(judged.probabilities))
        real = (scores > spec.score_threshold) & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        iou = REFINED_NMS_IOU if self.ladder.refine else spec.nms_iou
        kept = batched_nms(boxes, scores, labels, iou)[: spec.most_detections]
        places = voted(boxes, scores, labels, kept) if self.ladder.refine else boxes[kept]
        return {"boxes": places, "labels": labels[kept], "scores": scores[kept]}


def adjacent_scales(regions: Tensor, size: tuple[int, int], scales: Sequence[int]) -> Tensor:
    """Return for each region, float32 (n, 4), the index of the lower of its two adjacent scales, int64 (n,).

    `size` is the height and width of the picture of the regions, `scales` are shorter sides in rising order. The two
    scales are those whose geometric mean brings the region nearest to CANONICAL_SIDE × CANONICAL_SIDE pixels.
    """
    sides = (regions[:, 2:] - regions[:, :2]).clamp(min=LEAST_SIDE).prod(1).sqrt()
    middles = torch.tensor([(log(low) + log(high)) / 2 for low, high in pairwise(scales)])
    away = (sides.log()[:, None] + middles.to(regions) - log(min(size)) - log(CANONICAL_SIDE)).abs()
    return away.argmin(1)


def voted(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Return the places of the boxes at the indices `kept`, float32 (kept, 4), after box voting (arXiv:1505.01749).

    A place is the mean of all boxes of its class that overlap it by more than VOTING_IOU, weighted by their scores.
    """
    votes = (box_iou(boxes[kept], boxes) > VOTING_IOU) & (labels[kept][:, None] == labels)
    weights = votes * scores
    weights[torch.arange(len(kept)), kept] = scores[kept]  # its own, whatever rounding does to its overlap
    return weights @ boxes / weights.sum(1, keepdim=True)


def _view(net: Detector, image: Tensor, shorter_side: int) -> View:
    longest = max(net.spec.longest, round(net.spec.longest * shorter_side / net.preprocess.size))
    batch = net.batch([net.resized(image, shorter_side, longest=longest)])
    return View(net.backbone(batch.tensors), batch, shorter_side)


def _propose(net: Detector, view: View, size: tuple[int, int]) -> Tensor:
    """Return the proposals of a detector, float32 (n, 4), in pixels of the picture of `size` (height, width)."""
    (proposals,), _ = net.rpn(view.batch, view.maps)
    return scaled(proposals, view.batch.image_sizes[0], size)


def _features(net: Detector, view: View, regions: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the features of regions, float32 (n, features), from which class and box are predicted."""
    heads = net.roi_heads
    sizes = view.batch.image_sizes
    return cast("Tensor", heads.box_head(heads.box_roi_pool(view.maps, [scaled(regions, size, sizes[0])], sizes)))
