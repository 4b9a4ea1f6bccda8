"""What is in a data set and what is wrong with it: counts, sizes, unreadable files, contradictions, leaks, copies."""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import open_dataset
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count, cut, line
from resnetkit.errors import DataError
from resnetkit.progress import Advance, ignore


@dataclass(frozen=True)
class Findings:
    """What `check` found."""

    name: str
    counts: Mapping[str, Mapping[str, int]]
    """Pictures by part (train, val, test) and class, unreadable ones among them."""
    widths: tuple[int, int, int]
    """Smallest, median and largest, in pixels; of the upright pictures; zeros where none can be read."""
    heights: tuple[int, int, int]
    unreadable: tuple[tuple[Path, str], ...]
    """Each with the reason."""
    skipped: tuple[tuple[Path, str], ...]
    """Files that are no pictures by their names, each with the reason."""
    leaks: tuple[tuple[str, ...], ...]
    """Groups of equal pictures in more than one part, each as "part: path" (in memory: its number in the part).
    Pictures are equal if their pixels are; if they can't be read, if their bytes are."""
    contradictions: tuple[tuple[str, ...], ...] = ()
    """Groups of equal pictures of more than one class, each as "part: path (class)"."""
    copies: tuple[tuple[str, ...], ...] = ()
    """Groups of equal pictures of one part and class, each as "part: path"; no fault, but they count more than once."""
    notes: tuple[str, ...] = ()
    """What to know before the set's errors are believed: see `Dataset.notes`."""

    def __repr__(self) -> str:
        parts = (f"{name} {sum(per_class.values()):,}" for name, per_class in self.counts.items())
        classes = count(len(next(iter(self.counts.values()))), "class")
        return line(type(self), repr(cut(self.name, 60)), classes, *parts, "sound" if self.sound else "to mend")

    @property
    def sound(self) -> bool:
        """Whether there is nothing to mend."""
        return not (self.unreadable or self.leaks or self.contradictions or self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the set as a whole."""
        classes = next(iter(self.counts.values()))
        if len(classes) < 2:
            only = next(iter(classes))
            return (f"all pictures are of one class, {only}; a classifier needs two or more",)
        return ()


def check(data: str | Path | Dataset, *, workers: int = 4, advance: Advance = ignore) -> Findings:
    """Open every picture of a set, with `workers` threads, and report; `data` is a set, or what `open_dataset` takes.

    Memory holds a few pictures at a time, and a few dozen bytes for each of them. Raises what `open_dataset` raises; an
    unreadable picture is in the report.
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
        for index, finding in enumerate(_look_at_all(samples, workers)):
            if finding.size:
                widths.append(finding.size[0])
                heights.append(finding.size[1])
            else:
                unreadable.append((Path(samples.place(index)), finding.reason))
            if finding.content:
                place = _Place(part, index)
                if first.setdefault(finding.content, place) is not place:
                    again[finding.content].append(place)
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
        notes=dataset.notes,
    )


class _Finding(NamedTuple):
    size: tuple[int, int] | None
    content: bytes
    """A hash of the pixels, or of the file where there are none."""
    reason: str = ""


class _Place(NamedTuple):
    part: str
    index: int


class _Group:
    """Places of equal pictures."""

    def __init__(self, dataset: Dataset, places: Sequence[_Place]) -> None:
        self._samples = dataset.parts
        self._places = places
        self.parts = {place.part for place in places}
        self.classes = {self._class(place) for place in places}

    def _class(self, place: _Place) -> str:
        samples = self._samples[place.part]
        return samples.classes[samples.labels[place.index]]

    def named(self, *, with_class: bool = False) -> tuple[str, ...]:
        return tuple(
            f"{place.part}: {self._samples[place.part].place(place.index)}"
            + (f" ({self._class(place)})" if with_class else "")
            for place in self._places
        )


def _look_at_all(samples: Samples, workers: int) -> Iterator[_Finding]:
    """What is found in each picture, in order, by threads that are a few pictures ahead."""
    with ThreadPoolExecutor(workers) as pool:
        for begin in range(0, len(samples), 16 * workers):
            window = range(begin, min(begin + 16 * workers, len(samples)))
            yield from pool.map(partial(_look, samples), window)


def _look(samples: Samples, index: int) -> _Finding:
    """Open one picture and take its size and hash."""
    if samples.images is not None:
        return _found(samples.images[index])
    path = Path(samples.place(index))
    try:
        return _found(np.asarray(open_picture(path)))
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
    try:
        with path.open("rb") as file:
            return _Finding(None, hashlib.file_digest(file, "sha256").digest(), reason)
    except OSError:
        return _Finding(None, b"", reason)


def _found(pixels: NDArray[np.uint8]) -> _Finding:
    """The size of a picture, and a hash that sees its shape, too."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return _Finding((pixels.shape[1], pixels.shape[0]), digest.digest())


def _range(values: "array[int]") -> tuple[int, int, int]:
    return (min(values), median_low(values), max(values)) if values else (0, 0, 0)
