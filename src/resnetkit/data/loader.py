"""Batches of pictures for training and evaluation. They are read by threads before they are needed."""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.decoding.pictures import PictureFile, PictureSource, open_picture
from resnetkit.data.order import Order, PlannedBatch
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Samples
from resnetkit.data.transforms import resampling
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.crops import write_crop
from resnetkit.data.transforms.mixing import Mix, Mixing
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import count, line
from resnetkit.errors import DataError, UsageError

logger = logging.getLogger("resnetkit")

BATCHES_AHEAD = 2  # read before they are needed: enough to hide the time of decoding, and few enough for the memory


@dataclass(frozen=True)
class Batch:
    """n pictures that the network computes together."""

    images: Tensor
    """uint8 (n, channels, side, side), 0 to 255, in channels_last memory; input of `Normalize`. `side` is the
    size of the network's input, or of the crops if they have another size."""
    labels: Tensor
    """int64 (n,)."""
    indices: Tensor
    """int64 (n,): the pictures' indices in the samples."""
    number: int
    """Number of the batch in its epoch, from 0. A run that stopped after this batch goes on at `number + 1`."""
    mix: Mix | None = None
    """How the normalised pictures and the labels are to be mixed; None if they are not."""

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return line(type(self), f"{count(len(self.labels), 'picture')} of {shape}", f"number {self.number}")


