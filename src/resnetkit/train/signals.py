"""Requests to stop, noted now and obeyed between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second one interrupts at once."""

    def __init__(self) -> None:
        self.received = 0
        """Number of the signal, or 0."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
