"""Texts for people: the reprs of objects, HTML tables, and parts of messages."""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

MOST = 150
"""Largest number of characters between the parentheses of an object's repr."""
MOST_ROWS = 30
"""Largest number of rows of a table in a notebook."""
NAME = re.compile(r"`([a-z]\w*)`")
"""A field or an argument in a message: its Python name in backticks."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""A surrogate, half of a character. Python reads a byte of a file name that is not UTF-8 as a surrogate, and Windows
allows them in file names."""


def line(kind: type, *parts: str) -> str:
    """Return a repr, `Kind(part, part)`, cut to MOST characters. Empty parts are left out."""
    return f"{kind.__name__}({cut(', '.join(part for part in parts if part), MOST)})"


def cut(text: str, most: int) -> str:
    """Return `text` on one line, cut to `most` characters; a cut text ends with an ellipsis."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def middle_cut(text: str, most: int) -> str:
    """Return `text` like `cut`, but with the middle left out, since similar names often have the same beginning."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def count(number: int, thing: str) -> str:
    """Return a number and its noun, in the plural if needed: `1 class`, `1,000 classes`."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """Return an HTML table; `kind` is its CSS class."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f"{opening}{body}</table>"


def printable(text: str) -> str:
    r"""Return `text` with escapes for surrogates: a byte of a file name that is not UTF-8 becomes \xe9, for example.

    It is used for JSON, CSV, printed lines and errors. The escape is plain text, so a JSON document contains \\xe9.
    """
    return SURROGATE.sub(lambda found: _escape(ord(found[0])), text)


def speak(text: str, flags: Mapping[str, str]) -> str:
    """Return `text` with flags instead of fields in backticks: "`batch_size` is 0" becomes "--batch-size is 0".

    `flags` maps fields to flags; other fields are not changed. The command line uses this for all messages, which
    contain Python's names.
    """
    return NAME.sub(lambda found: flags.get(found[1], found[0]), text)


def shell(argument: str | Path) -> str:
    """Return `argument` quoted for a shell if needed, for commands in messages."""
    return shlex.quote(str(argument))


def type_of(value: object) -> str:
    """Return the type of a value with its article, if it needs one: `an int`, `a Path`, `bytes`, `None`."""
    name = type(value).__name__
    if value is None or name == "bytes":
        return name.removesuffix("Type")
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def wrong_name(advice: str) -> str:
    """Return the end of an error about a name with surrogates: the reason and `advice`, or the fault of the locale."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return f"is not UTF-8{advice}"
    return f"can't be read in this locale ({encoding}); set PYTHONUTF8=1"


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
