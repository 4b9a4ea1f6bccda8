"""Find pictures that are the same, or alike to the eye: recompressed, resized, cropped a little, mirrored, bursts.

A hash of 64 bits, the signs of a thumbnail's lowest frequencies, finds candidates through an index of four bands. Each
candidate pair is then compared at the thumbnails' 32×32 pixels, moved and scaled so that one covers the other best. No
torch here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.looks import DIGEST_BYTES, SIDE, Looks, look_at
from resnetkit.data.registration import correlations, could_match
from resnetkit.data.samples import Dataset, Samples
from resnetkit.progress import Advance, ignore

ALIKE = 0.955
"""Least correlation of the structure of two pictures, after one is moved and scaled onto the other, that are alike.
Measured: docs/data.md."""
BITS = 64
"""Number of bits of a perceptual hash."""
BANDS = 4
"""Number of bands of the index; each has BITS / BANDS bits."""
WEAK = 5
"""In each band, so many bits whose frequencies are weakest may differ between a picture and a candidate."""
MOST_BITS = 18
"""Largest number of bits in which the hashes of alike pictures differ."""
SIMILAR = 0.86
"""Least cosine between the strengths of these frequencies in two alike pictures."""
LEAST_CONTRAST = 1.5
"""Least standard deviation of a thumbnail, in grey levels of 255. Pictures with less are flat: they have no look."""
QUERIES = 1024
"""Number of pictures whose candidates are looked up together."""
PAIRS = 2**20
"""Number of pairs that are held at a time."""

PAIRS_COMPARED = 512
"""Number of pairs that are compared at a time; pairs that are in one group by then need no comparison."""


class Place(NamedTuple):
    """Where a picture is in a data set."""

    part: str
    """train, val or test."""
    index: int
    """Its index in the part."""


@dataclass(frozen=True)
class Group:
    """Pictures that are the same, or alike to the eye."""

    kind: Literal["same", "alike"]
    """same: the content is equal. alike: each picture is alike to another one of the group, and some differ."""
    places: tuple[Place, ...]
    """The pictures, at least two, in the order of the data set."""


def find_duplicates(dataset: Dataset, *, workers: int = 4, advance: Advance = ignore) -> tuple[Group, ...]:
    """Return the groups of same and alike pictures of a data set, within and across its parts.

    Files are the same if their bytes are. JPEG files are decoded at about an eighth of their sides, by `workers`
    threads. `advance` is called with 1 after each picture. Memory and a temporary file have some 1,200 bytes for each
    picture.
    """
    return groups_of(dataset, look_at(list(dataset.parts.values()), workers=workers, advance=advance))


def groups_of(dataset: Dataset, looks: Looks, alike: NDArray[np.int64] | None = None) -> tuple[Group, ...]:
    """Return the groups of a data set from the looks of all its pictures, part after part.

    `alike` are the `alike_numbers` of these looks, if they are known.
    """
    places = [Place(part, index) for part, samples in dataset.parts.items() for index in range(len(samples))]
    same = same_numbers(looks)
    found = [Group("same", tuple(places[member] for member in members)) for members in _members(same)]
    found += [
        Group("alike", tuple(places[member] for member in members))
        for members in _members(alike_numbers(looks) if alike is None else alike)
        if len(np.unique(same[members])) > 1
    ]
    return tuple(found)


def leaking(
    samples: Samples, against: Sequence[Samples], *, workers: int = 4, advance: Advance = ignore
) -> NDArray[np.bool_]:
    """Return which of n pictures, bool (n,), are the same as, or alike to, a picture of `against`: training pictures.

    `advance` is called with 1 after each picture of `samples` and `against`.
    """
    looks = look_at([samples, *against], workers=workers, advance=advance)
    count = len(samples)
    numbers = alike_numbers(looks, between=count)
    return np.isin(numbers[:count], numbers[count:])


def same_numbers(looks: Looks) -> NDArray[np.int64]:
    """Return a number for each picture, int64 (n,): equal for pictures whose digests are."""
    digests = np.ascontiguousarray(looks.digests).view(f"V{DIGEST_BYTES}")[:, 0]
    _, numbers = np.unique(digests, return_inverse=True)
    unknown = ~looks.digests.any(axis=1)
    numbers = numbers.astype(np.int64).reshape(-1)
    numbers[unknown] = len(looks) + np.flatnonzero(unknown)
    return numbers


def alike_numbers(looks: Looks, *, between: int | None = None) -> NDArray[np.int64]:
    """Return a number for each picture, int64 (n,): equal for pictures of a group of same or alike ones.

    With `between`, only pairs of a picture before this index and one from it on are sought.
    """
    sets = _Sets(same_numbers(looks))
    # Pictures with equal bytes are represented by the first of them on each side of `between`.
    sides = np.arange(len(looks)) >= (len(looks) if between is None else between)
    _, firsts = np.unique(np.stack([sets.roots, sides]), axis=1, return_index=True)
    firsts = np.sort(firsts[looks.comparable[firsts]])
    firsts = firsts[_contrast(looks, firsts) >= LEAST_CONTRAST]
    for one, other, mirrored in _candidates(looks, firsts, between):
        order = np.arange(len(one))
        while len(order):
            order = order[sets.apart(one[order], other[order])]
            batch, order = order[:PAIRS_COMPARED], order[PAIRS_COMPARED:]
            if not len(batch):
                break
            first, second = (looks.thumbnails[side[batch]] for side in (one, other))
            second = np.where(mirrored[batch][:, None, None], second[:, :, ::-1], second)
            near = np.flatnonzero(could_match(first, second))
            near = near[correlations(first[near], second[near]) >= ALIKE]
            sets.join(one[batch[near]], other[batch[near]])
    return sets.roots


class _Sets:
    """Disjoint sets of numbers: `roots` is one number for each set."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        """Begin with sets of equal `numbers`."""
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        self._parents = first[inverse.reshape(-1)].astype(np.int64)

    @property
    def roots(self) -> NDArray[np.int64]:
        """int64 (n,): the smallest index of the set of each index."""
        while True:
            above = self._parents[self._parents]
            if np.array_equal(above, self._parents):
                return above
            self._parents = above

    def apart(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs are in two sets, bool (m,)."""
        roots = self.roots
        return roots[one] != roots[other]

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Unite the sets of each pair."""
        for first, second in zip(one.tolist(), other.tolist(), strict=True):
            low, high = sorted((self._root(first), self._root(second)))
            self._parents[high] = low

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            index = int(self._parents[index])
        return index


def _members(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the indices with equal numbers, for each number that occurs more than once, in order."""
    order = np.argsort(numbers, kind="stable")
    cuts = np.flatnonzero(np.diff(numbers[order])) + 1
    groups = [members for members in np.split(order, cuts) if len(members) > 1]
    return sorted(groups, key=lambda members: int(members[0]))


