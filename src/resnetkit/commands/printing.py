"""What verbs print: aligned columns for people, one JSON document for programs, and names that any terminal takes."""

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from resnetkit.display import printable

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that are none to be seen."""


def on_one_line(text: object) -> str:
    r"""`text` as it can stand in a line for people, whatever the name of a file or a class holds.

    A newline becomes \n, and what would move a terminal's cursor or change its colours, \x1b.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


@contextmanager
def any_name_printed() -> Iterator[None]:
    """Make what is printed meanwhile `printable`, and escape what the terminal's encoding lacks, instead of failing.

    What is printed on a stream that was closed when the process began (`>&-`) goes nowhere.
    """

    def escaped(error: UnicodeError) -> tuple[str | bytes, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = printable(error.object[error.start : error.end])
        return text.encode(error.encoding, "backslashreplace"), error.end

    codecs.register_error("resnetkit.printable", escaped)
    _open_closed_streams()
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        with suppress(OSError, ValueError):
            stream.reconfigure(errors="resnetkit.printable")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                stream.reconfigure(errors=errors)


def _open_closed_streams() -> None:
    """Let standard streams that are closed lead nowhere; else the next file that is opened would get what's printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    if sys.stdout is None or sys.stdout.closed:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None or sys.stderr.closed:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if sys.stdin is None or sys.stdin.closed:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)


def print_json(document: Any) -> None:
    """One JSON document, and nothing else."""
    print(as_json(document, indent=2))


def as_json(document: Any, *, indent: int | None = None) -> str:
    """`document` as JSON that every reader takes, in ASCII where standard output is not UTF-8.

    A number that is not finite, which JSON does not have, is null. Text is `printable`.
    """
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    return json.dumps(_plain(document), indent=indent, ensure_ascii=not utf8, allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns wide enough for what is in them: the first to the left, the others to the right."""
    lines = [list(header), *([on_one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        print(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]).rstrip()
        )


def as_text(value: Any) -> str:
    """A recipe's value as it is written on the command line; a dash for none."""
    match value:
        case None:
            return "-"
        case list() | tuple():
            return ",".join(map(as_text, value))
        case bool():
            return str(value).lower()
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)
