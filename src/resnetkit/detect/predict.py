"""Predictions of a detector for files and folders of pictures."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections
from resnetkit.data.folders.listing import OnePath, each_path
from resnetkit.data.prefetch import Failure, own_path, prefetch
from resnetkit.detect.drawing import draw_boxes
from resnetkit.detect.evaluate import AHEAD, decoded, nothing
from resnetkit.detect.files import THRESHOLDS, DetectorModel, empty_detector, spec_of
from resnetkit.detect.inference.opening import ReadyDetector, open_detector
from resnetkit.detect.tiles import find_in_tiles
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.explanation import drawing_path
from resnetkit.files import whole_file
from resnetkit.infer.choice import BackendName, Choice, Goal, Precision
from resnetkit.infer.decoding import Decoded, Picture, opened
from resnetkit.infer.decoding import decoded as decoded_pictures
from resnetkit.infer.finding import find_pictures

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
    training pictures. How it is computed (`backend`, `precision`, `threads`, `streams`) is chosen as `open_detector`
    describes it; `choice` has the values that are used. A ReadyDetector, as `open_ladder` returns it, is used as it is.
    Several threads may call it.

    Raises UsageError for values out of range, ModelFileError for a file that is not a detector.
    """

    def __init__(
        self,
        model: ReadyDetector | DetectorModel | str | Path,
        *,
        threshold: float | None = None,
        tile: bool = False,
        tile_size: int | None = None,
        backend: BackendName | None = None,
        precision: Precision | None = None,
        threads: int | None = None,
        streams: int | None = None,
        goal: Goal = "latency",
        may_export: bool = True,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise UsageError(f"`threshold` is {threshold}; it must be from 0 to 1")
        if tile_size is not None and tile_size < 32:
            raise UsageError(f"`tile_size` is {tile_size}; it must be at least 32")
        if isinstance(model, ReadyDetector):
            self._opened = model
        else:
            self._opened = open_detector(
                model,
                backend=backend,
                precision=precision,
                threads=threads,
                streams=streams,
                goal=goal,
                may_export=may_export,
            )
        self.header = self._opened.header
        self.classes = self.header.classes
        self.spec = spec_of(self.header)
        self.thresholds = self._limits(threshold)
        side = self.header.data.get("shorter_side", self.header.preprocess.size)
        self.tile_size = (tile_size or int(side)) if tile or tile_size else None

    @property
    def choice(self) -> Choice:
        """Backend, precision, threads and streams that are used. Pictures are computed one by one."""
        return self._opened.choice

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 in hex of the model file; None for a detector in memory."""
        return self._opened.fingerprint

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(one.numel() for one in empty_detector(self.header, source="the detector").parameters())

    def __call__(self, path: str | Path) -> dict[str, Any]:
        """Return {"path", "width", "height", "detections"} for a picture, or {"path", "error"}.

        A detection is {"label", "index", "score", "box"}, where box is left, top, right and bottom in pixels.
        """
        (result,) = self.predict_paths([path])
        return result

    def decode(self, picture: Picture) -> NDArray[np.uint8] | Failure:
        """Return an upright picture, uint8 (h, w, 3), or why it can't be read.

        Raises nothing for a wrong picture, so that one of many fails alone. Several threads may call it.
        """
        try:
            return np.array(opened(picture, "RGB"))
        except (DataError, UsageError) as error:
            return Failure(own_path(picture), error.reason if isinstance(error, DataError) else str(error))

    def compute(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return all detections in a picture, uint8 (h, w, 3), that reach DetectorSpec.score_threshold.

        The most probable one is first. Several threads may call it; `choice.streams` is the number of pictures that it
        is fastest to compute at a time. Raises UsageError for an array of another type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise UsageError(f"the pixels are {pixels.dtype} {pixels.shape}; expected uint8 (height, width, 3)")
        if self.tile_size is None:
            return self._opened.find(pixels)
        spec = self.spec
        return find_in_tiles(
            self._opened.find, pixels, side=self.tile_size, nms_iou=spec.nms_iou, most=spec.most_detections
        )

    def kept(self, found: Detections, threshold: float | None = None) -> Detections:
        """Return the detections that reach the thresholds of their classes, or `threshold`."""
        limits = self.thresholds if threshold is None else self._limits(threshold)
        return found.subset(found.scores >= limits[found.labels])

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

    def find(self, pixels: NDArray[np.uint8]) -> Detections:
        """Return the detections in a picture, uint8 (h, w, 3), that reach their thresholds, the most probable first."""
        return self.kept(self.compute(pixels))

    def _limits(self, threshold: float | None) -> NDArray[np.float64]:
        best = self.header.detector.get(THRESHOLDS, {})
        return np.array([best.get(name, USUAL_THRESHOLD) if threshold is None else threshold for name in self.classes])

    def predict_paths(
        self, paths: OnePath | Iterable[OnePath], *, workers: int = 1, draw: Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the result for each picture of files, folders and globs, as `__call__` returns it.

        Pictures are decoded by `workers` threads, and `choice.streams` are computed at a time. With `draw`, a picture
        with its boxes is written to this folder, and the result has its path as "drawing".
        """
        found = find_pictures(each_path(paths))
        streams = self.choice.streams
        with (
            closing(decoded_pictures(found, decoded, workers=workers, ahead=AHEAD * workers)) as reading,
            closing(prefetch(self._computed, reading, workers=streams if streams > 1 else 0, ahead=streams)) as results,
        ):
            for result in results:
                assert not isinstance(result, Failure)  # computing raises no DataError
                path, pixels, detections = result
                if isinstance(pixels, Failure):
                    yield {"path": str(path), "error": pixels.reason}
                else:
                    yield self._result(path, pixels, detections, draw)

    def _computed(self, picture: Decoded) -> tuple[Path, NDArray[np.uint8] | Failure, Detections]:
        path, pixels = picture
        return path, pixels, nothing() if isinstance(pixels, Failure) else self.find(pixels)

    def _result(self, path: Path, pixels: NDArray[np.uint8], found: Detections, draw: Path | None) -> dict[str, Any]:
        result: dict[str, Any] = {
            "path": str(path),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "detections": self.name(found),
        }
        if draw is not None:
            result["drawing"] = str(_write_drawing(draw, path, pixels, found, self.classes))
        return result


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
