"""Check a data set: count its pictures; find what is broken, same and alike pictures, leaks, and shortcuts."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import open_read
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.division import Keeping
from resnetkit.data.duplicates import Group, alike_numbers, groups_of
from resnetkit.data.looks import DIGEST_BYTES, Look, Looks, Traits, colours_of, digest, look_of
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.reading import NOTHING, Reading
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.shortcuts import Shortcut, find_shortcuts
from resnetkit.display import count, cut, line
from resnetkit.progress import Advance, ignore

PICTURES_AHEAD = 16
"""Number of pictures that each worker may be ahead; only their sizes, thumbnails and hashes are kept."""
FEW = 5
"""A class with fewer training pictures than this is named in a note."""
IMBALANCE = 10
"""If the largest class has so many times the pictures of the smallest one, a note says so."""
PAIRS_AT_ONCE = 2**24
"""Labels, of pictures with several, whose pairs are counted together."""
MOST_PAIRS = 20
"""Number of pairs of labels that are listed."""
ORDER = ("train", "val", "test")
"""The parts, from the one that loses a picture that is in several to the one that keeps it."""


@dataclass(frozen=True)
class Duplicate:
    """Pictures that are the same, or alike to the eye."""

    kind: Literal["same", "alike"]
    """same: their pixels are equal; alike: each is alike to another one of them."""
    paths: tuple[str, ...]
    """The files; for pictures in memory, their indices in their parts."""
    parts: tuple[str, ...]
    """The part of each picture: train, val or test."""
    labels: tuple[str, ...]
    """The class of each picture."""

    @property
    def leaks(self) -> bool:
        """Whether they are in several parts."""
        return len({*self.parts}) > 1

    @property
    def contradicts(self) -> bool:
        """Whether they are in several classes."""
        return len({*self.labels}) > 1

    def named(self, *, with_class: bool = False) -> tuple[str, ...]:
        """Return each picture as "part: path" or, with its class, "part: path (class)"."""
        return tuple(
            f"{part}: {path}" + (f" ({label})" if with_class else "")
            for path, part, label in zip(self.paths, self.parts, self.labels, strict=True)
        )


@dataclass(frozen=True)
class Together:
    """Two labels that pictures have at the same time."""

    labels: tuple[str, str]
    pictures: int
    """Pictures with both."""
    first: int
    """Pictures with the first one."""
    second: int


@dataclass(frozen=True)
class Findings:
    """The result of `check`."""

    name: str
    counts: Mapping[str, Mapping[str, int]]
    """Part (train, val, test) -> class -> number of pictures, with unreadable ones. Pictures with several labels are
    counted for each."""
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
    duplicates: tuple[Duplicate, ...] = ()
    """Groups of same and of alike pictures, within and across parts and classes."""
    examples: Mapping[str, Path] = field(default_factory=dict)
    """A file of each class that can be read, for pages; empty for pictures in memory."""
    shortcuts: tuple[Shortcut, ...] = ()
    """Facts other than the content that tell the label far better than chance does: a warning, not a fault."""
    pictures: Mapping[str, int] = field(default_factory=dict)
    """Part -> number of pictures, with unreadable ones."""
    labels: Literal["one", "several"] = "one"
    """Whether a picture has one label, or may have several or none."""
    without_label: Mapping[str, int] = field(default_factory=dict)
    """With several labels: part -> number of pictures without a label."""
    together: tuple[Together, ...] = ()
    """With several labels: the pairs that are together most often, at most MOST_PAIRS."""

    def __repr__(self) -> str:
        parts = (f"{name} {number:,}" for name, number in self.pictures.items())
        classes = count(len(next(iter(self.counts.values()))), "class")
        return line(type(self), repr(cut(self.name, 60)), classes, *parts, "sound" if self.sound else "to fix")

    @property
    def sound(self) -> bool:
        """Whether there is nothing to fix.

        Copies and alike pictures in one class and part, skipped files and shortcuts are accepted, missing files of a
        list are not.
        """
        faulty = any(group.leaks or group.contradicts for group in self.duplicates)
        return not (self.unreadable or faulty or self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """Mistakes in the data set as a whole, one phrase each."""
        classes = next(iter(self.counts.values()))
        found: list[str] = []
        if len(classes) < 2 and self.labels == "one":
            only = next(iter(classes))
            found.append(f"all pictures are of one class, {only}; a classifier needs two or more")
        if self.missing:
            total = self.missing + sum(self.pictures.values())
            found.append(f"{self.missing:,} of {total:,} files are missing")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, for JSON."""
        return vars(self) | {
            "data": self.name,
            "parts": self.counts,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
            "examples": {label: str(path) for label, path in self.examples.items()},
            "skipped": {str(path): reason for path, reason in self.skipped},
            "together": [vars(pair) for pair in self.together],
            "duplicates": [vars(group) for group in self.duplicates],
            "shortcuts": [
                {"from": one.source, "accuracy_percent": one.accuracy_percent, "chance_percent": one.chance_percent}
                for one in self.shortcuts
            ],
            "problems": self.problems,
        }


