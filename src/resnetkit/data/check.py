"""What is in a data set and what is wrong with it: counts, sizes, unreadable files, pictures that leak into test."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low

import numpy as np

from resnetkit.data.dataset import open_dataset
from resnetkit.data.pictures import open_picture
from resnetkit.data.samples import Samples
from resnetkit.display import count, cut, line
from resnetkit.errors import DataError


@dataclass(frozen=True)
class Report:
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
    """Groups of equal pictures in more than one part, each as "part: path" (in memory: its number in the part)."""

    def __repr__(self) -> str:
        parts = (f"{name} {sum(per_class.values()):,}" for name, per_class in self.counts.items())
        classes = count(len(next(iter(self.counts.values()))), "class")
        return line(type(self), repr(cut(self.name, 60)), classes, *parts, "sound" if self.sound else "to mend")

    @property
    def sound(self) -> bool:
        """Whether there is nothing to mend."""
        return not (self.unreadable or self.leaks or self.problems)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the set as a whole."""
        classes = next(iter(self.counts.values()))
        if len(classes) < 2:
            return (f"all pictures are of one class, {next(iter(classes))}; a classifier needs two or more",)
        return ()


@dataclass(frozen=True)
class _Finding:
    size: tuple[int, int] | None
    content: bytes
    """A hash of the file."""
    reason: str = ""


def check(data: str, *, workers: int = 4) -> Report:
    """Open every picture of a set, with `workers` threads, and report; `data` is what `open_dataset` takes.

    Raises what `open_dataset` raises; an unreadable picture is in the report.
    """
    dataset = open_dataset(data)
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    counts: dict[str, dict[str, int]] = {}
    sizes: list[tuple[int, int]] = []
    unreadable: list[tuple[Path, str]] = []
    places: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for part, samples in parts.items():
        if samples is None:
            continue
        per_class = np.bincount(samples.labels, minlength=len(samples.classes)).tolist()
        counts[part] = dict(zip(samples.classes, per_class, strict=True))
        with ThreadPoolExecutor(workers) as pool:
            findings = list(pool.map(partial(_look, samples), range(len(samples))))
        for index, finding in enumerate(findings):
            place = str(index) if samples.paths is None else str(samples.paths[index])
            if finding.size:
                sizes.append(finding.size)
            else:
                unreadable.append((Path(place), finding.reason))
            if finding.content:
                places[finding.content].append((part, place))
    leaks = tuple(
        tuple(f"{part}: {place}" for part, place in group)
        for group in places.values()
        if len({part for part, _ in group}) > 1
    )
    return Report(
        dataset.name,
        counts,
        _range([width for width, _ in sizes]),
        _range([height for _, height in sizes]),
        tuple(unreadable),
        dataset.skipped,
        leaks,
    )


def _look(samples: Samples, index: int) -> _Finding:
    """Open one picture and take its size and hash."""
    if samples.images is not None:
        pixels = samples.images[index]
        return _Finding((pixels.shape[1], pixels.shape[0]), hashlib.sha256(pixels.tobytes()).digest())
    path = (samples.paths or ())[index]
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return _Finding(None, b"", f"can't be read: {error.strerror or error}")
    try:
        return _Finding(open_picture(path).size, content)
    except DataError as error:
        return _Finding(None, content, str(error).removeprefix(f"{path}: "))


def _range(values: list[int]) -> tuple[int, int, int]:
    return (min(values), median_low(values), max(values)) if values else (0, 0, 0)
