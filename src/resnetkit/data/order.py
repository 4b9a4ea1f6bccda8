"""The order of the pictures in epochs and batches, and the random numbers for each picture. No torch here.

All random numbers are computed from (seed, epoch, purpose, position) and not from a generator's state. So an epoch can
begin at any batch, and the order does not depend on the number of threads or processes that read the pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError, UsageError

# Purposes of random numbers. A generator is seeded by the seed, the epoch, the purpose and the position.
SHUFFLE, BATCH, PICTURE, MIRROR, MIX, BALANCE = range(6)


@dataclass(frozen=True)
class PlannedBatch:
    """The n pictures of a batch."""

    number: int
    """Number of the batch in the epoch, from 0."""
    positions: range
    """Positions of the pictures in the epoch, from 0."""
    indices: NDArray[np.int64]
    """Shape (n,): indices of the pictures in the data set."""
    mirrored: NDArray[np.bool_]
    """Shape (n,): whether `alternate_flip` mirrors the picture in this epoch."""

    def share(self, rank: int, world_size: int) -> "PlannedBatch":
        """Return the part of this batch for process `rank` of `world_size`: every `world_size`-th picture.

        The parts of all ranks together contain each picture of the batch once. Their sizes differ by at most one
        picture. If a batch has fewer pictures than there are processes, some parts are empty.

        Raises UsageError for a rank that does not exist.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"`rank` is {rank} and `world_size` {world_size}; ranks go from 0 to world_size - 1")
        part = slice(rank, None, world_size)
        return PlannedBatch(self.number, self.positions[part], self.indices[part], self.mirrored[part])


@dataclass(frozen=True)
class Order:
    """Epochs of batches of `pictures` pictures."""

    pictures: int
    """Pictures in the data set."""
    batch_size: int
    """Pictures in a batch."""
    shuffle: bool = False
    """Draw a new order for every epoch; otherwise the order is that of the data set."""
    seed: int = 0
    drop_last: bool = False
    """Leave out a last batch that is smaller than the others."""
    alternate_flip: bool = False
    """Mirror every picture in every other epoch: half of the pictures in even epochs, the others in odd epochs."""
    balanced: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    """Labels, int64 (pictures,): in every epoch, all labels then have the same number of pictures (up to one)."""

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range or for an epoch without a batch, DataError without pictures."""
        for name, value, least in (("batch_size", self.batch_size, 1), ("seed", self.seed, 0)):
            if value < least:
                raise UsageError(f"`{name}` is {value}; it must be at least {least}")
        if self.pictures < 1:
            raise DataError("there are no pictures to load")
        if not len(self):
            raise UsageError(f"{self.pictures} pictures don't fill a batch of {self.batch_size}; lower `batch_size`")

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(self.pictures, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int = 0, first_batch: int = 0) -> Iterator[PlannedBatch]:
        """Return an iterator over the batches of an epoch, from number `first_batch` on.

        Raises UsageError, before the first batch, for a negative epoch or a `first_batch` that is not from 0 to the
        number of batches.
        """
        if epoch < 0:
            raise UsageError(f"`epoch` is {epoch}; it must be at least 0")
        if not 0 <= first_batch <= len(self):
            raise UsageError(f"`first_batch` is {first_batch}; an epoch has {len(self)} batches")
        indices = np.arange(self.pictures) if self.balanced is None else self._balanced(epoch, self.balanced)
        if self.shuffle:
            indices = self._rng(epoch, SHUFFLE).permutation(indices)
        mirrored = self._mirrored(epoch)[indices]
        return (self._batch(number, indices, mirrored) for number in range(first_batch, len(self)))

    def batch_rng(self, epoch: int, number: int) -> np.random.Generator:
        """Return the generator for a batch that is augmented as a whole; `number` is its number in the epoch."""
        return self._rng(epoch, BATCH, number)

    def picture_rng(self, epoch: int, position: int) -> np.random.Generator:
        """Return the generator for a picture that is augmented alone; `position` is its position in the epoch."""
        return self._rng(epoch, PICTURE, position)

    def mix_rng(self, epoch: int, number: int) -> np.random.Generator:
        """Return the generator for mixing the pictures of a batch; `number` is its number in the epoch."""
        return self._rng(epoch, MIX, number)

    def _batch(self, number: int, indices: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> PlannedBatch:
        positions = range(number * self.batch_size, min((number + 1) * self.batch_size, self.pictures))
        part = slice(positions.start, positions.stop)
        return PlannedBatch(number, positions, indices[part], mirrored[part])

    def _balanced(self, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return as many indices as there are pictures, with each label equally often.

        A picture of a rare label comes several times; of the pictures of a frequent one, each epoch draws others. No
        picture comes again before all others of its label have come as often.
        """
        rng = self._rng(epoch, BALANCE)
        present = np.unique(labels)
        each, rest = divmod(self.pictures, len(present))
        more = set(rng.permutation(present)[:rest].tolist())
        chosen: list[NDArray[np.int64]] = []
        for label in present:
            own, wanted = np.flatnonzero(labels == label), each + (int(label) in more)
            chosen.append(np.tile(own, wanted // len(own)))
            chosen.append(rng.permutation(own)[: wanted % len(own)])
        return np.concatenate(chosen)

    def _mirrored(self, epoch: int) -> NDArray[np.bool_]:
        """Return which pictures of the data set are mirrored in this epoch (Jordan 2024, arXiv:2404.00498)."""
        if not self.alternate_flip:
            return np.zeros(self.pictures, bool)
        return (self._rng(0, MIRROR).random(self.pictures) < 0.5) ^ bool(epoch % 2)

    def _rng(self, epoch: int, purpose: int, position: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, purpose, position])))
