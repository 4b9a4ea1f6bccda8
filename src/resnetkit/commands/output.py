"""What verbs print on standard output: aligned columns for people, one JSON document for programs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(document: Any) -> None:
    """One JSON document, and nothing else."""
    print(as_json(document, indent=2))


def as_json(document: Any, *, indent: int | None = None) -> str:
    """`document` as JSON that every reader takes; a number that is not finite, which JSON does not have, is null."""
    return json.dumps(_finite(document), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns wide enough for what is in them: the first to the left, the others to the right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
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
