"""The quick form of `data check` before a training: unreadable files, alike pictures, leaks, contradictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.duplicates import alike_numbers, groups_of
from resnetkit.data.looks import Look, Looks, looks_of
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count
from resnetkit.progress import Advance, ignore

MOST_LOOKED_AT = 20_000
"""Larger sets are not looked at before a training, because that takes minutes; `data check` looks at all of them."""
MOST_NAMED = 10
"""At most this many unreadable files are named."""


class FirstLook:
    """Looks at each picture of a data set once, at about an eighth of its sides."""

    def __init__(self, *, workers: int = 2, advance: Advance = ignore) -> None:
        """`workers` threads decode. `advance` is called with 1 after each picture."""
        self._workers, self._advance = workers, advance
        self._seen: dict[Path, Look] = {}

    @property
    def unreadable(self) -> dict[Path, str]:
        """The files that can't be read, as far as they were looked at, each with the reason."""
        return {path: look.fault for path, look in self._seen.items() if look.fault}

    def alike_of(self, paths: Sequence[Path]) -> NDArray[np.int64]:
        """Return a number for each file, int64 (n,), equal for alike ones; all are different above MOST_LOOKED_AT."""
        if len(paths) > MOST_LOOKED_AT:
            return np.arange(len(paths))
        return alike_numbers(self._look_at(paths))

    def look_at(self, dataset: Dataset) -> Looks | None:
        """Return the looks of the files of all parts, part after part; None in memory and above MOST_LOOKED_AT."""
        paths = [path for samples in dataset.parts.values() for path in samples.paths or ()]
        return self._look_at(paths) if 0 < len(paths) <= MOST_LOOKED_AT else None

    def remarks(self, dataset: Dataset, alike: NDArray[np.int64] | None = None) -> list[str]:
        """Return what to know before a training, one phrase each.

        These are unreadable files, leaks between given parts, and contradictions. `alike` are the `alike_numbers` of
        the looks, if they are known.
        """
        looks = self.look_at(dataset)
        if looks is None:
            files = sum(len(samples.paths or ()) for samples in dataset.parts.values())
            return [f"{files:,} pictures are not compared with each other; resnetkit data check does that"] * bool(
                files
            )
        named = [f"unreadable: {path}: {reason}" for path, reason in list(self.unreadable.items())[:MOST_NAMED]]
        if more := len(self.unreadable) - len(named):
            named.append(f"unreadable: {more:,} more files; resnetkit data check names them")
        if named:
            are = "picture is" if len(self.unreadable) == 1 else "pictures are"
            named.append(
                f"{len(self.unreadable):,} unreadable {are} left out; resnetkit data check --fix moves them aside"
            )
        return [*named, *_said(dataset, looks, alike)]

    def _look_at(self, paths: Sequence[Path]) -> Looks:
        new = tuple(dict.fromkeys(path for path in paths if path not in self._seen))
        samples = Samples(("",), np.zeros(len(new), np.int64), paths=new)
        for index, look in looks_of(samples, workers=self._workers):
            self._seen[new[index]] = look
            self._advance(1)
        looks = Looks(len(paths))
        for place, path in enumerate(paths):
            if not self._seen[path].fault:  # files that are left out are alike to nothing
                looks.put(place, self._seen[path])
        return looks


def _said(dataset: Dataset, looks: Looks, alike: NDArray[np.int64] | None) -> list[str]:
    """Return the remarks on groups of same and alike pictures, with the first pictures of each kind."""
    leaks: dict[str, list[str]] = {}
    several: list[str] = []
    for group in groups_of(dataset, looks, alike):
        samples = [dataset.parts[place.part] for place in group.places]
        labels = {one.label(place.index) for one, place in zip(samples, group.places, strict=True)}
        names = [one.place(place.index) for one, place in zip(samples, group.places, strict=True)]
        parts = {place.part for place in group.places}
        for part in ("val", "test"):
            if part in parts and "train" in parts:
                leaks.setdefault(part, []).append(" and ".join(_of_parts(names, group.places, part)))
        if len(labels) > 1:
            several.append(f"{names[0]} and {names[-1]} ({('; ' if dataset.several else ', ').join(sorted(labels))})")
    told = [
        f"leak: {count(len(groups), 'group')} of same or alike pictures {_are(groups)} in train and in {part}, so the "
        f"error on {part} is too low; first {groups[0]}"
        for part, groups in leaks.items()
    ]
    if several:
        told.append(
            f"contradiction: {count(len(several), 'group')} of same or alike pictures "
            f"{'with other labels' if dataset.several else f'{_are(several)} in several classes'}; first {several[0]}"
        )
    return [*told, "resnetkit data check names them all"] if told else []


def _of_parts(names: Sequence[str], places: Sequence[tuple[str, int]], part: str) -> list[str]:
    """Return the first picture of train, and the first of `part`."""
    return [next(name for name, place in zip(names, places, strict=True) if place[0] == one) for one in ("train", part)]


def _are(groups: Sequence[str]) -> str:
    return "is" if len(groups) == 1 else "are"
