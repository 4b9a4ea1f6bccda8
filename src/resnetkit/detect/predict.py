"""Predictions of a detector for files and folders of pictures."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.samples import Detections
from resnetkit.data.folders.listing import OnePath, each_path
from resnetkit.data.prefetch import Failure, own_path
from resnetkit.detect.drawing import draw_boxes
from resnetkit.detect.evaluate import AHEAD, decoded, find
from resnetkit.detect.files import DetectorModel, load_detector
from resnetkit.detect.tiles import find_in_tiles
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.explanation import drawing_path
from resnetkit.files import whole_file
from resnetkit.infer.choice import Choice
from resnetkit.infer.decoding import decoded as decoded_pictures
from resnetkit.infer.finding import find_pictures
from resnetkit.infer.unloaded import find_model
from resnetkit.modelfile import Header

USUAL_THRESHOLD = 0.5
"""Least probability of a detection, for classes of which validation found no better one."""


class DetectorPredictor:
    """Finds objects in pictures.

        predictor = DetectorPredictor("runs/cells")
        for detection in predictor("cell.jpg")["detections"]:
            print(detection["label"], detection["box"])

    `threshold` is the least probability of a detection; by default, for each class, the best one on the validation
    pictures, or USUAL_THRESHOLD. With `tile`, pictures far larger than the tile are searched in tiles, too (see
    `find_in_tiles`). A tile has `tile_size` pixels in each direction; by default, as many as the shorter side of most
    training pictures.

    Raises UsageError for values out of range, ModelFileError for a file that is not a detector.
    """

    def __init__(
        self,
        model: DetectorModel | str | Path,
        *,
        threshold: float | None = None,
        tile: bool = False,
        tile_size: int | None = None,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(f"`threshold` is {threshold}; it must be from 0 to 1")
        if tile_size is not None and tile_size < 32:
            raise UsageError(f"`tile_size` is {tile_size}; it must be at least 32")
        self.model = model if isinstance(model, DetectorModel) else load_detector(model)
        self.fingerprint = None if isinstance(model, DetectorModel) else find_model(model).fingerprint
        """SHA-256 in hex of the model file; None for a model in memory."""
        self.choice = Choice("torch")
        self.classes = self.model.header.classes
        best = self.model.thresholds
        self.thresholds = np.array(
            [best.get(name, USUAL_THRESHOLD) if threshold is None else threshold for name in self.classes]
        )
        side = self.model.header.data.get("shorter_side", self.model.header.preprocess.size)
        self.tile_size = (tile_size or int(side)) if tile or tile_size else None

    def __call__(self, path: str | Path) -> dict[str, Any]:
        """Return {"path", "width", "height", "detections"} for a picture, or {"path", "error"}.

        A detection is {"label", "index", "score", "box"}, where box is left, top, right and bottom in pixels.
        """
        (result,) = self.predict_paths([path])
        return result

    @property
    def header(self) -> Header:
        """The header of the model file."""
        return self.model.header

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(one.numel() for one in self.model.net.parameters())

    def decode(self, picture: bytes | Path) -> NDArray[np.uint8] | Failure:
        """Return a picture, upright, uint8 (h, w, 3), or why it can't be read. Several threads may call it."""
        try:
            return np.array(open_picture(picture))
        except DataError as error:
            return Failure(own_path(picture), error.reason)

    def find(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return the detections in a picture, uint8 (h, w, 3), the most probable first."""
        return self.kept(self.compute(pixels))

    def kept(self, found: Detections, threshold: float | None = None) -> Detections:
        """Return the detections that reach `threshold`; for None, the thresholds of their classes."""
        return found.subset(found.scores >= (self.thresholds[found.labels] if threshold is None else threshold))

    def compute(self, pixels: NDArray[np.uint8]) -> Detections:
        """Like `find`, with the detections below the thresholds. Several threads may call it."""
        net = self.model.net
        if self.tile_size is None:
            return find(net, pixels)
        spec = net.spec
        return find_in_tiles(
            partial(find, net), pixels, side=self.tile_size, nms_iou=spec.nms_iou, most=spec.most_detections
        )

    def predict_paths(
        self, paths: OnePath | Iterable[OnePath], *, workers: int = 1, draw: Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the result for each picture of files, folders and globs, as `__call__` returns it.

        Pictures are decoded by `workers` threads. With `draw`, a picture with its boxes is written to this folder, and
        the result has its path as "drawing".
        """
        found = find_pictures(each_path(paths))
        with closing(decoded_pictures(found, decoded, workers=workers, ahead=AHEAD * workers)) as reading:
            for path, pixels in reading:
                if isinstance(pixels, Failure):
                    yield {"path": str(path), "error": pixels.reason}
                else:
                    yield self._result(path, pixels, draw)

    def _result(self, path: Path, pixels: NDArray[np.uint8], draw: Path | None) -> dict[str, Any]:
        found = self.find(pixels)
        result: dict[str, Any] = {
            "path": str(path),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "detections": self.name(found),
        }
        if draw is not None:
            result["drawing"] = str(_write_drawing(draw, path, pixels, found, self.classes))
        return result

    def name(self, found: Detections, *, threshold: float | None = None) -> list[dict[str, Any]]:
        """Return the detections that `kept` returns as plain values, {"label", "index", "score", "box"}."""
        kept = self.kept(found, threshold)
        return [
            {
                "label": self.classes[label],
                "index": label,
                "score": round(score, 6),
                "box": [round(edge, 2) for edge in box],
            }
            for box, label, score in zip(kept.boxes.tolist(), kept.labels.tolist(), kept.scores.tolist(), strict=True)
        ]


def _write_drawing(
    folder: Path, path: Path, pixels: NDArray[np.uint8], found: Detections, classes: tuple[str, ...]
) -> Path:
    """Write a picture with its boxes, and return its file."""
    file = drawing_path(folder, path).with_suffix(".jpg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as stream:
            draw_boxes(pixels, found, classes).save(stream, "JPEG", quality=90)
    except OSError as error:
        raise DataError(f"{file} can't be written: {error.strerror or error}; give another folder") from error
    return file
