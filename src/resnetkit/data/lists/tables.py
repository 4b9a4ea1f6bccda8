"""Read the rows of a list: separated columns, lines of a path and a label, JSON lines, ImageNet's ground truth."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from resnetkit.data.folders.archives import first_bytes, is_spreadsheet
from resnetkit.data.folders.devkit import GROUND_TRUTH, META, PICTURE, wnids_by_number
from resnetkit.data.folders.listing import is_picture_name
from resnetkit.data.lists.places import Places
from resnetkit.data.reading import Reading
from resnetkit.display import cut
from resnetkit.errors import DataError

# fmt: off
PATH_NAMES = (
    "path", "filepath", "imagepath", "imgpath", "picturepath", "filename", "file", "imagefile", "imagefilename",
    "imagename", "imgname", "image", "img", "images", "picture", "photo", "imageid", "imgid", "id", "uri", "url",
)
LABEL_NAMES = (
    "label", "labelname", "class", "classname", "category", "categoryname", "target", "labels", "classes", "y",
    "labelid", "classid", "categoryid", "predictionstring",
)
TAG_NAMES = ("tags", "tag", "keywords", "labelset", "taglist")
SPLIT_NAMES = ("split", "set", "subset", "part", "partition", "usage", "phase", "dataset", "splits")
PART_FLAGS = {
    "isvalid": ("val", "train"), "isval": ("val", "train"), "isvalidation": ("val", "train"),
    "istest": ("test", "train"), "istesting": ("test", "train"),
    "istrain": ("train", "test"), "istraining": ("train", "test"), "istrainingimage": ("train", "test"),
}
FOLD_NAMES = ("fold", "folds", "kfold", "foldid", "cvfold", "foldnumber")
# fmt: on
"""Usual names of the columns, reduced by `plain`; if a list has several of them, the first one here is used. TAG_NAMES
are the label where no column has a name of LABEL_NAMES. PART_FLAGS
are columns of yes and no, as in fastai, each with the part for yes and the part for no. FOLD_NAMES are columns with the
number of a fold of cross-validation."""
YES = frozenset({"true", "1", "1.0", "yes", "y", "t"})
NO = frozenset({"false", "0", "0.0", "no", "n", "f"})
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SPACES = "spaces"
SAMPLE = 50
"""Number of lines that are read to find the form of a list."""
SEVERAL = "\0"
"""The separator between the labels of a JSON list."""


class Row(NamedTuple):
    """The cells of a row, and the number of its line in the file, from 1."""

    line: int
    cells: Sequence[str]


@dataclass
class Table:
    """The rows of a list in any form."""

    path: Path
    columns: list[str] | None
    """Names of the columns; None if the list has no header."""
    first_line: int
    """Line number of the header; 1 if there is none."""
    sample: list[Row]
    """The first rows, without the header."""
    rows: Iterable[Row]
    """All rows, without the header."""
    form: list[str] = field(default_factory=list)
    """How the list differs from CSV with commas, as phrases for people."""


def open_table(path: Path, reading: Reading) -> Table:
    """Open a list, and find its form. Raises DataError if it can't be read or is not text."""
    if is_spreadsheet(path) or first_bytes(path).startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is a spreadsheet; save it as CSV, and give the CSV file")
    try:
        encoding = encoding_of(path)
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return _json_lines(path, encoding)
        if path.stem.lower() == GROUND_TRUTH:
            return _ground_truth(path, encoding)
        return _separated(path, encoding, reading)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}; give the CSV file's path") from None
    except (UnicodeError, csv.Error) as error:
        raise _no_text(path, error) from None


def _ground_truth(path: Path, encoding: str) -> Table:
    """Read the labels in ImageNet's development kit: line n contains the number of the class of picture n."""
    wnids = wnids_by_number(path.parent)

    def rows() -> Iterator[Row]:
        lines = Lines(path, encoding)
        for line in lines:
            number = line.strip()
            if not number.isascii() or not number.isdigit() or int(number) not in wnids:
                raise DataError(f"{path}, line {lines.number}: {cut(number, 20)!r}; expected a number from 1 to 1000")
            yield Row(lines.number, [PICTURE.format(lines.number), wnids[int(number)]])

    form = [f"ImageNet's validation pictures in the order of their names, classes from {META}"]
    return Table(path, ["path", "label"], 1, list(islice(rows(), SAMPLE)), rows(), form)


def _no_text(path: Path, error: Exception) -> DataError:
    """Return the error for a file that is not text, or not CSV."""
    if isinstance(error, UnicodeError):
        return DataError(f"{path} is not UTF-8; in Excel: Save as, CSV UTF-8")
    return DataError(f"{path} is not a CSV file ({error}); in Excel: Save as, CSV UTF-8")


def encoding_of(path: Path) -> str:
    """Return the encoding of a file, by its first bytes: UTF-8 or UTF-16, with or without a byte order mark."""
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(start) > 2 and start[1::2].count(0) > len(start) // 3:
        return "utf-16-le"
    if len(start) > 2 and start[::2].count(0) > len(start) // 3:
        return "utf-16-be"
    return "utf-8-sig"


