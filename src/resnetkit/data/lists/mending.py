"""Write a list once more without some of its pictures: the same lines and encoding, in a new file beside it."""

from collections.abc import Collection
from pathlib import Path

from resnetkit.data.folders.devkit import GROUND_TRUTH
from resnetkit.data.lists.columns import find_columns, read_row
from resnetkit.data.lists.lists import lists_beside
from resnetkit.data.lists.places import Places
from resnetkit.data.lists.tables import Lines, encoding_of, open_table
from resnetkit.data.reading import CLASSES_ONLY, Reading, UnfitError
from resnetkit.errors import DataError, UsageError
from resnetkit.files import whole_file

SUFFIX = "-fixed"
"""The end of the name of the new list: photos.csv becomes photos-fixed.csv."""


def write_fixed(path: Path, reading: Reading, files: Collection[Path]) -> dict[Path, int]:
    """Write the list without the lines of `files`, and without those of missing files.

    Lists for val and test beside a list for train are written, too. Returns the new files, the one for `path` first,
    each with the number of pictures that were left out. The lists themselves and the pictures stay as they are.

    Raises UsageError for a list whose lines have no paths, and for a new file that exists already; DataError if it
    can't be written.
    """
    if path.stem.lower() == GROUND_TRUTH:
        raise UsageError(f"{path} has no paths, so no line can be left out; write a CSV file with path,label")
    lists = [path, *(lists_beside(path).values() if reading.parts != CLASSES_ONLY else ())]
    goals = {one: one.with_name(f"{one.stem}{SUFFIX}{one.suffix}") for one in lists}
    if taken := [goal for goal in goals.values() if goal.exists()]:
        raise UsageError(f"{taken[0]} exists already; move it, or check that list instead")
    written: dict[Path, int] = {}
    for one, goal in goals.items():
        try:
            numbers, left_out = _lines_of(one, reading, files)
        except UnfitError:  # a list beside the given one that has other columns, which is not read
            continue
        _copy(one, goal, without=numbers)
        written[goal] = left_out
    return written


def _lines_of(path: Path, reading: Reading, files: Collection[Path]) -> tuple[set[int], int]:
    """Return the numbers of the lines to leave out, and the number of pictures in them."""
    table, places = open_table(path, reading), Places(path.parent, reading.images)
    columns = find_columns(table, reading, places)
    numbers: set[int] = set()
    left_out, before = 0, table.first_line if table.columns else 0
    for line, cells in table.rows:
        what = read_row(table, columns, cells)
        picture = places.find(what.name)
        if picture.reason or picture.path in files:
            numbers |= set(range(before + 1, line + 1))  # a cell in quotes may have several lines
            left_out += 1
        before = line
    return numbers, left_out


def _copy(path: Path, goal: Path, *, without: set[int]) -> None:
    """Copy a text file without some of its lines; comments and empty lines among them stay."""
    encoding = encoding_of(path)
    lines = Lines(path, encoding)
    meant = {lines.number for _ in lines}
    try:
        with path.open(encoding=encoding, newline="") as file, whole_file(goal) as copy:
            kept = [text for number, text in enumerate(file, 1) if number not in without or number not in meant]
            begun = path.read_bytes().startswith(b"\xef\xbb\xbf")
            copy.write("".join(kept).encode(encoding if begun or encoding != "utf-8-sig" else "utf-8"))
    except OSError as error:
        raise DataError(f"{error.filename or goal} can't be written: {error.strerror or error}") from error
