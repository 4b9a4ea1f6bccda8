"""How far long work is, on standard error: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""Called with how many more are done."""

LINE_EVERY = 15.0
"""Seconds between two plain lines, where there is no terminal."""


def ignore(count: int) -> None:
    """The Advance of work that nobody watches."""


@contextmanager
def bar(doing: str, total: int | None, unit: str = "pictures") -> Iterator[Advance]:
    """Show how many of `total` (None: not known) are done while the block runs; the block calls what it gets.

    The bar is gone when the block ends. Nothing is printed where the work takes less than a moment.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "{task.completed:,} of {task.total:,} " + unit if total is not None else "{task.completed:,} " + unit
        ),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    task = shown.add_task(doing, total=total)
    done, line_at = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, line_at
        done += count
        shown.advance(task, count)
        if shown.disable and time.monotonic() - line_at >= LINE_EVERY:
            line_at = time.monotonic()
            of = f" of {total:,}" if total is not None else ""
            print(f"{doing}: {done:,}{of} {unit}", file=sys.stderr, flush=True)

    with shown:
        yield advance
