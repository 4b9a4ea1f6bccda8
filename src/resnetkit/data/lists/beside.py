"""Find lists next to class folders that may contain the labels of the pictures, instead of the folders' names."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from resnetkit.data.folders.listing import Found, decoded, is_picture_name, listed
from resnetkit.data.lists.lists import CLASS_LISTS
from resnetkit.data.lists.places import Places
from resnetkit.data.lists.tables import open_table, plain
from resnetkit.data.reading import LISTS, NOTHING, part_of
from resnetkit.data.samples import Dataset
from resnetkit.display import shell
from resnetkit.errors import DataError

MOST_ROWS = 20_000
"""Largest number of rows of a list that are read."""
MOST_COLUMNS = 64
"""Largest number of columns of a list that are compared."""
MOST_NAMED = 3
"""Largest number of classes in an error."""


def refuse_lists_beside(dataset: Dataset, root: Path) -> None:
    """Raise DataError if a list next to the class folders may contain other labels for their pictures.

    A list is accepted if it contains no picture of the folders, if none of its columns can be the label, or if its
    labels agree with the folders: they are the folders' names, or numbers that stand for one folder each.
    """
    lists = [
        found.path
        for folder in _above_classes(dataset, root)
        for found in listed(folder)
        if isinstance(found, Found) and found.path.suffix.lower() in LISTS
    ]
    lists = [path for path in lists if path.stem.lower() not in CLASS_LISTS]
    if not lists:
        return
    rows = {path: _rows(path) for path in lists}
    wanted = {_name(cell) for table in rows.values() for row in table for cell in row}
    folders = _folders_of(dataset, wanted)
    telling = [path for path, table in rows.items() if _may_hold_labels(table, folders)]
    if not telling:
        return
    first = min(telling, key=lambda path: part_of(path.stem) != "train")
    more = f" ({len(telling) - 1} more may contain them, too)" if len(telling) > 1 else ""
    classes = ", ".join(f"{name}/" for name in dataset.classes[:MOST_NAMED])
    classes += f" and {len(dataset.classes) - MOST_NAMED} more" if len(dataset.classes) > MOST_NAMED else ""
    raise DataError(
        f"{root} can be read in two ways. If the list {first} contains the labels{more}, give "
        f"{shell(first)}{_images(first, rows[first], root)}. If the folders are the classes, {classes}, "
        "give `parts` none"
    )


def _images(path: Path, table: Sequence[Sequence[str]], root: Path) -> str:
    """Return the text for `images` that the list needs; empty if its paths are relative to its own folder."""
    places = Places(path.parent, None)
    found = any(not places.find(cell).reason for row in table[:50] for cell in row if cell)
    return "" if found else f" with `images` {shell(root)}"


def _above_classes(dataset: Dataset, root: Path) -> list[Path]:
    """Return the folder of the set, and the folders between it and the class folders."""
    folders = {root: None}
    for samples in dataset.parts.values():
        first = {int(label): place for place, label in reversed([*enumerate(samples.labels.tolist())])}
        for label, place in first.items():
            inside = (samples.paths or ())[place].relative_to(root).parts[:-1]
            names = [plain(decoded(name)) for name in inside]
            name = plain(samples.classes[label])
            depth = names.index(name) if name in names else 0
            folders |= {root.joinpath(*inside[:count]): None for count in range(depth + 1)}
    return list(folders)


def _rows(path: Path) -> list[Sequence[str]]:
    """Return the first rows of a list, without its header; empty if the file can't be read as a list."""
    try:
        return [row.cells for row in islice(open_table(path, NOTHING).rows, MOST_ROWS)]
    except DataError:
        return []


def _name(cell: str) -> str:
    """Return the last name of a path, without the suffix of a picture."""
    last = cell.replace("\\", "/").rpartition("/")[2]
    return last.rpartition(".")[0] if is_picture_name(last) else last


def _folders_of(dataset: Dataset, wanted: Iterable[str]) -> Mapping[str, str]:
    """Return the class of each picture whose name, without its suffix, is in `wanted`: name -> class."""
    wanted = frozenset(wanted)
    folders: dict[str, str] = {}
    for samples in dataset.parts.values():
        for path, label in zip(samples.paths or (), samples.labels.tolist(), strict=True):
            if (name := _name(decoded(path.name))) in wanted:
                folders[name] = samples.classes[label]
    return folders


def _may_hold_labels(table: Sequence[Sequence[str]], folders: Mapping[str, str]) -> bool:
    """Whether a list names pictures and has columns that can be labels, but none of them agrees with the folders."""
    width = max(map(len, table), default=0)
    for place in range(min(width, MOST_COLUMNS)):
        named = [row for row in table if place < len(row) and row[place] and _name(row[place]) in folders]
        if len(named) < max(2, len(table) // 20):
            continue
        others = [
            _Column([row[other] if other < len(row) else "" for row in named])
            for other in range(min(width, MOST_COLUMNS))
        ]
        others = [column for other, column in enumerate(others) if other != place and column.can_be_a_label]
        classes = [folders[_name(row[place])] for row in named]
        return bool(others) and not any(column.agrees(classes) for column in others)
    return False


class _Column:
    """The values of a column, one for each row that contains a picture."""

    def __init__(self, values: Sequence[str]) -> None:
        self.values = values

    @property
    def can_be_a_label(self) -> bool:
        """Whether there are two or more values, at most one for two rows, and not all of them are names of parts."""
        different = {*self.values} - {""}
        return 1 < len(different) <= max(len(self.values) / 2, 2) and not all(map(part_of, different))

    def agrees(self, classes: Sequence[str]) -> bool:
        """Whether the values are the names of the classes, or stand for them: one value per class, all different."""
        if all(plain(value) == plain(name) for value, name in zip(self.values, classes, strict=True)):
            return True
        by_class, by_value = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for value, name in zip(self.values, classes, strict=True):
            by_class[name].add(value)
            by_value[value].add(name)
        return len(by_class) > 1 and all(len(found) == 1 for found in (*by_class.values(), *by_value.values()))
