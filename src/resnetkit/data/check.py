"""Check a data set: count its pictures; find unreadable files, and equal pictures in several classes or parts."""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import open_dataset
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count, cut, line
from resnetkit.progress import Advance, ignore

PICTURES_AHEAD = 16
"""Number of pictures that each worker may be ahead; only their sizes and hashes are kept."""


@dataclass(frozen=True)
class Findings:
    """The result of `check`."""

    name: str
    counts: Mapping[str, Mapping[str, int]]
    """Part (train, val, test) -> class -> number of pictures, with unreadable ones."""
    widths: tuple[int, int, int]
    """Smallest, median and largest width in pixels, after EXIF rotation; zeros if no picture can be read."""
    heights: tuple[int, int, int]
    """Smallest, median and largest height, in the same way."""
    unreadable: tuple[tuple[Path, str], ...]
    """Files that can't be read, each with the reason."""
    skipped: tuple[tuple[Path, str], ...]
    """Files that were left out, each with the reason: see `Dataset.skipped`."""
    leaks: tuple[tuple[str, ...], ...]
    """Groups of equal pictures in several parts, each picture as "part: path" (in memory: its index in the part).
    Pictures are equal if their pixels are equal. Unreadable files are equal if their bytes are equal."""
    contradictions: tuple[tuple[str, ...], ...] = ()
    """Groups of equal pictures in several classes, each picture as "part: path (class)"."""
    copies: tuple[tuple[str, ...], ...] = ()
    """Groups of equal pictures in one part and class, each picture as "part: path". They are not an error, but each of
    them counts."""
    notes: tuple[str, ...] = ()
    """Facts that limit the meaning of an error measured on the data set: see `Dataset.notes`."""
    missing: int = 0
    """Number of skipped files that are in a list but do not exist."""

    def __repr__(self) -> str:
        parts = (f"{name} {sum(per_class.values()):,}" for name, per_class in self.counts.items())
        classes = count(len(next(iter(self.counts.values()))), "class")
        return line(type(self), repr(cut(self.name, 60)), classes, *parts, "sound" if self.sound else "to fix")

    @property
    def sound(self) -> bool:
        """Whether there is nothing to fix. Copies and skipped files are accepted, missing files of a list are not."""
        return not (self.unreadable or self.leaks or self.contradictions or self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """Mistakes in the data set as a whole, one phrase each."""
        classes = next(iter(self.counts.values()))
        found: list[str] = []
        if len(classes) < 2:
            only = next(iter(classes))
            found.append(f"all pictures are of one class, {only}; a classifier needs two or more")
        if self.missing:
            total = self.missing + sum(sum(per_class.values()) for per_class in self.counts.values())
            found.append(f"{self.missing:,} of {total:,} files are missing")
        return tuple(found)


def check(data: str | Path | Dataset, *, workers: int = 4, advance: Advance = ignore) -> Findings:
    """Open every picture of a data set, and return the numbers of pictures and all mistakes.

    `data` is a Dataset, or a value that `open_dataset` accepts. `workers` threads decode the pictures; 0 decodes them
    in the calling thread. `advance` is called with 1 after each picture. Memory contains a few pictures at a time, and
    a few dozen bytes for each picture of the data set.

    Raises the errors of `open_dataset`. An unreadable picture is not an error: it is listed in `unreadable`.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data)
    widths, heights = array("I"), array("I")
    unreadable: list[tuple[Path, str]] = []
    first: dict[bytes, _Place] = {}
    again: dict[bytes, list[_Place]] = defaultdict(list)
    counts: dict[str, dict[str, int]] = {}
    for part, samples in dataset.parts.items():
        per_class = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
        counts[part] = dict(zip(samples.classes, per_class, strict=True))
        looking = prefetch(
            partial(_look, samples),
            range(len(samples)),
            workers=workers,
            ahead=PICTURES_AHEAD * workers,
            path_of=samples.path,
        )
        with closing(looking):
            for index, seen in enumerate(looking):
                if not isinstance(seen, Failure):
                    widths.append(seen.width)
                    heights.append(seen.height)
                    content = seen.content
                else:
                    assert seen.path is not None  # pictures in memory can always be read
                    unreadable.append((seen.path, seen.reason))
                    content = _hash_file(seen.path)
                if content:
                    place = _Place(part, index)
                    if first.setdefault(content, place) is not place:
                        again[content].append(place)
                advance(1)
    groups = [_Group(dataset, [first[content], *others]) for content, others in again.items()]
    return Findings(
        dataset.name,
        counts,
        _range(widths),
        _range(heights),
        tuple(unreadable),
        dataset.skipped,
        leaks=tuple(group.named() for group in groups if len(group.parts) > 1),
        contradictions=tuple(group.named(with_class=True) for group in groups if len(group.classes) > 1),
        copies=tuple(group.named() for group in groups if len(group.parts) == len(group.classes) == 1),
        notes=tuple(note for note in dataset.notes if not note.endswith("files are missing")),
        missing=dataset.missing,
    )


class _Look(NamedTuple):
    """The size of a picture, and a hash of its pixels."""

    width: int
    height: int
    content: bytes


class _Place(NamedTuple):
    """The part of a picture, and its index in the part."""

    part: str
    index: int


class _Group:
    """The places of a group of equal pictures."""

    def __init__(self, dataset: Dataset, places: Sequence[_Place]) -> None:
        self._samples = dataset.parts
        self._places = places
        self.parts = {place.part for place in places}
        self.classes = {self._class(place) for place in places}

    def _class(self, place: _Place) -> str:
        samples = self._samples[place.part]
        return samples.classes[samples.labels[place.index]]

    def named(self, *, with_class: bool = False) -> tuple[str, ...]:
        """Return each picture as "part: path" or, with its class, "part: path (class)"."""
        return tuple(
            f"{place.part}: {self._samples[place.part].place(place.index)}"
            + (f" ({self._class(place)})" if with_class else "")
            for place in self._places
        )


def _look(samples: Samples, index: int) -> _Look:
    """Open a picture, and return its size and hash. Raises DataError for a file that can't be read."""
    if samples.images is not None:
        return _kept(samples.images[index])
    return _kept(np.asarray(open_picture(samples.source(index))))


def _kept(pixels: NDArray[np.uint8]) -> _Look:
    """Return the size of a picture, uint8 (height, width, channels), and a hash of its shape and pixels."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return _Look(pixels.shape[1], pixels.shape[0], digest.digest())


def _hash_file(path: Path) -> bytes:
    """Return a hash of the bytes of a file; empty if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


def _range(values: "array[int]") -> tuple[int, int, int]:
    """Return the smallest, the median and the largest value; zeros if there are no values."""
    return (min(values), median_low(values), max(values)) if values else (0, 0, 0)