def _contrast(looks: Looks, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    blocks = [looks.thumbnails[block].std(axis=(1, 2)) for block in _blocks(indices, QUERIES)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _blocks(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


# The perceptual hash


@cache
def _frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the BITS lowest vertical and horizontal frequencies without the mean, dealt out to the bands in turn."""
    pairs = sorted(((v, h) for v in range(SIDE) for h in range(SIDE) if v + h), key=lambda pair: (sum(pair), pair))
    dealt = [pairs[place] for band in range(BANDS) for place in range(band, BITS, BANDS)]
    return np.array([v for v, _ in dealt]), np.array([h for _, h in dealt])


@cache
def _cosines() -> NDArray[np.float32]:
    """Return the cosines of the DCT-II, float32 (frequencies, SIDE); mirroring changes the sign of odd frequencies."""
    highest = max(int(frequencies.max()) for frequencies in _frequencies())
    frequency, place = np.arange(highest + 1)[:, None], np.arange(SIDE)
    return np.cos(np.pi * (place + 0.5) * frequency / SIDE).astype(np.float32)


def _coefficients(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the strengths of the BITS lowest frequencies, float32 (n, BITS)."""
    cosines = _cosines()
    transformed = cosines @ thumbnails.astype(np.float32) @ cosines.T
    vertical, horizontal = _frequencies()
    return transformed[:, vertical, horizontal].astype(np.float32, copy=False)


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Return bits, bool (..., BITS), as a number for each band, uint16 (..., BANDS)."""
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view(">u2").astype(np.uint16)


@cache
def _subsets() -> NDArray[np.uint16]:
    """Return which of WEAK bits differ in each probe of the index, uint16 (2**WEAK, WEAK): 0 or 1."""
    return ((np.arange(2**WEAK)[:, None] >> np.arange(WEAK)) & 1).astype(np.uint16)


@cache
def _bit_counts() -> NDArray[np.uint8]:
    """Return the number of ones in each number of 16 bits, uint8 (65536,)."""
    return np.unpackbits(np.arange(2**16, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(1).astype(np.uint8)


class _Index:
    """The hashes of m pictures, and for each band their order by it."""

    def __init__(self, looks: Looks, indices: NDArray[np.int64]) -> None:
        self.strengths = np.zeros((len(indices), BITS), np.float16)
        """float16 (m, BITS): strengths of the frequencies, scaled to a vector of length 1."""
        for block in _blocks(np.arange(len(indices)), QUERIES):
            strengths = _coefficients(looks.thumbnails[indices[block]])
            self.strengths[block] = strengths / np.linalg.norm(strengths, axis=1, keepdims=True).clip(1e-6)
        self.hashes = _packed(self.strengths > 0)
        """uint16 (m, BANDS)."""
        self._orders = [np.argsort(hashes, kind="stable") for hashes in self.hashes.T]
        self._starts = [
            np.concatenate([[0], np.bincount(hashes, minlength=2**16).cumsum()]) for hashes in self.hashes.T
        ]

    def look_up(self, keys: NDArray[np.int64], band: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the rows of `keys`, int64 (queries, probes), and the pictures under these keys of a band, in blocks."""
        starts = self._starts[band]
        counts = starts[keys + 1] - starts[keys]
        for rows in _row_blocks(counts.sum(axis=1)):
            amounts = counts[rows].ravel()
            within = np.arange(int(amounts.sum())) - np.repeat(amounts.cumsum() - amounts, amounts)
            found = self._orders[band][np.repeat(starts[keys[rows]].ravel(), amounts) + within]
            yield np.repeat(np.repeat(np.arange(rows.start, rows.stop), keys.shape[1]), amounts), found


def _candidates(
    looks: Looks, indices: NDArray[np.int64], between: int | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield pairs of pictures whose hashes are near, nearest first in each block: two of `indices`, and if mirrored.

    A pair is found if, in one band of the hash, only bits of weak frequencies differ.
    """
    if len(indices) < 2:
        return
    index = _Index(looks, indices)
    _, horizontal = _frequencies()
    odd = horizontal % 2 == 1
    width = BITS // BANDS
    for block in _blocks(np.arange(len(indices)), QUERIES):
        weakest = np.argsort(np.abs(index.strengths[block]).reshape(-1, BANDS, width), axis=2, kind="stable")
        values = (1 << (width - 1 - weakest[:, :, :WEAK])).astype(np.uint16)
        probes = index.hashes[block][:, :, None] ^ (values @ _subsets().T)  # (queries, BANDS, 2**WEAK)
        for flip in (False, True):
            mirror = _packed(odd & flip)
            strengths = index.strengths[block].astype(np.float32) * np.where(odd & flip, -1, 1).astype(np.float32)
            near = [np.zeros((3, 0), np.int64)]
            for band in range(BANDS):
                for queries, others in index.look_up((probes[:, band] ^ mirror[band]).astype(np.int64), band):
                    mine = block[queries]
                    wanted = mine != others
                    if between is not None:
                        wanted &= (indices[mine] < between) != (indices[others] < between)
                    distances = _bit_counts()[(index.hashes[block] ^ mirror)[queries] ^ index.hashes[others]].sum(
                        axis=1
                    )
                    wanted = np.flatnonzero(wanted & (distances <= MOST_BITS))
                    similar = np.einsum("ij,ij->i", strengths[queries[wanted]], index.strengths[others[wanted]])
                    wanted = wanted[similar >= SIMILAR]
                    first, second = mine[wanted], others[wanted]
                    near.append(
                        np.stack([distances[wanted], np.minimum(first, second), np.maximum(first, second)]).astype(
                            np.int64
                        )
                    )
            chosen = np.unique(np.concatenate(near, axis=1), axis=1)  # in order of distance
            yield indices[chosen[1]], indices[chosen[2]], np.full(chosen.shape[1], flip)


def _row_blocks(amounts: NDArray[np.int64]) -> Iterator[slice]:
    """Yield consecutive rows whose amounts add up to PAIRS or less, or single rows."""
    start, total = 0, 0
    for row, amount in enumerate(amounts.tolist()):
        if total + amount > PAIRS and row > start:
            yield slice(start, row)
            start, total = row, 0
        total += amount
    if start < len(amounts):
        yield slice(start, len(amounts))
