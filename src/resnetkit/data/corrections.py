"""Corrections of labels: a CSV file that gives pictures another class or leaves them out, and its use on a data set."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from unicodedata import normalize

import numpy as np

from resnetkit.data.folders.listing import decoded
from resnetkit.data.lists.tables import open_table, plain
from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count
from resnetkit.errors import DataError
from resnetkit.files import expanded

COLUMNS = ("path", "action", "label")
"""Columns of the file."""
ACTIONS = ("relabel", "drop", "keep")
"""relabel gives a picture the class in the column label, drop leaves it out, keep says that its label is right."""
MOST_PROBLEMS = 20
"""Largest number of wrong lines in an error."""


@dataclass(frozen=True)
class Correction:
    """A line of the file."""

    line: int
    path: str
    action: str
    label: str


def read_corrections(file: Path) -> list[Correction]:
    """Read the lines of a CSV file with the columns path, action and label, in any form that a list may have.

    Without a column action, a line with a label is relabel, and a line without one is drop. Raises DataError for a file
    that can't be read, without these columns, or with another action; it names the lines.
    """
    table = open_table(file, Reading(path_column=COLUMNS[0]))
    places = {plain(name): place for place, name in enumerate(table.columns or ())}
    if "path" not in places or not {"action", "label"} & places.keys():
        found = ", ".join(table.columns or ()) or "no header"
        raise DataError(f"{file}, line {table.first_line}: expected the columns path,action,label, found {found}")
    corrections: list[Correction] = []
    problems: list[tuple[int, str]] = []
    for line, cells in table.rows:
        path, action, label = (
            cells[places[name]] if name in places and places[name] < len(cells) else "" for name in COLUMNS
        )
        action = action.lower() if "action" in places else "relabel" if label else "drop"
        if not path:
            problems.append((line, "the path is empty"))
        elif action not in ACTIONS:
            problems.append((line, f"action is {action!r}; it must be relabel, drop or keep"))
        elif action == "relabel" and not label:
            problems.append((line, "relabel needs a class in the column label"))
        else:
            corrections.append(Correction(line, path, action, label))
    _refuse(file, problems)
    return corrections


def corrected(dataset: Dataset, file: str | Path) -> Dataset:
    """Return `dataset` with the corrections in `file`; its division into parts stays the same.

    A path is as in the data, or relative to the data's folder or to the current one. A note in `understood` of the
    result says how many pictures were changed.

    Raises DataError for a path that is not in the data, a class that they do not have, two lines that contradict each
    other, and for a class that loses all of its training pictures.
    """
    file = expanded(file)
    asked = _found(dataset, file)
    parts: dict[str, Samples | None] = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    done: Counter[str] = Counter()
    for name, samples in dataset.parts.items():
        labels, kept = samples.labels.copy(), np.ones(len(samples), bool)
        for index, correction in asked.get(name, {}).items():
            label = dataset.classes.index(correction.label) if correction.action == "relabel" else int(labels[index])
            done["keep" if label == labels[index] and correction.action != "drop" else correction.action] += 1
            labels[index] = label
            kept[index] = correction.action != "drop"
        parts[name] = replace(samples, labels=labels).subset(np.flatnonzero(kept)) if kept.any() else None
    after = Dataset(
        dataset.name,
        dataset.classes,
        parts["train"],
        parts["val"],
        parts["test"],
        dataset.split,
        dataset.skipped,
        (*dataset.understood, _said(file, done)),
        dataset.missing,
    )
    _refuse_emptied(dataset, after, file)
    return after


def kept_labels(dataset: Dataset, file: str | Path) -> frozenset[Path]:
    """Return the pictures of `dataset` whose labels a person has stated in `file`: those of relabel and keep."""
    known = _Pictures(dataset)
    found: set[Path] = set()
    for correction in read_corrections(expanded(file)):
        if correction.action != "drop" and (place := known.find(correction.path)):
            part, index = place
            found |= {path} if (path := dataset.parts[part].path(index)) else set()
    return frozenset(found)


def _found(dataset: Dataset, file: Path) -> dict[str, dict[int, Correction]]:
    """Return the corrections by part and index. Raises DataError for those that do not fit the data."""
    corrections = read_corrections(file)
    known = _Pictures(dataset)
    problems: list[tuple[int, str]] = []
    found: dict[str, dict[int, Correction]] = defaultdict(dict)
    for correction in corrections:
        place = known.find(correction.path)
        if place is None:
            problems.append(
                (correction.line, f"{correction.path} is not in {dataset.name}{known.near(correction.path)}")
            )
            continue
        if correction.action == "relabel" and correction.label not in dataset.classes:
            problems.append((correction.line, _unknown(correction.label, dataset.classes)))
            continue
        part, index = place
        first = found[part].setdefault(index, correction)
        if (first.action, first.label) != (correction.action, correction.label):
            problems.append((correction.line, f"{correction.path} has another correction in line {first.line}"))
    _refuse(file, problems)
    return found


class _Pictures:
    """Finds the pictures of a data set by the paths that a person or a page wrote."""

    def __init__(self, dataset: Dataset) -> None:
        data = expanded(dataset.name)
        self._root = data if data.is_dir() else data.parent
        self._places: dict[str, tuple[str, int]] = {}
        self._names: dict[str, str] = {}
        for part, samples in dataset.parts.items():
            for index, path in enumerate(samples.paths or ()):
                self._places[_absolute(path)] = (part, index)
                self._names.setdefault(path.name.lower(), str(path))

    def find(self, path: str) -> tuple[str, int] | None:
        """Return the part and the index of a picture; None if it is not in the data."""
        for spelled in dict.fromkeys((path, path.replace("\\", "/"))):
            for base in (Path(), self._root):
                if place := self._places.get(_absolute(base / expanded(spelled))):
                    return place
        return None

    def near(self, path: str) -> str:
        """Return the end of an error: a picture with the same name; or nothing."""
        name = PurePath(path.replace("\\", "/")).name.lower()
        return f"; did you mean {self._names[name]}?" if name in self._names else ""


def _absolute(path: Path) -> str:
    """Return a path by which a picture is found, absolute and in composed Unicode; links are not followed."""
    return normalize("NFC", decoded(os.path.abspath(path)))  # noqa: PTH100


def _unknown(label: str, classes: Sequence[str]) -> str:
    near = get_close_matches(label, classes, n=1)
    there = f"did you mean {near[0]}?" if near else f"the classes are {', '.join(classes[:10])}"
    return f"there is no class {label!r}; {there}"


def _refuse_emptied(before: Dataset, after: Dataset, file: Path) -> None:
    """Raise DataError if a part or a class that had training pictures has none after the corrections."""
    if gone := [name for name in before.parts if name not in after.parts]:
        raise DataError(f"{file} leaves out all {gone[0]} pictures of {before.name}; keep some of them")
    if before.train is None or after.train is None:
        return
    had, has = (np.bincount(samples.labels, minlength=len(before.classes)) for samples in (before.train, after.train))
    if lost := [before.classes[label] for label in np.flatnonzero((had > 0) & (has == 0))]:
        raise DataError(
            f"{file} leaves no training picture of {lost[0]!r}; keep some, or remove the class from the data"
        )


def _said(file: Path, done: Mapping[str, int]) -> str:
    """Return the note on what was done."""
    said = [f"{count(done.get('relabel', 0), 'picture')} got another class", f"{done.get('drop', 0):,} left out"]
    return f"{file.name}: {', '.join(said)}"


def _refuse(file: Path, problems: Sequence[tuple[int, str]]) -> None:
    """Raise DataError with the first problems, if there are any."""
    if len(problems) == 1:
        raise DataError(f"{file}, line {problems[0][0]}: {problems[0][1]}")
    if problems:
        raise DataError("\n".join([f"{file}: {len(problems):,} lines to fix:", *_lines(sorted(problems))]))


def _lines(problems: Sequence[tuple[int, str]]) -> Iterator[str]:
    yield from (f"  line {line}: {what}" for line, what in problems[:MOST_PROBLEMS])
    if (more := len(problems) - MOST_PROBLEMS) > 0:
        yield f"  and {more:,} more"