class Lines:
    """The lines of a file, without empty lines and comments. `number` is the number of the last line read, from 1."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._encoding = path, encoding
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        try:
            with self._path.open(encoding=self._encoding, newline="") as file:
                for self.number, line in enumerate(file, 1):
                    if line.strip() and not _is_comment(line):
                        yield line
        except OSError as error:
            raise DataError(
                f"{self._path} can't be read: {error.strerror or error}; give the CSV file's path"
            ) from None
        except UnicodeError as error:
            raise _no_text(self._path, error) from None


def _is_comment(line: str) -> bool:
    """Whether a line begins with #, but not with the name of a picture such as #1.png."""
    return bool(re.match(r"\s*#(\s|$)", line)) or (
        line.lstrip().startswith("#") and not is_picture_name(re.split(r"[,;\t| ]", line.strip())[0])
    )


def _separated(path: Path, encoding: str, reading: Reading) -> Table:
    """Read a list of separated columns, or of lines of a path and a label."""
    first = list(islice(Lines(path, encoding), SAMPLE))
    stated = re.fullmatch(r'\s*"?sep=(.)"?\s*', first[0], re.IGNORECASE) if first else None
    sample = first[1:] if stated else first
    delimiter = stated[1] if stated else _delimiter(sample)
    label_first = delimiter == SPACES and _label_first(sample)

    def rows() -> Iterator[Row]:
        lines = Lines(path, encoding)
        texts = islice(lines, 1 if stated else 0, None)
        if delimiter == SPACES:
            for line in texts:
                yield Row(lines.number, _two(line, label_first=label_first))
            return
        try:
            for cells in csv.reader(texts, delimiter=delimiter, skipinitialspace=True):
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield Row(lines.number, stripped)
        except csv.Error as error:
            raise _no_text(path, error) from None

    form: list[str] = [] if delimiter == "," else [f"separated by {DELIMITERS.get(delimiter, repr(delimiter))}"]
    if delimiter == SPACES:
        form = ["a label and a path in a line" if label_first else "a path and a label in a line"]
    if encoding.startswith("utf-16"):
        form.append("in UTF-16")
    begin = list(islice(rows(), SAMPLE))
    if not begin or not _is_header(begin, reading, path.parent):
        if begin:
            form += [] if delimiter == SPACES else ["without a header"]
        return Table(path, None, 1, begin, rows(), form)
    return Table(path, list(begin[0].cells), begin[0].line, begin[1:], islice(rows(), 1, None), form)


def _delimiter(lines: Sequence[str]) -> str:
    """Return the separator of the columns, or SPACES.

    It is the separator that gives known names of columns, then the most lines with a picture name, then the most lines
    of equal length.
    """
    best, most = SPACES, (0.0, 0.0, 0.0)
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            continue
        if not rows:
            continue
        width, count = Counter(map(len, rows)).most_common(1)[0]
        header = len({plain(cell) for cell in rows[0]} & {*PATH_NAMES, *LABEL_NAMES, *TAG_NAMES})
        if max(width, len(rows[0])) < 2:
            continue
        paths = sum(any(is_picture_name(cell.strip()) for cell in row) for row in rows) / len(rows)
        score = (float(header), round(paths, 1), count / len(rows))
        if score > most:
            best, most = delimiter, score
    return best


def _label_first(lines: Sequence[str]) -> bool:
    """Whether the label comes before the path in most lines."""
    tokens = [line.split() for line in lines]
    last = sum(len(one) > 1 and is_picture_name(one[-1]) and not is_picture_name(one[0]) for one in tokens)
    return last > len(tokens) // 2


def _two(line: str, *, label_first: bool) -> list[str]:
    """Split a line into a path, which may contain spaces, and a label, in the order of the line."""
    pieces = line.split(None, 1) if label_first else line.rsplit(None, 1)
    return [piece.strip().strip('"') for piece in pieces]


def _is_header(rows: Sequence[Row], reading: Reading, folder: Path) -> bool:
    """Whether the first row is a header: it contains usual names of columns or, unlike the rows below it, no path."""
    first = rows[0].cells
    asked = {reading.path_column, reading.label_column, reading.split_column} - {None}
    if asked & {*first}:
        return True
    if any(is_picture_name(cell) for cell in first):
        return False
    names = {plain(cell) for cell in first}
    if names & {*PATH_NAMES, *LABEL_NAMES, *TAG_NAMES}:
        return True
    if any(is_picture_name(cell) for row in rows[1:] for cell in row.cells):
        return True
    places = Places(folder, reading.images)
    return len(first) > 1 and not any(cell and not places.find(cell).reason for cell in first)


def _json_lines(path: Path, encoding: str) -> Table:
    """Read a JSON object from each line; the columns are the keys of the first SAMPLE objects."""

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        lines = Lines(path, encoding)
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {lines.number}: not JSON ({error}); expected an object") from None
            if not isinstance(value, dict):
                raise DataError(f'{path}, line {lines.number}: expected an object such as {{"path": …, "label": …}}')
            yield lines.number, value

    columns = list(dict.fromkeys(key for _, value in islice(objects(), SAMPLE) for key in value))

    def rows() -> Iterator[Row]:
        for number, value in objects():
            yield Row(number, [_text(value.get(column)) for column in columns])

    return Table(path, columns, 1, list(islice(rows(), SAMPLE)), rows(), ["JSON lines"])


def _text(value: object) -> str:
    """Return a value of a JSON object as the text of a cell."""
    match value:
        case None:
            return ""
        case list():
            return SEVERAL.join(map(_text, value))
        case bool():
            return str(value).lower()
        case _:
            return str(value).strip()


def plain(name: str) -> str:
    """Return a name in lower case, with letters and digits only."""
    return re.sub(r"[\W_]", "", name.lower())
