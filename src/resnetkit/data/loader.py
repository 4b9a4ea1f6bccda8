"""Samples to batches: seeded, the same for any number of workers, and able to start in mid-epoch."""

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnetkit.data.decoding.pictures import ColorMode, PictureFile, open_picture
from resnetkit.data.samples import Samples
from resnetkit.data.transforms import resampling
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.crops import write_crop
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import count, line
from resnetkit.errors import DataError, UsageError

logger = logging.getLogger("resnetkit")

BATCHES_AHEAD = 2  # decoded before they are asked for: enough to hide decoding, little enough to hold in memory

# What a random stream is for; together with seed, epoch and position it is the stream's whole seed.
SHUFFLE, BATCH, PICTURE, MIRROR = range(4)


@dataclass(frozen=True)
class Batch:
    """n pictures that go through the network together."""

    images: Tensor
    """uint8 (n, channels, side, side), 0 to 255, in channels_last memory; see `Normalize`. `side` is the network's
    size, or that of the crops."""
    labels: Tensor
    """int64 (n,)."""
    indices: Tensor
    """int64 (n,): places in the samples."""
    number: int
    """Place in the epoch, from 0: a run that stopped after this batch goes on at `number + 1`."""

    def __len__(self) -> int:
        """Pictures."""
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.images.shape[1:]))
        return line(type(self), f"{count(len(self.labels), 'picture')} of {shape}", f"number {self.number}")


