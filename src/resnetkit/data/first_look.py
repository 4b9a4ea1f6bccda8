"""The quick form of `data check` before a training: alike pictures, leaks between given parts, contradictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.duplicates import alike_numbers, groups_of
from resnetkit.data.looks import Looks, look_at
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count
from resnetkit.progress import Advance, ignore

MOST_LOOKED_AT = 20_000
"""Larger sets are not looked at before a training, because that takes minutes; `data check` looks at all of them."""


class FirstLook:
    """Looks at each picture of a data set once, at about an eighth of its sides."""

    def __init__(self, *, workers: int = 2, advance: Advance = ignore) -> None:
        """`workers` threads decode. `advance` is called with 1 after each picture."""
        self._workers, self._advance = workers, advance
        self._place: dict[Path, int] = {}
        self._looks = Looks(0)

    def alike_of(self, paths: Sequence[Path]) -> NDArray[np.int64]:
        """Return a number for each file, int64 (n,), equal for alike ones; all are different above MOST_LOOKED_AT."""
        if len(paths) > MOST_LOOKED_AT:
            return np.arange(len(paths))
        self._looks = self._look_at(paths)
        self._place = {path: index for index, path in enumerate(paths)}
        return alike_numbers(self._looks)

    def remarks(self, dataset: Dataset) -> list[str]:
        """Return what to know before a training, one phrase each: contradictions, and leaks between given parts."""
        paths = [path for samples in dataset.parts.values() for path in samples.paths or ()]
        if not paths:
            return []
        if len(paths) > MOST_LOOKED_AT:
            return [f"{len(paths):,} pictures are not compared with each other; resnetkit data check does that"]
        new = [path for path in paths if path not in self._place]
        looks = Looks(len(paths))
        known = np.array([path in self._place for path in paths], bool)
        for part, of, places in (
            (self._looks, np.flatnonzero(known), [self._place[path] for path in paths if path in self._place]),
            (self._look_at(new), np.flatnonzero(~known), list(range(len(new)))),
        ):
            taken = part.taken(np.array(places, np.int64))
            looks.thumbnails[of], looks.digests[of], looks.comparable[of] = (
                taken.thumbnails,
                taken.digests,
                taken.comparable,
            )
        return _said(dataset, looks)

    def _look_at(self, paths: Sequence[Path]) -> Looks:
        samples = Samples(("",), np.zeros(len(paths), np.int64), paths=tuple(paths))
        return look_at([samples], workers=self._workers, advance=self._advance)


def _said(dataset: Dataset, looks: Looks) -> list[str]:
    """Return the remarks on groups of same and alike pictures, with the first pictures of each kind."""
    leaks: dict[str, list[str]] = {}
    several: list[str] = []
    for group in groups_of(dataset, looks):
        samples = [dataset.parts[place.part] for place in group.places]
        labels = {one.classes[one.labels[place.index]] for one, place in zip(samples, group.places, strict=True)}
        names = [one.place(place.index) for one, place in zip(samples, group.places, strict=True)]
        parts = {place.part for place in group.places}
        for part in ("val", "test"):
            if part in parts and "train" in parts:
                leaks.setdefault(part, []).append(" and ".join(_of_parts(names, group.places, part)))
        if len(labels) > 1:
            several.append(f"{names[0]} and {names[-1]} ({', '.join(sorted(labels))})")
    told = [
        f"leak: {count(len(groups), 'group')} of same or alike pictures {_are(groups)} in train and in {part}, so the "
        f"error on {part} is too low; first {groups[0]}"
        for part, groups in leaks.items()
    ]
    if several:
        told.append(
            f"contradiction: {count(len(several), 'group')} of same or alike pictures {_are(several)} in several "
            f"classes; first {several[0]}"
        )
    return [*told, "resnetkit data check names them all"] if told else []


def _of_parts(names: Sequence[str], places: Sequence[tuple[str, int]], part: str) -> list[str]:
    """Return the first picture of train, and the first of `part`."""
    return [next(name for name, place in zip(names, places, strict=True) if place[0] == one) for one in ("train", part)]


def _are(groups: Sequence[str]) -> str:
    return "is" if len(groups) == 1 else "are"
