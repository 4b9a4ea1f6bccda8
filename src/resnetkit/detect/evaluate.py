"""The evaluation of a detector: what it finds in pictures, and its AP."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.samples import Detections, DetectionSamples
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.detect.files import DetectorModel
from resnetkit.detect.model import Detector
from resnetkit.errors import DataError
from resnetkit.evaluation.detection.measures import DetectionEvaluation, measure
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance, ignore

Finder: TypeAlias = Callable[[NDArray[np.uint8]], Detections]
"""Finds objects in an upright picture, uint8 (h, w, 3): all that reach DetectorSpec.score_threshold."""
AHEAD = 4  # decoded pictures per worker that wait in memory


def find_in_files(
    finder: Finder, paths: Sequence[Path], *, workers: int = 2
) -> Generator[tuple[Path, Detections | Failure]]:
    """Yield each picture's path with what `finder` finds in it, or with the reason why it can't be read."""
    reading = prefetch(decoded, paths, workers=workers, ahead=AHEAD * workers)
    with closing(reading):
        for path, pixels in zip(paths, reading, strict=True):
            yield path, pixels if isinstance(pixels, Failure) else finder(pixels)


def decoded(path: Path) -> NDArray[np.uint8]:
    """Return an upright picture, uint8 (h, w, 3). Raises DataError if it can't be read."""
    return np.array(open_picture(path))


@torch.no_grad()
@exact_float32()
def find(net: Detector, pixels: NDArray[np.uint8]) -> Detections:
    """Return what `net`, in evaluation mode, finds in a picture, uint8 (h, w, 3)."""
    (found,) = net([torch.from_numpy(pixels).permute(2, 0, 1)])
    return as_detections(found)


def as_detections(found: dict[str, Tensor]) -> Detections:
    """Return boxes, labels and scores of one picture as arrays."""
    arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    return Detections(arrays["boxes"].astype(np.float32), arrays["labels"], arrays["scores"])


def nothing() -> Detections:
    """Return the detections of a picture in which nothing is found."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def evaluate_detector(
    model: DetectorModel,
    samples: DetectionSamples,
    *,
    workers: int = 2,
    strict: bool = False,
    coco: bool = False,
    advance: Advance = ignore,
) -> tuple[DetectionEvaluation, dict[Path, str]]:
    """Measure a detector on pictures with boxes, computed by torch: see `evaluate_finder`."""
    finder, classes = partial(find, model.net), model.header.classes
    return evaluate_finder(finder, classes, samples, workers=workers, strict=strict, coco=coco, advance=advance)


def evaluate_finder(
    finder: Finder,
    classes: tuple[str, ...],
    samples: DetectionSamples,
    *,
    workers: int = 2,
    strict: bool = False,
    coco: bool = False,
    advance: Advance = ignore,
) -> tuple[DetectionEvaluation, dict[Path, str]]:
    """Measure what `finder` finds in pictures with boxes; return the measures, and the pictures that can't be read.

    `classes` are those of the finder, and are matched by name with those of `samples`, in any order. In a picture that
    can't be read, nothing is found. With `coco`, COCO's measures are computed, too. `advance` is called after each
    picture.

    Raises DataError for classes that the detector does not have and, with `strict`, for a picture that can't be read.
    """
    samples = as_classes(samples, classes)
    found, unreadable = find_all(finder, samples, workers=workers, strict=strict, advance=advance)
    return measure(found, samples, coco=coco), unreadable


def find_all(
    finder: Finder, samples: DetectionSamples, *, workers: int, strict: bool, advance: Advance
) -> tuple[list[Detections], dict[Path, str]]:
    """Return what is found in each picture, and the pictures that can't be read, in which nothing is found.

    Raises DataError, with `strict`, for a picture that can't be read.
    """
    found: list[Detections] = []
    unreadable: dict[Path, str] = {}
    for path, one in find_in_files(finder, samples.paths, workers=workers):
        if isinstance(one, Failure):
            if strict:
                raise DataError(one.reason, name=str(path))
            unreadable[path] = one.reason
        found.append(nothing() if isinstance(one, Failure) else one)
        advance(1)
    return found, unreadable


def as_classes(samples: DetectionSamples, classes: tuple[str, ...]) -> DetectionSamples:
    """Return the same samples with labels that are indices into `classes`.

    Raises DataError for an object of a class that is not in `classes`.
    """
    if samples.classes == classes:
        return samples
    counts = samples.objects_per_class()
    place = {name: label for label, name in enumerate(classes)}
    unknown = [name for name, there in zip(samples.classes, counts, strict=True) if there and name not in place]
    if unknown:
        raise DataError(
            f"boxes are of {', '.join(map(repr, unknown[:3]))}, which the detector does not find; it finds "
            f"{', '.join(map(repr, classes[:10]))}. Rename the classes, or train a detector with these classes"
        )
    labels = np.array([place.get(name, 0) for name in samples.classes], np.int64)
    objects = tuple(replace(one, labels=labels[one.labels]) for one in samples.objects)
    return replace(samples, classes=classes, objects=objects)
