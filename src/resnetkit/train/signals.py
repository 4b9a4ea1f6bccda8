"""Signals that stop a run. They are recorded, and the run stops at the next point at which it can save its state."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

CLOSED_PIPE = 13
"""The number of SIGPIPE, which Windows does not define: for a run that stops because its standard error is closed."""


class Signals:
    """A context in which the first SIGINT, SIGTERM or SIGHUP is recorded in `received`.

    A later SIGINT raises KeyboardInterrupt immediately. Other signals do not, since a closed terminal sends more than
    one: the kernel and the shell both send SIGHUP.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal; 0 if there was no signal."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and not _is_anothers(number):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


def _is_anothers(number: int) -> bool:
    """Return whether the handler of a signal must stay as it is.

    Python can't restore a handler of C code (None), as in a program that embeds Python. A process that was started with
    nohup ignores SIGHUP and must continue after its terminal is closed.
    """
    before = signal.getsignal(number)
    return before is None or (before == signal.SIG_IGN and number == getattr(signal, "SIGHUP", None))
