"""Detection in pictures far larger than those of the training: in overlapping tiles, and in the whole picture."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections

OVERLAP = 0.25  # share of a tile's side that it shares with the next one
LARGE = 1.5  # a picture is divided if one of its sides is more than this many tiles long
EDGE = 2.0  # pixels; a box that comes so close to a tile's inner edge may be cut off there

Find = Callable[[NDArray[np.uint8]], Detections]


def tiles_of(size: tuple[int, int], side: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield left, top, right and bottom of the tiles of a picture of `size` (width, height), row by row.

    Tiles have `side` × `side` pixels, or fewer if the picture has fewer, and overlap by OVERLAP of a side or more. A
    picture that is not LARGE has no tiles.
    """
    width, height = size
    if max(width, height) <= LARGE * side:
        return
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield left, top, min(left + side, width), min(top + side, height)


def _starts(length: int, side: int) -> list[int]:
    """Return the first pixels of tiles that are evenly spread over `length` pixels."""
    if length <= side:
        return [0]
    steps = int(np.ceil((length - side) / (side * (1 - OVERLAP))))
    return [round(step * (length - side) / steps) for step in range(steps + 1)]


def find_in_tiles(find: Find, pixels: NDArray[np.uint8], *, side: int, nms_iou: float, most: int) -> Detections:
    """Return what `find` finds in a picture, uint8 (h, w, 3), as a whole and in its tiles of `side` pixels.

    A box that touches an inner edge of a tile may be a part of an object. It is left out, since the object is whole in
    a neighbour, or in the whole picture if it is larger than the overlap. Of boxes of a class that overlap by more than
    `nms_iou`, the most probable one is kept. At most `most` detections are returned for the whole and each tile.
    """
    import torch
    from torchvision.ops import batched_nms

    height, width, _ = pixels.shape
    parts = [find(pixels)]
    for left, top, right, bottom in tiles_of((width, height), side):
        found = find(np.ascontiguousarray(pixels[top:bottom, left:right]))
        inner = np.array([left > 0, top > 0, right < width, bottom < height])
        edges = np.array([0, 0, right - left, bottom - top], np.float32)
        cut = (np.abs(found.boxes - edges) <= EDGE) & inner
        kept = found.subset(np.flatnonzero(~cut.any(axis=1)))
        corner = np.array([left, top, left, top], np.float32)
        parts.append(Detections(kept.boxes + corner, kept.labels, kept.scores))
    boxes, labels, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]))
    chosen = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), nms_iou)
    return Detections(boxes, labels, scores).subset(chosen.numpy()[: most * len(parts)])