def check(
    data: str | Path | Dataset, reading: Reading = NOTHING, *, workers: int = 4, advance: Advance = ignore
) -> Findings:
    """Open every picture of a data set, and return the numbers of pictures and all mistakes.

    `data` is a Dataset, or a value that `open_dataset` accepts, with its layout in `reading`. If val is drawn, it is
    drawn as for training: alike pictures stay together. `workers` threads decode the pictures; 0 decodes them in the
    calling thread. `advance` is called with 1 after each picture. Memory contains a few pictures at a time, and some
    3 kB for each picture of the data set, with its path; thumbnails of large sets are in a temporary file.

    Raises the errors of `open_dataset`. An unreadable picture is not an error: it is listed in `unreadable`.
    """
    dataset = data if isinstance(data, Dataset) else open_read(data, reading, val_fraction=0)
    seen = _Seen(dataset)
    seen.look(workers=workers, advance=advance)
    if not isinstance(data, Dataset) and "val" not in dataset.parts and "train" in dataset.parts:
        dataset = open_read(data, reading, keeping=Keeping(seen.alike_of))
        seen.reorder(dataset)
    counts = {
        part: dict(zip(samples.classes, samples.per_class.tolist(), strict=True))
        for part, samples in dataset.parts.items()
    }
    alike = alike_numbers(seen.looks)
    duplicates = [_duplicate(dataset, group) for group in groups_of(dataset, seen.looks, alike)]
    same = [group for group in duplicates if group.kind == "same"]
    labels = np.concatenate([samples.labels for samples in dataset.parts.values()])
    told = [note for note in dataset.notes if not note.endswith("files are missing")]
    if dataset.several:
        told += _always(dataset)
        told = [note for note in told if not note.endswith("without a label")]  # `without_label` has it by part
    return Findings(
        dataset.name,
        counts,
        _range(seen.widths),
        _range(seen.heights),
        tuple(seen.unreadable),
        dataset.skipped,
        leaks=tuple(group.named() for group in same if group.leaks),
        contradictions=tuple(group.named(with_class=True) for group in same if group.contradicts),
        copies=tuple(group.named() for group in same if not group.leaks and not group.contradicts),
        notes=(*told, *_uneven(counts)),
        missing=dataset.missing,
        duplicates=tuple(duplicates),
        examples=_examples(dataset, {path for path, _ in seen.unreadable}),
        shortcuts=find_shortcuts(seen.looks.facts, labels, alike, names=dataset.classes),
        pictures={part: len(samples) for part, samples in dataset.parts.items()},
        labels="several" if dataset.several else "one",
        without_label={part: int((samples.labels.sum(axis=1) == 0).sum()) for part, samples in dataset.parts.items()}
        if dataset.several
        else {},
        together=_together(labels, dataset.classes) if dataset.several else (),
    )


