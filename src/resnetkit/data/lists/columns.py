"""Find the columns for path, label and part in a list of pictures, by name or content, and read the values of a row."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from resnetkit.data.folders.listing import is_picture_name
from resnetkit.data.lists.places import Places
from resnetkit.data.lists.tables import (
    FOLD_NAMES,
    LABEL_NAMES,
    NO,
    PART_FLAGS,
    PATH_NAMES,
    SEVERAL,
    SPLIT_NAMES,
    TAG_NAMES,
    YES,
    Table,
    plain,
)
from resnetkit.data.reading import Reading, UnfitError, part_of
from resnetkit.display import cut
from resnetkit.errors import DataError

INDEX_NAMES = ("", "index", "unnamed0", "id", "idx", "no", "nr", "number", "row")
"""Usual names of columns that contain the number of the row."""
ONES, ZEROS = ("1", "1.0", "true"), ("0", "0.0", "false")
"""Values of a column that says whether a picture has a label, in lower case."""
WNID_BOX = re.compile(r"(n\d{8})(?: \d+){4}")
"""The form of the labels in Kaggle's LOC_val_solution.csv of ImageNet: a class and the four numbers of a box."""
MOST_SHOWN = 200
"""Largest number of characters of the columns' names in an error."""


class UnlabelledError(DataError):
    """A list has no column for the labels."""


@dataclass
class Columns:
    """The index of each column in a row, from 0; None for a column that the list does not have."""

    path: int
    label: int | None
    split: int | None
    one_hot: list[int] = field(default_factory=list)
    """The columns of 0 and 1, one for each class; empty if `label` is given."""
    flagged: tuple[str, str] | None = None
    """If `split` is a column of yes and no: the part for yes and the part for no."""


def find_columns(table: Table, reading: Reading, places: Places) -> Columns:
    """Find the columns of a list, and add their names to `table.form` if they are unusual.

    Raises UnlabelledError if there is no column for the labels, UnfitError if a column that `reading` names does not
    exist, and DataError if there is no column for the paths or several columns may be the label.
    """
    columns, path = table.columns, table.path
    width = len(columns) if columns is not None else max((len(row.cells) for row in table.sample), default=0)
    where = f"{path}, line {table.first_line}"
    if not width and not table.sample:
        raise UnlabelledError(f"{path} is empty; expected a line per picture below the line path,label")
    if width < 2:
        named = ", ".join(columns or [cell for row in table.sample[:1] for cell in row.cells]) or "an empty line"
        named = cut(named, MOST_SHOWN)
        raise UnlabelledError(
            f"{where}: no label column; the only column is {named}; expected path,label or path,label,split"
            if columns is not None
            else f"{where}: one column, {named}; expected a path and a label in a line"
        )
    names = columns if columns is not None else [""] * width
    there = cut(", ".join(filter(None, names)), MOST_SHOWN) or f"{width} without names"
    one_hot = _asked_flags(reading.label_column, names, path)
    asked = {
        what: _asked(column, names, path, what)
        for what, column in (
            ("path", reading.path_column),
            ("label", None if one_hot else reading.label_column),
            ("split", reading.split_column),
        )
        if column
    }
    taken = {*asked.values(), *one_hot}
    split = asked.get("split")
    if split is None:
        split = _known(names, SPLIT_NAMES, taken)
        if split is not None and plain(names[split]) != "split" and not _names_parts(table, split):
            split = None
        if split is None and width > 2:
            split = next((p for p in range(width) if p not in taken and _part_flags(table, names, p)), None)
    flagged = _part_flags(table, names, split) if split is not None else None
    taken |= {split} if split is not None else set()
    in_path = asked.get("path")
    if in_path is None:
        in_path = _known(names, PATH_NAMES, taken) if columns is not None else None
    if in_path is None:
        in_path = _holding_paths(table, [place for place in range(width) if place not in taken], places)
    if in_path is None:
        raise DataError(f"{where}: no path column; columns: {there}; give the path's name or number as `path_column`")
    if "path" not in asked and not any(map(is_picture_name, _values(table, in_path))):
        # A column with the name id may contain the number of the row, and another column the names of the files.
        others = [place for place in range(width) if place not in {*taken, in_path}]
        named = max(others, key=lambda place: sum(map(is_picture_name, _values(table, place))), default=in_path)
        in_path = named if any(map(is_picture_name, _values(table, named))) else in_path
    taken.add(in_path)
    label = asked.get("label")
    rest = [place for place in range(width) if place not in taken]
    if len(rest) > 1:
        rest = [p for p in rest if not (plain(names[p]) in INDEX_NAMES and _is_index(table, p))] or rest
    if label is None and not one_hot:
        known = [place for place in rest if plain(names[place]) in LABEL_NAMES]
        label = _known(names, LABEL_NAMES, taken) if known else None
        if len(known) > 1 and plain(names[label or 0]) not in ("label", "labelname"):
            # Class names are better labels than class numbers.
            known.sort(key=lambda place: plain(names[place]).endswith("id"))
            raise DataError(
                f"{where}: {' and '.join(names[place] for place in known)} may be the label; choose one: "
                f"`label_column` {names[known[0]]}"
            )
        if label is None:
            label = _known(names, TAG_NAMES, taken)
        if label is None and len(rest) == 1:
            (label,) = rest
        elif label is None and len(rest) > 1 and columns is not None and _are_flags(table, rest):
            one_hot = rest
        elif label is None:
            raise UnlabelledError(
                f"{where}: no label column; columns: {there}; give the label's name or number as `label_column`"
            )
    if columns is not None:
        table.form += [
            f"{what} = {names[place]}"
            for what, place in (("path", in_path), ("label", label), ("split", split))
            if place is not None and names[place].lower() != what
        ]
        if flagged:
            table.form.append(f"{flagged[0]} where {names[split or 0]} is true, else {flagged[1]}")
        table.form += [
            f"{names[place]} is not used" + _how_to_use(table, names, place)
            for place in range(width)
            if place not in (in_path, label, split, *one_hot)
            and plain(names[place]) in (*SPLIT_NAMES, *FOLD_NAMES, *PART_FLAGS)
        ]
    return Columns(in_path, label, split, one_hot, flagged)


