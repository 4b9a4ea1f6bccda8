"""Texts for people: the line that an object shows of itself, tables of HTML, and the words of messages."""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

MOST = 150
"""Most characters between the parentheses of an object's line."""
MOST_ROWS = 30
"""Most rows of a table in a notebook: nobody reads more."""
NAME = re.compile(r"`([a-z]\w*)`")
"""A field or an argument in a message: its Python name in backticks."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character: how Python reads a byte of a file name that is not UTF-8, and what Windows allows in one."""


def line(kind: type, *parts: str) -> str:
    """`Kind(part, part)`, cut to a line or two. Empty parts are left out."""
    return f"{kind.__name__}({cut(', '.join(part for part in parts if part), MOST)})"


def cut(text: str, most: int) -> str:
    """`text` on one line, cut to `most` characters; an ellipsis at the end says that it was cut."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def middle_cut(text: str, most: int) -> str:
    """Like `cut`, but with the middle left out: similar names often begin alike."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def count(number: int, thing: str) -> str:
    """A number and its noun, in the plural if needed: `1 class`, `1,000 classes`."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML; `kind` is its CSS class."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f"{opening}{body}</table>"


def printable(text: str) -> str:
    r"""`text` in characters that UTF-8 has: a byte of a file name that is not UTF-8 becomes \xe9, as Python writes it.

    This holds for JSON, CSV, lines for people and errors. The escape is plain text, so a JSON document has \\xe9.
    """
    return SURROGATE.sub(lambda found: _escape(ord(found[0])), text)


def speak(text: str, flags: Mapping[str, str]) -> str:
    """`text` with each field in backticks as `flags` has it: "`batch_size` is 0" becomes "--batch-size is 0".

    Fields that are not in `flags` stay as they are. Messages have Python's names everywhere but on the command line.
    """
    return NAME.sub(lambda found: flags.get(found[1], found[0]), text)


def shell(argument: str | Path) -> str:
    """`argument` as a shell takes it, for the commands that messages suggest: quoted where it has spaces."""
    return shlex.quote(str(argument))


def type_of(value: object) -> str:
    """The type of a value with its article, if it takes one: `an int`, `a Path`, `bytes`, `None`."""
    name = type(value).__name__
    if value is None or name == "bytes":
        return name.removesuffix("Type")
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def wrong_name(mend: str) -> str:
    """Say that a name has halves of characters, and `mend`; where the locale is at fault, say that instead."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return f"is not UTF-8{mend}"
    return f"can't be read in this locale ({encoding}); set PYTHONUTF8=1"


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
