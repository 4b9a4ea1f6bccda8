"""Find objects with the graphs of a detector: what is before, between and after them is computed by torch."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from resnetkit.data.detection.samples import Detections
from resnetkit.detect.evaluate import as_detections, find, nothing
from resnetkit.detect.files import empty_detector
from resnetkit.detect.inference.pooling import pool_regions
from resnetkit.detect.model import scaled
from resnetkit.forked import apart
from resnetkit.modelfile import Header
from resnetkit.precision import exact_float32

Compute: TypeAlias = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]
"""Computes a graph: takes its input, returns its outputs."""
SHAPES = 64
"""Shapes of pictures whose anchors are kept."""


class TorchFinder:
    """Finds objects with the detector itself."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return what is in a picture, uint8 (h, w, 3)."""
        return apart(partial(find, self.net, pixels))


class GraphFinder:
    """Finds objects with the two graphs of a detector (see `graphs`). Several threads may call it.

    Its steps are those of the detector: the same functions resize and normalise the picture, choose proposals, and turn
    logits and offsets into boxes. Regions are pooled by `pool_regions`.
    """

    def __init__(self, header: Header, proposals: Compute, regions: Compute, *, source: str = "the detector") -> None:
        self.net = empty_detector(header, source=source).eval()  # without weights: its methods need none
        self.header, self.proposals, self.regions = header, proposals, regions
        self._anchors = lru_cache(maxsize=SHAPES)(self._make_anchors)

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return what is in a picture, uint8 (h, w, 3)."""
        return apart(partial(self._find, pixels))

    @torch.inference_mode()
    @exact_float32()
    def _find(self, pixels: NDArray[np.uint8]) -> Detections:
        batch = self.batch(pixels)
        regions, boxes = self.between(batch, self.proposals(batch.tensors.numpy()))
        if not len(boxes):
            return nothing()
        logits, offsets = map(torch.from_numpy, self.regions(regions))
        found = self.net.roi_heads.postprocess_detections(logits, offsets, [boxes], batch.image_sizes)
        (of_boxes,), (scores,), (labels,) = found
        whole = (pixels.shape[0], pixels.shape[1])
        of_boxes = scaled(of_boxes, batch.image_sizes[0], whole)
        return as_detections({"boxes": of_boxes, "labels": labels - 1, "scores": scores})

    def batch(self, pixels: NDArray[np.uint8]) -> ImageList:
        """Return the input of the first graph, contiguous float32 (1, 3, h, w), with the size before filling up."""
        picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        batch = self.net.batch([self.net.resized(picture)])
        return ImageList(batch.tensors.contiguous(), batch.image_sizes)

    def between(self, batch: ImageList, outputs: tuple[NDArray[np.float32], ...]) -> tuple[NDArray[np.float32], Tensor]:
        """Return pooled regions, float32 (n, side, side, channels), and their boxes (n, 4), from the first outputs.

        With global context, the whole picture is pooled, too, as the last of n + 1 regions.
        """
        features, objectness, offsets = map(torch.from_numpy, outputs)
        height, width = batch.tensors.shape[-2:]
        sizes, anchors, counts = self._anchors(height, width)
        rpn, pool = self.net.rpn, self.net.roi_heads.box_roi_pool
        proposed = rpn.box_coder.decode(offsets, [anchors]).view(1, -1, 4)
        (boxes,), _ = rpn.filter_proposals(proposed, objectness, batch.image_sizes, counts)
        assert pool.map_levels is not None
        pooled = boxes
        if self.net.spec.context:
            ((tall, wide),) = batch.image_sizes
            pooled = torch.cat((boxes, boxes.new_tensor([[0, 0, wide, tall]])))
        levels = pool.map_levels([pooled])
        regions = pool_regions(
            features,
            pooled,
            levels,
            sizes=sizes[: len(self.net.pooled_strides)],
            strides=self.net.pooled_strides,
            side=pool.output_size[0],
        )
        return regions.numpy(), boxes

    def _make_anchors(self, height: int, width: int) -> tuple[list[tuple[int, int]], Tensor, list[int]]:
        """Return for pictures of this size: sizes of the maps, all anchors (n, 4), and the number of each map."""
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.net.pooled_strides]
        if self.net.spec.head == "fpn":  # the last map has half the resolution, by torchvision's LastLevelMaxPool
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        maps = [torch.empty(1, 1, *size) for size in sizes]
        images = ImageList(torch.empty(1, 3, height, width), [(height, width)])
        (anchors,) = self.net.rpn.anchor_generator(images, maps)
        number = self.net.spec.anchors_per_position
        return sizes, anchors, [number * rows * columns for rows, columns in sizes]
