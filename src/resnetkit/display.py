"""What objects show of themselves: one short line, whatever they hold, and tables of HTML for notebooks and reports."""

import re
import sys
from collections.abc import Iterable, Sequence
from html import escape

MOST = 150
"""Characters between the brackets of a line."""
MOST_ROWS = 30
"""Rows of a table in a notebook; more can't be read."""
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character: how Python reads a byte of a file name that is not UTF-8, and what Windows allows in one."""


def line(kind: type, *parts: str) -> str:
    """`Kind(part, part)`, cut where it would be longer than a line or two."""
    return f"{kind.__name__}({cut(', '.join(part for part in parts if part), MOST)})"


def cut(text: str, most: int) -> str:
    """`text` on one line, with an ellipsis in the place of what is beyond `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def middle_cut(text: str, most: int) -> str:
    """Like `cut`, but in the middle: names of a kind often begin alike."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


def count(number: int, thing: str) -> str:
    """Such as `1 class`, `1,000 classes`."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML, with `kind` as its class."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    opening = f'<table class="{kind}">' if kind else "<table>"
    return f"{opening}{body}</table>"


def printable(text: str) -> str:
    r"""`text` in characters that UTF-8 has: a byte of a file name that is not UTF-8 becomes \xe9, as Python writes it.

    In JSON, CSV, lines for people and errors alike; the escape itself is text there, so a JSON document has \\xe9.
    """
    return SURROGATE.sub(lambda found: _escape(ord(found[0])), text)


def wrong_name(mend: str) -> str:
    """What is wrong with a name that has halves of characters, and the mend: `mend`, unless the locale is at fault."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return f"is not UTF-8{mend}"
    return f"can't be read in this locale ({encoding}); set PYTHONUTF8=1"


def _escape(code: int) -> str:
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