def to_move(findings: Findings) -> dict[Path, str]:
    """Return the files that are better moved aside, each with the reason.

    They are unreadable files; equal pictures with several labels, all of them, since the right one is not known; and
    training pictures that are the same as, or alike to, pictures of val or test; and those of val that are in test.
    """
    files = dict(findings.unreadable)
    for group in findings.duplicates:
        worst = max(group.parts, key=ORDER.index)
        for path, part in zip(group.paths, group.parts, strict=True):
            if group.kind == "same" and group.contradicts:
                files.setdefault(Path(path), "equal pictures have several labels")
            elif group.leaks and part != worst:
                files.setdefault(Path(path), f"{group.kind} as a picture of {worst}")
    return files


class _Seen:
    """What is known of all pictures of a data set, part after part."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        pictures = sum(map(len, dataset.parts.values()))
        self.looks = Looks(pictures)
        self.widths, self.heights = array("I"), array("I")
        self.unreadable: list[tuple[Path, str]] = []

    def look(self, *, workers: int, advance: Advance) -> None:
        """Decode every picture once."""
        first = 0
        for samples in self._dataset.parts.values():
            looking = prefetch(
                partial(_look, samples),
                range(len(samples)),
                workers=workers,
                ahead=PICTURES_AHEAD * workers,
                path_of=samples.path,
            )
            with closing(looking):
                for index, look in enumerate(looking, first):
                    if isinstance(look, Failure):
                        assert look.path is not None  # pictures in memory can always be read
                        self.unreadable.append((look.path, look.reason))
                        if content := _hash_file(look.path):
                            self.looks.digests[index] = np.frombuffer(content, np.uint8)
                    else:
                        assert look.traits is not None
                        self.widths.append(look.traits.width)
                        self.heights.append(look.traits.height)
                        self.looks.put(index, look)
                    advance(1)
            first += len(samples)

    def alike_of(self, paths: Sequence[Path]) -> NDArray[np.int64]:
        """Return a number for each file, equal for alike ones; the files are among those that were looked at."""
        place = {path: index for index, path in enumerate(self._paths(self._dataset))}
        return alike_numbers(self.looks)[[place[path] for path in paths]]

    def reorder(self, dataset: Dataset) -> None:
        """Sort what is known into the order of the same pictures in other parts."""
        place = {path: index for index, path in enumerate(self._paths(self._dataset))}
        order = np.array([place[path] for path in self._paths(dataset)], np.int64)
        self.looks = self.looks.taken(order)
        self._dataset = dataset

    @staticmethod
    def _paths(dataset: Dataset) -> list[Path]:
        return [path for samples in dataset.parts.values() for path in samples.paths or ()]


def _duplicate(dataset: Dataset, group: Group) -> Duplicate:
    """Return a group with the names of its pictures."""
    places = [(place, dataset.parts[place.part]) for place in group.places]
    return Duplicate(
        group.kind,
        tuple(samples.place(place.index) for place, samples in places),
        tuple(place.part for place, _ in places),
        tuple(samples.label(place.index) for place, samples in places),
    )


def _examples(dataset: Dataset, unreadable: set[Path]) -> dict[str, Path]:
    """Return the first readable file of each class."""
    found: dict[str, Path] = {}
    for samples in dataset.parts.values():
        for index, path in enumerate(samples.paths or ()):
            own = np.flatnonzero(samples.labels[index]) if samples.several else [samples.labels[index]]
            for label in own:
                if samples.classes[label] not in found and path not in unreadable:
                    found[samples.classes[label]] = path
    return found


def _together(labels: NDArray[np.int64], names: Sequence[str]) -> tuple[Together, ...]:
    """Return the most frequent pairs of labels; labels are int64 (pictures, classes), 0 or 1."""
    first, second, counts = pairs_of(labels)
    totals = labels.sum(axis=0)
    return tuple(
        Together((names[i], names[j]), int(counts[place]), int(totals[i]), int(totals[j]))
        for place in np.argsort(-counts, kind="stable")[:MOST_PAIRS]
        for i, j in [(first[place], second[place])]
    )


def pairs_of(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of labels that pictures have, and how many have both: three int64 (pairs,), first < second.

    Only pairs that occur are counted: a table of all of them is too large for thousands of labels.
    """
    classes = labels.shape[1]
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    size = max(1, PAIRS_AT_ONCE // max(1, classes))
    for start in range(0, len(labels), size):
        rows, columns = np.nonzero(labels[start : start + size])
        ends = np.searchsorted(rows, rows, side="right")
        more = ends - np.arange(len(rows)) - 1  # labels of the same picture after this one
        before = np.cumsum(more) - more
        place = np.arange(more.sum()) - np.repeat(before, more) + np.repeat(np.arange(len(rows)) + 1, more)
        codes, inverse = np.unique(
            np.concatenate([codes, np.repeat(columns, more) * classes + columns[place]]), return_inverse=True
        )
        counts = np.bincount(inverse, np.concatenate([counts, np.ones(len(place))])).astype(np.int64)
    return codes // classes, codes % classes, counts


def _always(dataset: Dataset) -> list[str]:
    """Return notes on labels that all training pictures have, and on labels that are never without another one."""
    if dataset.train is None or not len(dataset.train):
        return []
    labels, names = dataset.train.labels, dataset.classes
    totals = labels.sum(axis=0)
    notes = [
        f"all training pictures have the label {names[i]!r}, so nothing can be learnt about it"
        for i in np.flatnonzero(totals == len(labels))
    ]
    first, second, both = pairs_of(labels)
    one, other = np.concatenate([first, second]), np.concatenate([second, first])
    kept = (np.tile(both, 2) == totals[one]) & (totals[one] >= FEW) & (totals[other] < len(labels))
    never = [f"{names[i]!r} without {names[j]!r}" for i, j in sorted(zip(one[kept], other[kept], strict=True))]
    if never:
        more = f" and {len(never) - 3} more pairs" if len(never) > 3 else ""
        notes.append(f"labels that never occur without another one: {', '.join(never[:3])}{more}")
    return notes


def _uneven(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return notes on classes with few training pictures, and on the largest and the smallest class."""
    train = {name: number for name, number in next(iter(counts.values())).items() if number}
    few = {name: number for name, number in train.items() if number < FEW}
    notes: list[str] = []
    if few:
        named = ", ".join(f"{name!r} {number}" for name, number in list(few.items())[:3])
        more = f" and {len(few) - 3} more" if len(few) > 3 else ""
        notes.append(f"classes with fewer than {FEW} training pictures: {named}{more}")
    if train and max(train.values()) >= IMBALANCE * min(train.values()):
        largest, smallest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
        notes.append(
            f"uneven classes: {train[largest]:,} training pictures of {largest!r}, {train[smallest]:,} of {smallest!r}"
        )
    return notes


def _look(samples: Samples, index: int) -> Look:
    """Decode a whole picture, and return what is known of it. Raises DataError for a file that can't be read."""
    if samples.images is not None:
        look, pixels = look_of(samples, index), samples.images[index]
    else:
        look = look_of(samples, index)  # first, so that a large picture is in memory once at a time
        pixels = np.asarray(open_picture(samples.source(index)))
    colours, edges = colours_of(pixels)
    traits = look.traits or Traits(0, 0)
    traits = traits._replace(width=pixels.shape[1], height=pixels.shape[0], colours=colours, edges=edges)
    return look._replace(digest=_content(pixels), traits=traits)


def _content(pixels: NDArray[np.uint8]) -> bytes:
    """Return a hash of a picture's shape and pixels."""
    return digest(str(pixels.shape).encode(), np.ascontiguousarray(pixels).data)


def _hash_file(path: Path) -> bytes:
    """Return a hash of the bytes of a file; empty if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:DIGEST_BYTES]
    except OSError:
        return b""


def _range(values: "array[int]") -> tuple[int, int, int]:
    """Return the smallest, the median and the largest value; zeros if there are no values."""
    return (min(values), median_low(values), max(values)) if values else (0, 0, 0)
