"""Whether the pictures of a list have one label or several, and which: separators, columns of 0 and 1, several rows."""

from collections import Counter
from collections.abc import Collection, Sequence

from resnetkit.data.lists.tables import SEVERAL, TAG_NAMES, plain

PLURALS = ("labels", "classes", "categories", "targets", *TAG_NAMES)
"""Names of columns that may contain several labels for one picture."""
STRONG = "|;"
"""Characters that hardly occur in the name of a class."""
SEPARATORS = "|;,/+& "
"""Characters that may separate several labels of a picture in one column."""
MOSTLY, NEARLY_ALL = 0.5, 0.9
"""Least share of the pieces between commas, and between spaces, that other values have, too."""
NAMES = {
    SEVERAL: "in lists",
    "|": "separated by bars",
    ";": "separated by semicolons",
    ",": "separated by commas",
    " ": "separated by spaces",
}
"""How labels are separated, for people."""


def separator_of(values: Collection[str], column: str, *, asked: bool) -> str | None:
    """Return the character between the labels of a picture; None if each of the different `values` is one label.

    `column` is the name of the column. `asked` means that pictures have several labels for certain: then the first of
    JSON lists, bars, semicolons and commas that occurs is the separator. Otherwise it must be plain that a value is not
    the name of a class: a JSON list; bars and semicolons in a column such as labels or tags, or between labels of other
    pictures; commas, if all pieces are labels of other pictures or, in such a column, if most pieces come again; spaces
    in a column of tags, if nearly all pieces come again.
    """
    if any(SEVERAL in value for value in values):
        return SEVERAL
    plural, tags = plain(column) in PLURALS, plain(column) in TAG_NAMES
    for separator in STRONG:
        for value in values:
            parts = pieces(value, separator)
            if len(parts) > 1 and (asked or plural or any(part in values for part in parts if part != value)):
                return separator
    for separator in ", " if tags else ",":
        several = [parts for value in values if len(parts := pieces(value, separator)) > 1]
        if not several:
            continue
        if separator == "," and (asked or any(all(part in values for part in parts) for parts in several)):
            return separator
        counts = Counter(part for value in values for part in {*pieces(value, separator)})
        again = sum(counts[part] > 1 for parts in several for part in parts) / sum(map(len, several))
        if (plural or tags) and again >= (MOSTLY if separator == "," else NEARLY_ALL):
            return separator
    return None


def pieces(value: str, separator: str) -> tuple[str, ...]:
    """Return the labels in a value, each once, in order, without empty ones."""
    return tuple(dict.fromkeys(piece.strip() for piece in value.split(separator) if piece.strip()))


def doubtful(values: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the values that are one class, or several labels with another separator: value -> the labels.

    Each of their pieces is the label of another picture.
    """
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        for separator in SEPARATORS:
            parts = pieces(value, separator)
            if len(parts) > 1 and all(part in values and part != value for part in parts):
                found.setdefault(value, parts)
    return found


def read_as_one(values: Collection[str], column: str) -> list[str]:
    """Return notes on values of a column such as labels that are read as one class, though a piece is one, too."""
    if plain(column) not in PLURALS:
        return []
    notes: dict[str, None] = {}
    for value in sorted(values):
        for separator in SEPARATORS:
            parts = pieces(value, separator)
            known: Sequence[str] = sorted({*parts} & {*values} - {value})
            if len(parts) > 1 and known:
                notes[f"{value!r} is read as one class, different from {known[0]!r}"] = None
    return list(notes)
