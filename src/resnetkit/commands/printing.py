"""The output of verbs: aligned columns and messages for people, JSON for programs, escaped names for every terminal."""

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from resnetkit.display import printable, speak
from resnetkit.errors import UsageError
from resnetkit.files import expanded

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters, which a terminal does not show but executes."""
MAX_PIXELS = "--max-pixels"
"""The flag of `max_pixels`, which every verb that reads pictures accepts."""


def on_one_line(text: object) -> str:
    r"""Return `text` on one line, for names of files and classes, which may contain any character.

    Control characters are escaped: a newline becomes \n, and escape, which starts colours and cursor moves, \x1b.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


@contextmanager
def any_name_printed() -> Iterator[None]:
    """Within the block, escape characters that the terminal's encoding does not contain, instead of an error.

    Text for a stream that was closed when the process began (`>&-`) is dropped.
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
            with suppress(OSError, ValueError):  # the stream or its reader is closed
                stream.reconfigure(errors=errors)


def _open_closed_streams() -> None:
    """Open closed standard streams on the null device; else printed text would go to the next opened file."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is `number`
    if sys.stdout is None or sys.stdout.closed:
        sys.stdout = _ClosedStream(os.fdopen(1, "wb", closefd=False), encoding="utf-8")
    if sys.stderr is None or sys.stderr.closed:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if sys.stdin is None or sys.stdin.closed:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)


class _ClosedStream(TextIOWrapper):
    """Replaces a stream that was closed when the process began. Text that is printed on it is lost."""

    printed = False

    def write(self, text: str, /) -> int:
        """Drop `text`, and record that there was text."""
        self.printed = self.printed or bool(text)
        return super().write(text)


def is_answer_lost(stream: TextIO) -> bool:
    """Return whether text was printed on a stream that was closed when the process began."""
    stream = as_is(stream)
    return isinstance(stream, _ClosedStream) and stream.printed


class FlagStream:
    """A stream that prints a field in backticks as the verb's flag: "`batch_size` is 0" as "--batch-size is 0"."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.flags: Mapping[str, str] = {"max_pixels": MAX_PIXELS}
        """Field -> its flag. The verb's parser sets it (see `set_flags`)."""

    def write(self, text: str, /) -> int:
        """Print `text`."""
        return self.stream.write(speak(text, self.flags))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def flags_printed() -> Iterator[None]:
    """Within the block, print fields in backticks as flags, on both standard streams.

    Files that a verb writes, and JSON and CSV output, keep Python's names, since programs read them.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", FlagStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def set_flags(flags: Mapping[str, str]) -> None:
    """Set the flags of the verb's fields, for text that is printed from now on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, FlagStream):
            stream.flags = {"max_pixels": MAX_PIXELS, **flags}


def as_is(stream: TextIO) -> TextIO:
    """Return the stream below a FlagStream, which prints text without changes."""
    return stream.stream if isinstance(stream, FlagStream) else stream


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(as_json(document, indent=2), file=as_is(sys.stdout))


def print_list(results: Iterable[Mapping[str, Any]]) -> None:
    """Print a list as JSON, one result at a time, since all results of a folder may not fit into memory."""
    separator = "["
    for result in results:
        print(separator, as_json(result), sep="\n", end="", file=as_is(sys.stdout))
        separator = ","
    print("\n]" if separator == "," else "[]")


def as_json(document: Any, *, indent: int | None = None) -> str:
    """Return `document` as JSON, in ASCII if standard output is not UTF-8.

    NaN and infinity, which JSON does not allow, become null. Text is made `printable`.
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
    """Print columns as wide as their widest cell. The first is aligned to the left, the others to the right."""
    lines = [list(header), *([_as_shown(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        print(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]).rstrip()
        )


def _as_shown(cell: object) -> str:
    """Return a cell as the terminal shows it, with escaped characters; its length is the width in a column."""
    encoding = sys.stdout.encoding or "utf-8"
    return printable(on_one_line(cell)).encode(encoding, "backslashreplace").decode(encoding)


def as_text(value: Any) -> str:
    """Return a recipe's value as on the command line; a dash for None."""
    match value:
        case None:
            return "-"
        case list() | tuple():
            return ",".join(map(as_text, value))
        case bool():
            return str(value).lower()
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)


def free_file(path: str, flag: str, *, force: bool) -> Path:
    """Return the path that was given with `flag`, for a file to write.

    Raises UsageError if its folder is not there or, without `force`, if something is there already.
    """
    file = expanded(path)
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{flag} {file}: there is no folder {file.parent}; create it, or give another file")
    if file.exists() and not force:
        raise UsageError(f"{flag} {file} exists already; give another file, or --force to replace it")
    return file