class Loader:
    """Epochs of batches from samples.

    Whatever is random derives from (seed, epoch, position), never from a state: batches are the same to the bit for any
    number of workers, and an epoch that starts at its tenth batch gives the tenth.
    """

    def __init__(
        self,
        samples: Samples,
        preprocess: Preprocess,
        *,
        batch_size: int,
        augment: Augment | None = None,
        alternate_flip: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        strict: bool = False,
    ) -> None:
        """Nothing is read before an epoch begins.

        Without `augment` pictures are only preprocessed, as in validation. `alternate_flip` mirrors every picture in
        every other epoch, half of them in the even ones; give it with an `augment` that does not flip. `drop_last`
        leaves out a last batch that is smaller than the others. `workers` threads decode files, 0 is none; pictures in
        memory that have the right size need none. `strict` raises DataError for an unreadable file, instead of naming
        and skipping it.

        Raises UsageError for a number that can't be meant or an epoch without a batch, DataError for no pictures.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("workers", workers, 0)):
            if value < least:
                raise UsageError(f"{name} is {value}; it must be at least {least}")
        self.samples = samples
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.augment = augment
        self.alternate_flip = alternate_flip
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.workers = workers
        self.strict = strict
        self.unreadable: dict[Path, str] = {}
        """Files that were skipped so far, with the reason."""
        if not len(samples):
            raise DataError("there are no pictures to load")
        if not len(self):
            raise UsageError(f"{len(samples)} pictures don't fill one batch of {batch_size}; lower the batch size")

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.samples), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int = 0, first_batch: int = 0, *, augment: Augment | None = None) -> Generator[Batch]:
        """The batches of an epoch from `first_batch` on, varied by `augment` in place of the loader's own, if given.

        A batch is smaller by its unreadable files, and left out, number and all, if none is readable. Once the iterator
        is closed, or let go, its threads have ended.
        """
        if epoch < 0 or not 0 <= first_batch <= len(self):
            raise UsageError(f"epoch {epoch} from batch {first_batch}; there are {len(self)} batches in an epoch")
        order = np.arange(len(self.samples))
        if self.shuffle:
            order = self._rng(epoch, SHUFFLE).permutation(order)
        numbers = range(first_batch, len(self))
        augment = augment or self.augment
        mirrored = self._mirrored(epoch)
        if self.samples.images is not None and self._is_ready(self.samples.images, augment):
            return self._from_memory(self.samples.images, augment, epoch, numbers, order, mirrored)
        return self._decoded(augment, epoch, numbers, order, mirrored)

    def _is_ready(self, images: NDArray[np.uint8], augment: Augment | None) -> bool:
        """Whether pictures in memory are what `preprocess` would make of them, and can be augmented by the batch."""
        size = self.preprocess.size
        fits = images.shape[1:] == (size, size, self.preprocess.channels) and self.preprocess.shorter_side == size
        return fits and not (augment and augment.resizes)

    def _rng(self, epoch: int, purpose: int, position: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, purpose, position])))

    def _mirrored(self, epoch: int) -> NDArray[np.bool_]:
        """Which samples are mirrored for being in this epoch (Jordan 2024, arXiv:2404.00498)."""
        if not self.alternate_flip:
            return np.zeros(len(self.samples), bool)
        return (self._rng(0, MIRROR).random(len(self.samples)) < 0.5) ^ bool(epoch % 2)

    def _from_memory(
        self,
        images: NDArray[np.uint8],
        augment: Augment | None,
        epoch: int,
        numbers: range,
        order: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> Generator[Batch]:
        for number in numbers:
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            pixels = images[indices]
            if augment:
                pixels = augment.batch(pixels, self._rng(epoch, BATCH, number))
            turned = mirrored[indices]
            if turned.any():
                pixels[turned] = pixels[turned, :, ::-1]
            yield self._batch(number, indices, pixels)

    def _decoded(
        self,
        augment: Augment | None,
        epoch: int,
        numbers: range,
        order: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
    ) -> Generator[Batch]:
        resampling.prepare()
        pool = ThreadPoolExecutor(self.workers, "resnetkit-decode") if self.workers else None
        # Both maps keep the order; the pool's begins at once, the built-in one when its results are asked for.
        each = pool.map if pool else map
        ahead = BATCHES_AHEAD if pool else 0
        begun: deque[_Begun] = deque()
        side = augment.side(self.preprocess) if augment else self.preprocess.size
        try:
            for number in numbers:
                first = number * self.batch_size
                indices = order[first : first + self.batch_size]
                pixels = np.empty((len(indices), side, side, self.preprocess.channels), np.uint8)
                decode = partial(self._decode, augment, epoch)
                positions = range(first, first + len(indices))
                reasons = each(decode, indices, positions, mirrored[indices], pixels)
                begun.append(_Begun(number, indices, pixels, reasons))
                if len(begun) > ahead:
                    yield from self._finished(begun.popleft())
            while begun:
                yield from self._finished(begun.popleft())
        finally:
            if pool:
                pool.shutdown(cancel_futures=True)

    def _decode(
        self,
        augment: Augment | None,
        epoch: int,
        index: int,
        position: int,
        mirrored: np.bool_,
        out: NDArray[np.uint8],
    ) -> str | None:
        """Write one picture's pixels to `out`, or say why not. Runs in any thread: it changes nothing else."""
        try:
            if augment and augment.resizes:
                self._write_cut(augment, index, self._rng(epoch, PICTURE, position), out)
            elif augment:
                at_least = self.preprocess.shorter_side
                picture = open_sample(self.samples, index, mode=self.preprocess.mode, at_least=at_least)
                out[:] = augment.picture(picture, self.preprocess, self._rng(epoch, PICTURE, position))
            else:
                out[:] = self.preprocess.pixels(open_sample(self.samples, index, mode=self.preprocess.mode))
        except DataError as error:
            if self.samples.paths is None:
                raise DataError(f"picture {index}: {error}") from error
            path = self.samples.paths[index]
            reason = str(error).removeprefix(f"{path}: ")
            if self.strict:
                raise DataError(f"{path}: {reason}. Remove the file, or run without --strict to skip it") from error
            return reason
        if mirrored:
            out[:] = out[:, ::-1].copy()
        return None

    def _write_cut(self, augment: Augment, index: int, rng: np.random.Generator, out: NDArray[np.uint8]) -> None:
        """`Augment.picture`, with the crop drawn before decoding, so that no more is decoded than it needs."""
        picture = PictureFile(self.samples.source(index), mode=self.preprocess.mode)
        box, mirrored = augment.cut(picture.size, self.preprocess, rng)
        pixels, box = picture.part(box, at_least=len(out))
        write_crop(out, pixels, box, interpolation=self.preprocess.interpolation, mirrored=mirrored)
        if augment.pca_color:
            out[:] = augment.shift_colors(out[None], rng)[0]

    def _finished(self, batch: "_Begun") -> Generator[Batch]:
        """Wait for a batch; name and drop what is unreadable."""
        readable = np.ones(len(batch.indices), bool)
        for place, reason in enumerate(batch.reasons):
            if reason is not None and self.samples.paths is not None:
                readable[place] = False
                path = self.samples.paths[batch.indices[place]]
                if path not in self.unreadable:
                    logger.warning("skipped %s: %s", path, reason)
                self.unreadable[path] = reason
        if readable.all():
            yield self._batch(batch.number, batch.indices, batch.pixels)
        elif readable.any():
            yield self._batch(batch.number, batch.indices[readable], batch.pixels[readable])

    def _batch(self, number: int, indices: NDArray[np.int64], pixels: NDArray[np.uint8]) -> Batch:
        """`pixels` is (n, side, side, channels); the tensor is a view of it, and so in channels_last memory."""
        return Batch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            labels=torch.from_numpy(self.samples.labels[indices]),
            indices=torch.from_numpy(indices.copy()),
            number=number,
        )


@dataclass(frozen=True)
class _Begun:
    """A batch that is being decoded."""

    number: int
    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    """(n, side, side, channels), filled by the workers."""
    reasons: Iterator[str | None]
    """For each picture, once it is decoded, None, or why it can't be read."""


def open_sample(samples: Samples, index: int, *, mode: ColorMode = "RGB", at_least: int | None = None) -> Image.Image:
    """One picture of `samples`, from memory or decoded from its file; arguments and errors of `open_picture`."""
    source = samples.source(index)
    return open_picture(source, mode=mode, at_least=None if isinstance(source, Image.Image) else at_least)