def _asked_flags(column: str | None, names: Sequence[str], path: Path) -> list[int]:
    """Return the indices of columns that were given as names or numbers between commas; none for a single column."""
    pieces = [piece.strip() for piece in (column or "").split(",")]
    if len(pieces) < 2 or column in names:
        return []
    return [_asked(piece, names, path, "label") for piece in pieces]


def _asked(column: str, names: Sequence[str], path: Path, what: str) -> int:
    """Return the index of a column that was given by its name, or its number from 1. Raises UnfitError without one."""
    alike = [place for place, name in enumerate(names) if name == column] or [
        place for place, name in enumerate(names) if name.lower() == column.lower()
    ]
    if alike:
        return alike[0]
    if column.isdigit() and 1 <= int(column) <= len(names):
        return int(column) - 1
    there = cut(", ".join(filter(None, names)), MOST_SHOWN) or f"{len(names)} columns without names; give a number"
    raise UnfitError(f"`{what}_column` {column}: {path} has no such column; there is {there}")


def _known(names: Sequence[str], wanted: Sequence[str], taken: set[int]) -> int | None:
    """Return the index of the column with the first of the `wanted` names that occurs; None if none occurs."""
    places = {plain(name): place for place, name in reversed(list(enumerate(names))) if place not in taken}
    return next((places[name] for name in wanted if name in places), None)


def _values(table: Table, place: int) -> list[str]:
    return [row.cells[place] for row in table.sample if place < len(row.cells) and row.cells[place]]


def _names_parts(table: Table, place: int) -> bool:
    values = _values(table, place)
    return bool(values) and all(part_of(value) for value in values)


def _how_to_use(table: Table, names: Sequence[str], place: int) -> str:
    """Return the hint how to use a column as the parts, or the reason why it can't be used."""
    if _names_parts(table, place) or _part_flags(table, names, place):
        return f" (to read the parts from it: `split_column` {names[place]})"
    return " (its values are not train, val or test)"


def _part_flags(table: Table, names: Sequence[str], place: int) -> tuple[str, str] | None:
    """Return the part for yes and the part for no of a column such as is_valid; None for any other column."""
    values = {value.lower() for value in _values(table, place)}
    return PART_FLAGS.get(plain(names[place])) if values and values <= YES | NO else None


def _is_index(table: Table, place: int) -> bool:
    """Whether a column contains numbers, all different, as a number of the row does."""
    values = _values(table, place)
    return all(value.isdigit() for value in values) and len(values) == len(set(values)) > 1


def _are_flags(table: Table, places: Sequence[int]) -> bool:
    values = [{value.lower() for value in _values(table, place)} for place in places]
    return all(found <= {*ONES, *ZEROS} for found in values) and any(values) and bool(table.sample)


def _holding_paths(table: Table, places: Sequence[int], found_in: Places) -> int | None:
    """Return the column with the most picture names or, if there are no such names, with the most files that exist."""
    counts = {place: sum(map(is_picture_name, _values(table, place))) for place in places}
    if not any(counts.values()):
        counts = {place: sum(not found_in.find(cell).reason for cell in _values(table, place)) for place in places}
    best = max(counts, key=lambda place: counts[place], default=None)
    return best if best is not None and counts[best] else None


class Labels(NamedTuple):
    """The values of a row: the name of the file, its label and its part; or the problem with the row."""

    name: str
    label: str
    """Several labels have SEVERAL between them; it is empty without a label."""
    split: str
    problem: str = ""


def read_row(table: Table, columns: Columns, cells: Sequence[str]) -> Labels:
    """Return the values of a row, or the problem with it."""

    def cell(place: int | None) -> str:
        return cells[place] if place is not None and place < len(cells) else ""

    name = cell(columns.path)
    if not name:
        return Labels("", "", "", "the path is empty; fill it in or remove the line")
    if table.columns is not None and any(cells[len(table.columns) :]):
        return Labels(
            "", "", "", f'{len(cells)} columns, where the header has {len(table.columns)}; put "…" around commas'
        )
    if columns.one_hot:
        values = {place: cell(place).lower() for place in columns.one_hot}
        strange = [cell(place) for place, value in values.items() if value and value not in (*ONES, *ZEROS)]
        if strange:
            return Labels("", "", "", f"{strange[0]!r} among columns of 0 and 1; fix it, or give the `label_column`")
        names = table.columns or [str(place + 1) for place in range(max(columns.one_hot) + 1)]
        label = SEVERAL.join(names[place] for place, value in values.items() if value in ONES)
    else:
        label = cell(columns.label)
    if boxed := WNID_BOX.match(label):
        label = boxed[1]
    split = cell(columns.split)
    if columns.flagged and split.lower() in YES | NO:
        split = columns.flagged[split.lower() in NO]
    return Labels(name, normalize("NFC", label), split)
