"""Pictures with boxes: the one target format, which every reader of annotations returns. No torch here."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.display import count, cut, line
from resnetkit.errors import DataError


@dataclass(frozen=True)
class Objects:
    """The n objects of one picture; n is 0 for a picture that shows only background.

    Fields that are left out get their defaults: no object is difficult or a crowd, and an object is as large as its
    box. Raises ValueError if the arrays have different lengths, another shape, or another type.
    """

    boxes: NDArray[np.float32]
    """float32 (n, 4): left, top, right, bottom in pixels of the upright picture (EXIF applied).

    Coordinates are edges and not centres of pixels: a box that covers a whole picture is (0, 0, width, height)."""
    labels: NDArray[np.int64]
    """int64 (n,): indices of the classes, from 0. Background is not a class."""
    difficult: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """bool (n,): objects that count neither as found nor as missed (VOC's flag). They are not trained on."""
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    """bool (n,): boxes around many objects (COCO's iscrowd). Detections in them are not errors, and they are not
    trained on."""
    areas: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32 (n,): areas in square pixels, by which COCO's AP tells small, medium and large objects apart. They may be
    those of outlines, and so smaller than the boxes."""

    def __post_init__(self) -> None:
        objects = len(self.labels)
        if not len(self.difficult):
            object.__setattr__(self, "difficult", np.zeros(objects, bool))
        if not len(self.crowd):
            object.__setattr__(self, "crowd", np.zeros(objects, bool))
        if self.boxes.shape != (objects, 4):
            raise ValueError(f"`boxes` has the shape {self.boxes.shape}; {objects} labels need {(objects, 4)}")
        if not len(self.areas):
            object.__setattr__(self, "areas", box_areas(self.boxes))
        for name, dtype in (("boxes", "float32"), ("labels", "int64"), ("difficult", "bool"), ("crowd", "bool")):
            if getattr(self, name).dtype != dtype:
                raise ValueError(f"`{name}` is {getattr(self, name).dtype}; it must be {dtype}")
        for name in ("difficult", "crowd", "areas"):
            if getattr(self, name).shape != (objects,):
                raise ValueError(f"`{name}` has the shape {getattr(self, name).shape}; it must be {(objects,)}")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def none(cls) -> "Objects":
        """Return the objects of a picture without any."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Mask (n,), bool: the objects that a detector learns to find: neither difficult nor a crowd."""
        return ~(self.difficult | self.crowd)

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Objects":
        """Return the objects at `chosen`, a mask (n,) or indices."""
        return Objects(
            self.boxes[chosen], self.labels[chosen], self.difficult[chosen], self.crowd[chosen], self.areas[chosen]
        )


@dataclass(frozen=True)
class Detections:
    """The n objects that a detector found in one picture, the most probable first."""

    boxes: NDArray[np.float32]
    """float32 (n, 4), as in `Objects`."""
    labels: NDArray[np.int64]
    """int64 (n,): indices of the classes, from 0."""
    scores: NDArray[np.float32]
    """float32 (n,): probabilities, 0 to 1, not increasing."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Detections":
        """Return the detections at `chosen`, a mask (n,) or indices."""
        return Detections(self.boxes[chosen], self.labels[chosen], self.scores[chosen])


def box_areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the areas float32 (n,) of boxes float32 (n, 4), in square pixels; 0 for inverted boxes."""
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1, dtype=np.float32)


@dataclass(frozen=True)
class DetectionSamples:
    """n pictures on disk, each with its objects.

    Raises DataError if the numbers of pictures, sizes and objects differ, or a label is out of range.
    """

    classes: tuple[str, ...]
    """Class names; a label is an index into this tuple."""
    paths: tuple[Path, ...]
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each upright picture, in pixels."""
    objects: tuple[Objects, ...]

    def __post_init__(self) -> None:
        if not len(self.paths) == len(self.sizes) == len(self.objects):
            raise DataError(
                f"{len(self.paths)} pictures, {len(self.sizes)} sizes and {len(self.objects)} annotations; "
                "every picture needs one of each"
            )
        highest = max((int(one.labels.max()) for one in self.objects if len(one)), default=-1)
        lowest = min((int(one.labels.min()) for one in self.objects if len(one)), default=0)
        if lowest < 0 or highest >= len(self.classes):
            raise DataError(f"labels go from {lowest} to {highest}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        boxes = f"{sum(map(len, self.objects)):,} boxes"
        return line(type(self), count(len(self), "picture"), boxes, count(len(self.classes), "class"))

    def subset(self, indices: NDArray[np.int64]) -> "DetectionSamples":
        """Return the samples at `indices`, int64 (m,), in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            sizes=tuple(self.sizes[i] for i in indices),
            objects=tuple(self.objects[i] for i in indices),
        )

    def objects_per_class(self) -> NDArray[np.int64]:
        """Return the number of objects of each class, int64 (classes,), difficult ones and crowds included."""
        labels = [one.labels for one in self.objects]
        return np.bincount(np.concatenate([*labels, np.zeros(0, np.int64)]), minlength=len(self.classes))

    def fingerprint(self) -> str:
        """Return 16 hex digits that change if any class name, object, picture size, file name or file size changes."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for path, size, objects in zip(self.paths, self.sizes, self.objects, strict=True):
            digest.update(os.fsencode(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\0{size}\0{len(objects)}"))
            for array, kind in ((objects.boxes, "<f4"), (objects.labels, "<i8"), (objects.areas, "<f4")):
                digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
            digest.update(objects.difficult.tobytes() + objects.crowd.tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DetectionDataset:
    """A data set of pictures with boxes, divided into parts. A part that it does not have is None."""

    name: str
    """The name that the user gave: the path of a folder or file."""
    classes: tuple[str, ...]
    train: DetectionSamples | None
    val: DetectionSamples | None
    """Validation pictures. They are used to choose recipes, checkpoints, thresholds and the end of training."""
    test: DetectionSamples | None
    """Test pictures. They are never used to choose anything."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """How train and val were divided, with all values to repeat it."""
    skipped: tuple[tuple[Path, str], ...] = ()
    """Files that were left out, each with the reason."""
    notes: tuple[str, ...] = ()
    """What a person should know of the data, one phrase each: how the layout was read, boxes that were cut or left
    out, that val was drawn from train."""

    def __repr__(self) -> str:
        parts = (f"{name} {len(samples):,}" for name, samples in self.parts.items())
        return line(type(self), repr(cut(self.name, 60)), count(len(self.classes), "class"), *parts)

    @property
    def parts(self) -> dict[str, DetectionSamples]:
        """The parts that are not None, by name, in the order train, val, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: samples for name, samples in parts.items() if samples is not None}

    def part(self, name: str) -> tuple[str, DetectionSamples]:
        """Return the name and the samples of a part: train, val or test. "auto" is test, else val, else train.

        Raises DataError for a part that the data set does not have.
        """
        parts = self.parts
        if name == "auto":
            name = next((one for one in ("test", "val", "train") if one in parts), "test")
        if name not in parts:
            raise DataError(f"{self.name} has no {name} pictures; it has {', '.join(parts)}")
        return name, parts[name]
