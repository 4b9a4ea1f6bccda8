"""Progress of long work, on standard error: a live bar on a terminal or in a notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from io import TextIOBase
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias, cast

if TYPE_CHECKING:
    from rich.console import Console

Advance: TypeAlias = Callable[[int], None]
"""A function that is called with the number of items that were done since the last call."""

LINE_EVERY = 15.0
"""Seconds between two plain lines, without a terminal or a notebook."""
NOTEBOOK_EVERY = 0.5
"""Seconds between two updates of a notebook's bar."""


def ignore(count: int) -> None:
    """An Advance that does nothing."""


@contextmanager
def bar(doing: str, total: int | None, unit: str = "pictures") -> Iterator[Advance]:
    """Show the progress of the block: how many of `total` items (None: not known) are done. Yields an Advance to call.

    The bar disappears when the block ends. Without a terminal or a notebook, nothing is printed for work that takes
    less than LINE_EVERY seconds.
    """
    with Display() as display:
        yield display.counter(doing, total, unit)


@dataclass(frozen=True)
class Far:
    """The progress of work at one moment."""

    doing: str
    """Name of the work; empty if the unit is enough."""
    done: int
    """Number of items done."""
    total: int | None
    """None: not known."""
    unit: str
    left_seconds: float | None = None
    """None: not known."""
    note: str = ""

    @property
    def count(self) -> str:
        """The number of items done, as text."""
        if not self.unit:
            return ""
        of, unit = f" of {self.total:,}" if self.total is not None else "", self.unit
        return f"{self.done:,}{of} {unit.removesuffix('s') if (self.total or self.done) == 1 else unit}"

    @property
    def left(self) -> str:
        """The time left, as 1:02:05 or 2:05; empty if it is unknown or the work is done."""
        if self.left_seconds is None or self.done == self.total:
            return ""
        minutes, seconds = divmod(round(max(self.left_seconds, 0)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

    def __str__(self) -> str:
        words = ": ".join(filter(None, (self.doing, self.count)))
        left = f"{self.left} left" if self.left else ""
        return "  ".join(filter(None, (words, left, self.note)))


class Display:
    """Shows progress while the block runs: a bar, with lines of text above it.

    Without a terminal or a notebook, progress is plain lines, passed to `line`, or printed on standard error.
    """

    def __init__(self, *, quiet: bool = False, line: Callable[[str], None] | None = None) -> None:
        from rich.console import Console

        self._errors = StandardError()
        self._console = Console(file=cast("IO[str]", self._errors))
        self._doing, self._began, self._first = "", time.monotonic(), 0
        self._bar: _Bar
        if quiet:
            self._bar = _Nothing()
        elif notebook := _notebook():
            self._bar = _NotebookBar(notebook)
        elif self._errors.isatty() and not self._console.is_dumb_terminal:
            self._bar = _TerminalBar(self._console)
        else:
            self._bar = _Lines(line or self.say)

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def closed(self) -> bool:
        """Whether the reader of standard error has ended, as in `resnetkit train ... 2>&1 | head`."""
        return self._errors.closed_pipe

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        # On a terminal, lines are wrapped between words; in a file or a pipe, they are not wrapped.
        self._console.print(text, markup=False, highlight=False, soft_wrap=not self._errors.isatty())

    def show(self, far: Far) -> None:
        """Update the bar. If the time left is not given, it is estimated from the time so far."""
        if far.doing != self._doing:
            self._doing, self._began, self._first = far.doing, time.monotonic(), far.done
        if far.left_seconds is None and far.total is not None and far.done > self._first:
            each = (time.monotonic() - self._began) / (far.done - self._first)
            far = replace(far, left_seconds=each * (far.total - far.done))
        self._bar.show(far)

    def counter(self, doing: str, total: int | None, unit: str) -> Advance:
        """Show the beginning of some work, and return the Advance that counts its items."""
        done = 0
        self.show(Far(doing, done, total, unit))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.show(Far(doing, done, total, unit))

        return advance


class StandardError(TextIOBase):
    """The present standard error. Text is dropped if it can't be written, for example after its reader has ended."""

    def __init__(self) -> None:
        self._stream = sys.stderr  # None in a process without one
        self.closed_pipe = False
        """Whether its reader has ended."""

    @property
    def encoding(self) -> str:  # pyrefly: ignore[bad-override]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The number of the stream's file."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Print `text`."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Print the buffered text."""
        self._try(lambda: self._stream.flush())

    def _try(self, do: Callable[[], object]) -> None:
        if self._stream is None or self.closed_pipe:
            return
        try:
            do()
        except BrokenPipeError:
            self.closed_pipe = True
        except OSError:  # a terminal that was closed, or a file on a full disk: the work goes on
            pass


class _Bar(Protocol):
    """A way to show progress."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def show(self, far: Far) -> None: ...


class _Nothing:
    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def show(self, far: Far) -> None:
        pass


class _Lines(_Nothing):
    """Prints a line every LINE_EVERY seconds."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._line_at = time.monotonic()

    def show(self, far: Far) -> None:
        if time.monotonic() - self._line_at >= LINE_EVERY:
            self._line_at = time.monotonic()
            self._line(str(far))


class _TerminalBar:
    """A live line at the bottom of a terminal, over its whole width."""

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._shown = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False, style="progress.remaining"),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            expand=True,
            # Output for a file or a pipe must not appear on the terminal.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task = self._shown.add_task("", total=None, count="", left="", note="", visible=False)

    def start(self) -> None:
        self._shown.start()

    def stop(self) -> None:
        self._shown.stop()

    def show(self, far: Far) -> None:
        self._shown.update(
            self._task,
            description=far.doing,
            completed=far.done,
            total=far.total,
            count=far.count,
            left=far.left,
            note=far.note,
            visible=True,
        )


class _NotebookBar:
    """A bar in the output of a notebook's cell. It needs no widgets, which many notebooks do not have."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._handle: Any = None
        self._shown_at = 0.0

    def start(self) -> None:
        pass

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def show(self, far: Far) -> None:
        if time.monotonic() - self._shown_at < NOTEBOOK_EVERY:
            return
        self._shown_at = time.monotonic()
        length = "" if far.total is None else f'value="{far.done}" max="{far.total}"'
        shown = {"text/plain": str(far), "text/html": f"<progress {length}></progress> {escape(str(far))}"}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def _notebook() -> Callable[..., Any] | None:
    """Return IPython's function that displays objects in a notebook's cell; None outside of a notebook."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = ipython.get_ipython() if ipython else None
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display