class Loader:
    """Epochs of batches from samples.

    Batches are equal to the bit for any number of workers. An epoch can start at any of its batches: see `Order`.
    """

    def __init__(
        self,
        samples: Samples,
        preprocess: Preprocess,
        *,
        batch_size: int,
        augment: Augment | None = None,
        mixing: Mixing | None = None,
        alternate_flip: bool = False,
        shuffle: bool = False,
        balanced: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        strict: bool = False,
    ) -> None:
        """Read no picture yet: this begins with an epoch.

        Without `augment`, pictures are only preprocessed, as in validation. `mixing` draws how the pictures of each
        batch are mixed; the images themselves are not mixed yet. `alternate_flip` mirrors every picture in
        every other epoch: half of the pictures in even epochs, the others in odd epochs. Use it with an `augment` that
        does not flip. `balanced` epochs have the same number of pictures of each class: some pictures come several
        times, others not in every epoch. `drop_last` leaves out a last batch that is smaller than the others.

        `workers` threads decode files; with 0, the calling thread does. Pictures in memory that have the right size
        need no threads. With `strict`, an unreadable file raises DataError; without it, the file is skipped with a
        warning.

        Raises UsageError for a number out of range or for an epoch without a batch, DataError without pictures.
        """
        if workers < 0:
            raise UsageError(f"`workers` is {workers}; it must be at least 0")
        self.samples = samples
        self.preprocess = preprocess
        self.augment = augment
        self.mixing = mixing
        self.order = Order(
            len(samples),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            alternate_flip=alternate_flip,
            balanced=samples.labels if balanced else None,
        )
        self.workers = workers
        self.strict = strict
        self.unreadable: dict[Path, str] = {}
        """The files that were skipped so far, each with the reason."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.order)

    def epoch(self, epoch: int = 0, first_batch: int = 0, *, augment: Augment | None = None) -> Generator[Batch]:
        """Yield the batches of an epoch from `first_batch` on. `augment`, if given, replaces the loader's own.

        Unreadable files are missing in their batch. A batch without a readable file is left out with its number. When
        the iterator is closed or deleted, its threads end. Raises UsageError for a batch or an epoch that does not
        exist.
        """
        batches = self.order.batches(epoch, first_batch)
        augment = augment or self.augment
        if self.samples.images is not None and self._is_ready(self.samples.images, augment):
            return self._from_memory(self.samples.images, augment, epoch, batches)
        return self._decoded(augment, epoch, batches)

    def _is_ready(self, images: NDArray[np.uint8], augment: Augment | None) -> bool:
        """Whether pictures in memory need no preprocessing and can be augmented a batch at a time."""
        size = self.preprocess.size
        fits = images.shape[1:] == (size, size, self.preprocess.channels) and self.preprocess.shorter_side == size
        return fits and not (augment and augment.resizes)

    def _from_memory(
        self, images: NDArray[np.uint8], augment: Augment | None, epoch: int, batches: Iterator[PlannedBatch]
    ) -> Generator[Batch]:
        for batch in batches:
            pixels = images[batch.indices]
            if augment:
                pixels = augment.batch(pixels, self.order.batch_rng(epoch, batch.number))
            if batch.mirrored.any():
                pixels[batch.mirrored] = pixels[batch.mirrored, :, ::-1]
            yield self._batch(epoch, batch.number, batch.indices, pixels)

    def _decoded(self, augment: Augment | None, epoch: int, batches: Iterator[PlannedBatch]) -> Generator[Batch]:
        resampling.prepare()
        side = augment.side(self.preprocess) if augment else self.preprocess.size
        started: deque[tuple[PlannedBatch, NDArray[np.uint8]]] = deque()

        def pictures() -> Iterator[_Picture]:
            for batch in batches:
                pixels = np.empty((len(batch.indices), side, side, self.preprocess.channels), np.uint8)
                started.append((batch, pixels))
                yield from map(_Picture, batch.indices.tolist(), batch.positions, batch.mirrored.tolist(), pixels)

        reading = prefetch(
            partial(self._read, augment, epoch),
            pictures(),
            workers=self.workers,
            ahead=BATCHES_AHEAD * self.order.batch_size,
            path_of=lambda picture: self.samples.path(picture.index),
        )
        with closing(reading):
            for first in reading:
                batch, pixels = started.popleft()
                failures = [first, *islice(reading, len(batch.indices) - 1)]
                readable = self._readable(batch, failures)
                if readable.all():
                    yield self._batch(epoch, batch.number, batch.indices, pixels)
                elif readable.any():
                    yield self._batch(epoch, batch.number, batch.indices[readable], pixels[readable])

    def _read(self, augment: Augment | None, epoch: int, picture: "_Picture") -> None:
        """Write the pixels of one picture to its `out`. Runs in any thread, because it changes nothing else."""
        write_pixels(
            picture.out,
            self.samples.source(picture.index),
            self.preprocess,
            augment,
            rng=lambda: self.order.picture_rng(epoch, picture.position),
        )
        if picture.mirrored:
            picture.out[:] = picture.out[:, ::-1].copy()

    def _readable(self, batch: PlannedBatch, failures: Sequence[Failure | None]) -> NDArray[np.bool_]:
        """Return which pictures of a batch could be read, bool (n,). Record the others and log a warning for each."""
        for index, failure in zip(batch.indices, failures, strict=True):
            if failure is None:
                continue
            if failure.path is None:
                raise DataError(f"picture {index}: {failure.reason}")
            if self.strict:
                raise DataError(f"{failure}. Remove the file, or leave out `strict` to skip it")
            if failure.path not in self.unreadable:
                logger.warning("skipped %s", failure)
            self.unreadable[failure.path] = failure.reason
        return np.array([failure is None for failure in failures])

    def _batch(self, epoch: int, number: int, indices: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Batch:
        """Return a Batch of pixels (n, side, side, channels). Its tensor is a view of them, in channels_last memory."""
        mix = None if self.mixing is None else self.mixing.draw(pixels.shape[2], self.order.mix_rng(epoch, number))
        return Batch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.samples.labels[indices]),
            indices=torch.from_numpy(indices.copy()),
            number=number,
            mix=mix,
        )


def write_pixels(
    out: NDArray[np.uint8],
    source: PictureSource,
    preprocess: Preprocess,
    augment: Augment | None = None,
    *,
    rng: Callable[[], np.random.Generator],
) -> None:
    """Decode a picture and write its pixels, preprocessed or augmented, to `out`: uint8 (side, side, channels).

    `rng` returns a new generator for this picture; it is called only if `augment` is given. Any thread may call this.
    Raises DataError if the picture can't be read.
    """
    mode = preprocess.mode
    if augment is None:
        out[:] = preprocess.pixels(open_picture(source, mode=mode))
    elif augment.resizes:
        draws = rng()
        # The crop is drawn before decoding, so that only the needed part is decoded.
        file = PictureFile(source, mode=mode)
        box, mirrored = augment.cut(file.size, preprocess, draws)
        pixels, box = file.part(box, at_least=len(out))
        write_crop(out, pixels, box, interpolation=preprocess.interpolation, mirrored=mirrored)
        out[:] = augment.altered(out[None], draws)[0]
    else:
        pixels = preprocess.pixels(open_picture(source, mode=mode, at_least=preprocess.shorter_side))
        out[:] = augment.batch(pixels[None], rng())[0]


class _Picture(NamedTuple):
    """A picture that a thread will read."""

    index: int
    """Index in the samples."""
    position: int
    """Position in the epoch, from 0."""
    mirrored: bool
    out: NDArray[np.uint8]
    """The array for its pixels: (side, side, channels)."""
