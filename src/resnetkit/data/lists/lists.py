"""Read a list of labelled pictures: a CSV or similar file, JSON lines, or text with a path and a label in each line."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unicodedata import normalize

from resnetkit.data.division import NOT_KEPT, Keeping, Labelled, divided
from resnetkit.data.lists.columns import Columns, UnlabelledError, find_columns, read_row
from resnetkit.data.lists.labels import NAMES, doubtful, pieces, read_as_one, separator_of
from resnetkit.data.lists.places import WEB_ADDRESS, Places
from resnetkit.data.lists.tables import SEVERAL, Lines, Table, encoding_of, open_table
from resnetkit.data.reading import CLASSES_ONLY, NOTHING, Reading, UnfitError, part_of, reading_of, without_part
from resnetkit.data.samples import Dataset
from resnetkit.display import count
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded

CLASS_LISTS = ("classes", "class_names", "classnames", "labels", "label_list", "label_names", "synset_words", "synsets")
"""Names, without .txt, of files next to a list whose labels are numbers. Such a file has a class name in each line."""
MOST_PROBLEMS = 20
"""Largest number of wrong lines in an error."""
MOST_VALUES = 5
"""Largest number of wrong values of the split column in an error."""
OR = "or give `labels` several"
EMPTY = "the label is empty; fill it in or remove the line"


class NoFilesError(DataError):
    """All files of a list are missing."""


@dataclass(frozen=True)
class _Row:
    """A row whose file is there."""

    line: int
    name: str
    """The file as the list names it."""
    key: str
    path: Path
    label: str
    """Its label; several have SEVERAL between them."""
    part: str
    group: str


@dataclass
class _Problems:
    """The problems in a list, each with its line number."""

    path: Path
    found: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, what: str) -> None:
        self.count += 1
        if len(self.found) < MOST_PROBLEMS:
            self.found.append((line, what))

    def add_parts(self, wrong: Mapping[str, Sequence[int]]) -> None:
        """Add the values of the split column that are not parts, each with its line numbers, as one problem."""
        if wrong:
            shown = [
                f"{value!r}{f' in {len(lines):,} lines' if len(lines) > 1 else ''}" for value, lines in wrong.items()
            ]
            more = f" and {len(shown) - MOST_VALUES} other values" if len(shown) > MOST_VALUES else ""
            self.count += 1
            what = f"split is {', '.join(shown[:MOST_VALUES])}{more}; expected train, val or test"
            self.found.insert(0, (min(min(lines) for lines in wrong.values()), what))

    def refuse(self, missing: Sequence[tuple[Path, str]]) -> None:
        """Raise DataError with the first problems, if there are any, and the number of `missing` files."""
        do = "does" if len(missing) == 1 else "do"
        lacking = f"and {count(len(missing), 'file')} {do} not exist, first {missing[0][0]}" if missing else ""
        if self.count == 1:
            first = f"{self.path}, line {self.found[0][0]}: {self.found[0][1]}"
            raise DataError(f"{first}\n  {lacking}" if lacking else first)
        if self.count:
            lines = [f"  line {line}: {what}" for line, what in sorted(self.found)[:MOST_PROBLEMS]]
            more = [f"  and {self.count - len(lines):,} more"] if self.count > len(lines) else []
            more += [f"  {lacking}"] if lacking else []
            raise DataError("\n".join([f"{self.path}: {self.count:,} lines to fix:", *lines, *more]))


def load_list(
    path: Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    reading: Reading = NOTHING,
    keeping: Keeping = NOT_KEPT,
) -> Dataset:
    """Read a list of labelled pictures, with columns for path, label and, if the list is divided, split.

    The list is CSV separated by commas, semicolons, tabs or bars, in UTF-8 or UTF-16, with or without a header; or JSON
    lines; or text with a path and a label in each line. The columns are found by their usual names or their content, or
    given in `reading`. Paths are relative to the list's folder, or to `reading.images`; the suffix may be missing. If
    the list is for train, lists for val and test next to it are read, too. `understood` of the result describes every
    difference from path,label,split with commas. If there is no val, it is drawn from train as in `load_folder`. Files
    that do not exist are listed in `skipped` and counted in `missing`; with `strict`, they are an error.

    A picture may have several labels or none (multi-label), if `reading.labels` says so, or if a row says so plainly:
    see `labels.separator_of`; of columns of 0 and 1, several are 1.

    Raises:
        DataError: lines are wrong (an empty label, a contradiction, an unknown part; the error contains
            the numbers of the first twenty lines), or more than half of the files are missing.
        UsageError: a folder or column that `reading` names does not exist, or `val_fraction` is out of range.
    """
    if reading.part_folders is not None:
        reading.refuse(
            "parts", why=f"{path} is a list; its parts are in its column split, or in the column of `split_column`"
        )
    if reading.images and not expanded(reading.images).is_dir():
        raise UsageError(f"`images` {reading.images}: there is no such folder")
    reader = _Reader(reading, strict=strict)
    parts = reader.read(path)
    if not reader.has_parts and reading.parts != CLASSES_ONLY:
        taken = [f"train = {path.name}"]
        for part, beside in lists_beside(path).items():
            if found := reader.read_beside(beside, part):
                parts[part] = found
                taken.append(f"{part} = {beside.name}")
        if len(taken) > 1:
            reader.understood.append(f"parts: {', '.join(taken)}")
    return divided(
        str(path),
        _named(path, parts, reader.understood),
        val_fraction=val_fraction,
        seed=seed,
        reading=reading,
        keeping=keeping,
        skipped=reader.skipped,
        understood=reader.understood,
        missing=reader.missing,
    )


class _Reader:
    """Reads lists that belong to one data set."""

    def __init__(self, reading: Reading, *, strict: bool) -> None:
        self._reading = reading
        self._strict = strict
        self.skipped: list[tuple[Path, str]] = []
        self.understood: list[str] = []
        self.missing = 0
        self.has_parts = False
        self.several = False
        """Whether pictures of the list that was read last may have several labels."""
        self._columns: dict[str, str] = {}
        """The columns of the list that was read last: field of Reading, such as label_column -> name of the column."""

    def read_beside(self, path: Path, part: str) -> list[Labelled]:
        """Return the pictures of a list next to the one that was read; empty if it does not have the same columns."""
        several = {"labels": "several"} if self.several else {}
        reader = _Reader(reading_of(self._columns | self._reading.given() | several), strict=self._strict)
        try:
            found = reader.read(path, part=part)
        except (UnlabelledError, UnfitError):
            self.understood.append(f"{path.name} has no label column: left out")
            return []
        except NoFilesError:
            self.understood.append(f"{path.name}: none of its files exists; left out")
            return []
        if reader.several and not self.several:
            raise DataError(f"{path} has several labels for a picture, and the list for train has one; {OR}")
        self.skipped += reader.skipped
        self.missing += reader.missing
        return [picture for pictures in found.values() for picture in pictures]

    def read(self, path: Path, *, part: str = "train") -> dict[str, list[Labelled]]:
        """Return the pictures of a list by part. Rows without a part belong to `part`."""
        table = open_table(path, self._reading)
        places = Places(path.parent, self._reading.images)
        columns = find_columns(table, self._reading, places)
        self.has_parts = columns.split is not None
        in_group = (
            table.columns.index(by) if table.columns and (by := self._reading.group_by) in table.columns else None
        )
        self._columns = {
            f"{what}_column": table.columns[place]
            for what, place in (("path", columns.path), ("label", columns.label))
            if table.columns is not None and place is not None and table.columns[place]
        }
        rows: list[_Row] = []
        problems = _Problems(path)
        missing: list[tuple[int, Path, str]] = []
        no_parts: dict[str, list[int]] = defaultdict(list)
        unsaid = 0
        for line, cells in table.rows:
            what = read_row(table, columns, cells)
            if what.problem:
                problems.add(line, what.problem)
                continue
            own = part_of(what.split) if what.split else part
            if own is None:
                no_parts[what.split].append(line)
                continue
            picture = places.find(what.name)
            if picture.reason:
                if picture.several:
                    problems.add(line, f"{picture.path} {picture.reason}; write one of them")
                    continue
                if self._strict:
                    problems.add(line, f"{picture.path} {picture.reason}; {places.base_said}")
                near = (
                    places.near(picture.path)
                    if len(missing) < MOST_PROBLEMS and WEB_ADDRESS not in picture.reason
                    else ""
                )
                missing.append((line, picture.path, f"{picture.reason}{near}"))
                continue
            unsaid += columns.split is not None and not what.split
            group = cells[in_group].strip() if in_group is not None and in_group < len(cells) else ""
            rows.append(_Row(line, what.name, picture.key, picture.path, what.label, own, group))
        problems.add_parts(no_parts)
        parts = self._labelled(rows, table, columns, problems)
        gone = [(picture, f"{reason} ({path}, line {line})") for line, picture, reason in missing]
        problems.refuse([] if self._strict else gone)  # with strict, missing files are problems already
        there = sum(map(len, parts.values()))
        if not there and not missing:
            raise DataError(f"{path} lists no pictures; expected a line per picture below the line path,label")
        if len(missing) > there:
            raise _too_few(path, missing, there, places)
        self.skipped += gone
        self.missing += len(gone)
        if elsewhere := places.elsewhere([picture for _, picture, _ in missing]) if missing else "":
            self.understood.append(f"{path.name}: {len(gone):,} of {len(gone) + there:,} files are missing{elsewhere}")
        if unsaid and columns.split is not None:
            table.form.append(f"{count(unsaid, 'line')} without a part belong{'s' if unsaid == 1 else ''} to {part}")
        if places.completed:
            table.form.append("missing suffixes of files added")
        if places.deeper:
            table.form.append(f"files found in folders within {places.base}")
        if table.form:
            self.understood.append(f"{path.name}: {', '.join(table.form)}")
        return parts

    def _labelled(
        self, rows: Sequence[_Row], table: Table, columns: Columns, problems: _Problems
    ) -> dict[str, list[Labelled]]:
        """Return the pictures of rows by part, with one label each or with several; add wrong rows to `problems`."""
        column = self._columns.get("label_column", "")
        values = {row.label for row in rows}
        asked = self._reading.labels == "several"
        separator = None
        if columns.one_hot:
            separator = SEVERAL if any(SEVERAL in value for value in values) else None
        elif self._reading.labels != "one":
            separator = separator_of(values, column, asked=asked)
        self.several = asked or (separator is not None and self._reading.labels != "one")
        named = table.columns or []
        flags = [named[place] if place < len(named) else str(place + 1) for place in columns.one_hot]
        ends = f"the {len(flags)} columns {flags[0]} to {flags[-1]}" if flags else ""
        if self.several:
            how = f"{ends} that are 1" if flags else NAMES[separator] if separator else "one in a row"
            table.form.append(f"several labels for a picture: {how}")
            return _with_several(rows, separator or SEVERAL, self._source(table), problems)
        if flags:
            table.form.append(f"label = the one of {ends} that is 1")
        if self._reading.labels is None:
            table.form += read_as_one(values, column)
            in_doubt = doubtful(values)
            for row in rows:
                if parts := in_doubt.get(row.label):
                    few = ", ".join(parts)
                    problems.add(
                        row.line,
                        f"{row.path.name} may have {len(parts)} labels ({few}), or be of one class {row.label!r}; "
                        "separate labels by |, or give `labels` one",
                    )
            rows = [row for row in rows if row.label not in in_doubt]
        return _with_one(rows, self._source(table), problems, flags=bool(flags))

    @staticmethod
    def _source(table: Table) -> str:
        return f"{table.path}, line "


def _with_one(rows: Sequence[_Row], source: str, problems: _Problems, *, flags: bool) -> dict[str, list[Labelled]]:
    """Return the pictures by part; each has one label."""
    parts: dict[str, list[Labelled]] = defaultdict(list)
    seen: dict[Path, _Row] = {}
    for row in rows:
        labels = row.label.split(SEVERAL)
        if not row.label:
            empty = f"{row.name} has no label; one of its columns must be 1" if flags else EMPTY
            problems.add(row.line, f"{empty}, {OR}")
        elif len(labels) > 1:
            problems.add(row.line, f"{row.name} has {len(labels)} labels ({', '.join(labels)}); keep one, {OR}")
        elif (known := seen.setdefault(row.path, row)).label != row.label:
            problems.add(
                row.line,
                f"{row.name} is {row.label!r}, but {known.label!r} in line {known.line}; remove one of them, {OR}",
            )
        elif not _moves(row, known, problems):
            parts[row.part].append(Labelled(row.key, row.path, row.label, f"{source}{row.line}", row.group))
    return parts


def _with_several(rows: Sequence[_Row], separator: str, source: str, problems: _Problems) -> dict[str, list[Labelled]]:
    """Return the pictures by part, each once, with the labels of all its rows."""
    first: dict[Path, _Row] = {}
    labels: dict[Path, set[str]] = defaultdict(set)
    for row in rows:
        if not _moves(row, first.setdefault(row.path, row), problems):
            labels[row.path].update(pieces(row.label, separator))
    parts: dict[str, list[Labelled]] = defaultdict(list)
    for path, row in first.items():
        parts[row.part].append(
            Labelled(row.key, path, "", f"{source}{row.line}", row.group, labels=frozenset(labels[path]))
        )
    return parts


def _moves(row: _Row, known: _Row, problems: _Problems) -> bool:
    """Add a problem if a picture is in another part than in an earlier row; return whether it is."""
    if row.part == known.part:
        return False
    problems.add(
        row.line, f"{row.name} is for {row.part}, but for {known.part} in line {known.line}; remove one of them"
    )
    return True


def _too_few(path: Path, missing: Sequence[tuple[int, Path, str]], there: int, places: Places) -> DataError:
    """Return the error for a list with most files missing: the first ones, and the folders that contain them."""
    elsewhere = places.elsewhere([picture for _, picture, _ in missing])
    at, first, reason = missing[0]
    if WEB_ADDRESS in reason:
        return NoFilesError(
            f"{path}, line {at}: web addresses are not downloaded; download them, and give their folder as `images`"
        )
    if not there:
        why = "" if reason == "does not exist" else f" ({reason.removeprefix('does not exist; ')})"
        return NoFilesError(
            f"{path}: none of its {len(missing)} files exists, first {first}{why}; {places.base_said}{elsewhere}"
        )
    lines = [f"  line {line}: {picture} {what}" for line, picture, what in missing[:MOST_PROBLEMS]]
    more = [f"  and {len(missing) - len(lines):,} more"] if len(missing) > len(lines) else []
    of = f"{len(missing):,} of {len(missing) + there:,} files are missing"
    return DataError("\n".join([f"{path}: {of}; {places.base_said}{elsewhere}", *lines, *more]))


def lists_beside(path: Path) -> dict[str, Path]:
    """Return the lists for val and test next to a list for train; their names differ only in the word for the part."""
    if part_of(path.stem) != "train":
        return {}
    found: dict[str, Path] = {}
    for other in sorted(path.parent.iterdir()):
        part = part_of(other.stem)
        alike = other.suffix.lower() == path.suffix.lower() and without_part(other.stem) == without_part(path.stem)
        if not alike or part not in ("val", "test") or not other.is_file():
            continue
        if (first := found.setdefault(part, other)) != other:
            raise DataError(
                f"{first} and {other} may both be for {part}; move one elsewhere, or use neither: give `parts` none"
            )
    return found


def _named(path: Path, parts: dict[str, list[Labelled]], understood: list[str]) -> dict[str, list[Labelled]]:
    """Write numbers as labels in one form (`0.0` as 0) or, if a list of class names is next to `path`, as names."""
    labels = {label for pictures in parts.values() for picture in pictures for label in picture.all_labels}
    if labels and all(re.fullmatch(r"\d+(\.0*)?", label) for label in labels):
        names = {label: label.partition(".")[0] for label in labels}
        if classes := _class_names(path):
            file, listed = classes
            numbers = sorted({int(number) for number in names.values()})
            from_one = numbers[0] == 1 and numbers[-1] == len(listed)
            if numbers[-1] - from_one < len(listed) and len(set(listed)) == len(listed):
                names = {label: listed[int(number) - from_one] for label, number in names.items()}
                understood.append(f"names of the classes from {file.name}{', counted from 1' if from_one else ''}")
            else:
                understood.append(
                    f"{file.name} is not used: it has {len(listed)} names, {len(set(listed))} of them different, and "
                    f"classes go up to {numbers[-1]}"
                )
    else:
        names = dict[str, str]()
    if all(name == label for label, name in names.items()):
        return parts
    return {part: [_renamed(one, names) for one in pictures] for part, pictures in parts.items()}


def _renamed(picture: Labelled, names: Mapping[str, str]) -> Labelled:
    """Return the picture with other names of its labels."""
    if picture.labels is None:
        return replace(picture, label=names[picture.label])
    return replace(picture, labels=frozenset(names[label] for label in picture.labels))


def _class_names(path: Path) -> tuple[Path, list[str]] | None:
    """Return the list of classes next to `path`, and the names in it without their numbers; None without a list."""
    for stem in CLASS_LISTS:
        file = path.with_name(f"{stem}.txt")
        if file == path or not file.is_file():
            continue
        lines = [line.strip() for line in Lines(file, encoding_of(file))]
        pieces = [re.fullmatch(r"(\d+)\s*[:,;\t ]\s*(.+)", line) for line in lines]
        if lines and all(piece and int(piece[1]) in (place, place + 1) for place, piece in enumerate(pieces)):
            lines = [piece[2] for piece in pieces if piece]
        if all(re.match(r"n\d{8}\b", line) for line in lines):  # n01440764 tench, Tinca tinca
            lines = [line[:9] for line in lines]
        return file, [normalize("NFC", line) for line in lines]
    return None
