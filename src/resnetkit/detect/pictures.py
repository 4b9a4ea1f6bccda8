"""The pictures of a detector's training: decoded once, mirrored, resized and changed in colour, with their boxes.

What happens to a picture depends only on the seed, the epoch and its position, so any batch can be made again.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.samples import DetectionSamples
from resnetkit.data.order import Order, PlannedBatch
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.detect.recipe import DetectionRecipe
from resnetkit.errors import DataError

AHEAD = 8  # prepared pictures per worker that wait in memory
LEAST_SIDE = 1.0  # pixels of a resized picture; a box with a smaller side is not trained on
Job = tuple[int, int, int]  # the epoch, the position in it, and the index of the picture
Changed = tuple[Tensor, Tensor, Tensor]  # a picture, its boxes and their labels
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow


@dataclass(frozen=True)
class DetectionBatch:
    """n resized pictures, not yet normalised, with the boxes to find."""

    images: list[Tensor]
    """n tensors, float32 (3, h, w), values 0 to 1."""
    boxes: list[Tensor]
    """n tensors, float32 (objects, 4), in pixels of the resized pictures."""
    labels: list[Tensor]
    """n tensors, int64 (objects,), from 0."""
    number: int

    def __len__(self) -> int:
        return len(self.images)


class Cache:
    """Decoded pictures in memory, up to a number of bytes; other pictures are decoded whenever they are asked for.

    A large JPEG may be decoded at a half, a quarter or an eighth of its sides, if its shorter side keeps `at_least`
    pixels.
    """

    def __init__(self, paths: tuple[Path, ...], *, most_bytes: float, at_least: int) -> None:
        self._paths, self._left, self._at_least = paths, most_bytes, at_least
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._lock = Lock()

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Return an upright picture, uint8 (h, w, 3). Raises DataError if it can't be read."""
        if (kept := self._kept.get(index)) is not None:
            return kept
        pixels = np.array(open_picture(self._paths[index], at_least=self._at_least))
        with self._lock:
            if index not in self._kept and pixels.nbytes <= self._left:
                self._kept[index] = pixels
                self._left -= pixels.nbytes
        return pixels


@dataclass(frozen=True)
class Change:
    """What is done to one training picture."""

    mirrored: bool = False
    flipped: bool = False
    """Top to bottom."""
    scale: float = 1.0
    """Factor on the size."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    @classmethod
    def drawn(cls, recipe: DetectionRecipe, rng: np.random.Generator) -> "Change":
        """Draw a change. The draws do not depend on the settings, so one setting does not change the others."""
        mirrored, flipped, scale, *colors = rng.random(6)
        low, high = np.log(recipe.jitter)
        factors = (float(1 + recipe.color * (2 * color - 1)) for color in colors)
        return cls(
            bool(recipe.flip and mirrored < 0.5),
            bool(recipe.vertical_flip and flipped < 0.5),
            float(np.exp(low + (high - low) * scale)),
            *factors,
        )

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Mirror boxes (n, 4) of a picture of `size` (height, width)."""
        height, width = size
        left, top, right, bottom = boxes.unbind(1)
        if self.mirrored:
            left, right = width - right, width - left
        if self.flipped:
            top, bottom = height - bottom, height - top
        return torch.stack((left, top, right, bottom), 1)

    def geometry(self, image: Tensor) -> Tensor:
        """Mirror a picture (3, h, w)."""
        turned = [axis for axis, done in ((2, self.mirrored), (1, self.flipped)) if done]
        return image.flip(turned) if turned else image

    def color(self, image: Tensor) -> Tensor:
        """Change the brightness, contrast and saturation of a picture, float32 (3, h, w), values 0 to 1."""
        if self.brightness == self.contrast == self.saturation == 1:
            return image
        image = image * self.brightness
        grey = (image * torch.tensor(GREY)[:, None, None]).sum(0, keepdim=True)
        image = torch.lerp(grey, image, self.saturation)
        return torch.lerp(grey.mean(), image, self.contrast).clamp_(0, 1)


@dataclass
class TrainingPictures:
    """The batches of a run."""

    samples: DetectionSamples
    recipe: DetectionRecipe
    size: int
    """Shorter side of a picture at scale 1."""
    resized: Callable[[Tensor, int], Tensor]
    """Resizes a picture, uint8 (3, h, w), to a shorter side; returns float32 (3, h', w'), 0 to 1."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    workers_change: bool = False
    """Whether workers change pictures, too, and not only decode them. On a CPU, the threads of torch's operations in a
    worker would wait for the cores of the training, and take ten times the time."""

    def __post_init__(self) -> None:
        largest = ceil(self.size * self.recipe.jitter[1])
        self.cache = Cache(self.samples.paths, most_bytes=1e9 * self.recipe.cache_gb, at_least=largest)
        self.order = Order(
            len(self.samples),
            batch_size=self.recipe.batch_size,
            shuffle=True,
            seed=self.recipe.seed,
            drop_last=len(self.samples) >= self.recipe.batch_size,
        )

    def epoch(self, epoch: int, first_batch: int) -> Generator[DetectionBatch]:
        """Yield the batches of an epoch from `first_batch` on. Raises DataError with `strict` for a wrong picture."""
        planned = list(self.order.batches(epoch, first_batch))
        jobs = ((epoch, position, int(index)) for batch in planned for position, index in _pictures(batch))
        workers = self.recipe.workers
        prepared = prefetch(
            self._prepared if self.workers_change else self._decoded,
            jobs,
            workers=workers,
            ahead=AHEAD * workers,
            path_of=lambda job: self.samples.paths[job[2]],
        )
        with closing(prepared):
            for batch in planned:
                ready = [next(prepared) for _ in batch.positions]
                for failure in (one for one in ready if isinstance(one, Failure)):
                    if self.recipe.strict:
                        raise DataError(failure.reason, name=str(failure.path))
                    self.unreadable[cast("Path", failure.path)] = failure.reason
                good = [one() for one in ready if not isinstance(one, Failure)]
                if good:
                    images, boxes, labels = (list(column) for column in zip(*good, strict=True))
                    yield DetectionBatch(images, boxes, labels, batch.number)

    def _decoded(self, job: Job) -> Callable[[], Changed]:
        """Decode a picture; return a function that changes it."""
        return partial(self._changed, job, self.cache.pixels(job[2]))

    def _prepared(self, job: Job) -> Callable[[], Changed]:
        """Decode and change a picture; return a function that returns it."""
        changed = self._changed(job, self.cache.pixels(job[2]))
        return lambda: changed

    def _changed(self, job: Job, decoded: NDArray[np.uint8]) -> Changed:
        epoch, position, index = job
        change = Change.drawn(self.recipe, self.order.picture_rng(epoch, position))
        pixels = torch.from_numpy(decoded).permute(2, 0, 1)
        objects = self.samples.objects[index]
        objects = objects.subset(objects.trained)
        width, height = self.samples.sizes[index]
        image = self.resized(pixels, round(self.size * change.scale))
        factors = torch.tensor([image.shape[2] / width, image.shape[1] / height] * 2, dtype=torch.float32)
        boxes = change.boxes(torch.from_numpy(objects.boxes), (height, width)) * factors
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
        image = change.color(change.geometry(image))
        return image, boxes[kept], torch.from_numpy(objects.labels)[kept]


def _pictures(batch: PlannedBatch) -> Iterator[tuple[int, int]]:
    """Yield the position in the epoch and the index of each picture of a batch."""
    return zip(batch.positions, batch.indices.tolist(), strict=True)
