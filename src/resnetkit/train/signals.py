"""Requests to stop, noted now and obeyed when the run can save its state."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

CLOSED_PIPE = 13
"""SIGPIPE, which Windows does not know: the number of a run that stops because nobody reads what it says."""


class Signals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted in `received`; a SIGINT after it interrupts at once.

    Only SIGINT, since a closed terminal sends several: the kernel its SIGHUP, the shell another one.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal, or 0."""
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
    """Whether a signal must be left as it is.

    What C code handles (None), as in a program that has Python built in, Python can't give back to it; and a process
    that was started with nohup is to outlive its terminal.
    """
    before = signal.getsignal(number)
    return before is None or (before == signal.SIG_IGN and number == getattr(signal, "SIGHUP", None))
