"""Run the application with uvicorn: one line when it is ready, a drain on SIGTERM, models that are replaced."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from resnetkit.serve.listener import BACKLOG, refuse_new
from resnetkit.serve.served import ServedModel

WATCH_SECONDS = 1.0
"""Between two looks at the files of the models."""
HEADER_BYTES = 16 * 1024
"""Largest header of a request."""
ACCEPT_SECONDS, ASK_SECONDS = 0.2, 1.0
"""At the end: for connections that have begun to be accepted, and for their clients to send a first request."""
log = logging.getLogger("resnetkit.serve")


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with a limit on the time that a header takes to arrive on an open connection."""

    header_timeout = 10.0
    """Seconds."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a header."""
        super().connection_made(transport)
        self._wait_for_header()

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time goes on until a header is complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._wait_for_header()

    @property
    def waits(self) -> bool:
        """Whether the client has not yet sent the header of its first request."""
        return self._timer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def _wait_for_header(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready, and before it ends, answers for a while on closing connections."""

    def __init__(self, config: uvicorn.Config, guard: Guard, *, drain: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._guard = guard
        self._drain = drain
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End readiness, let clients leave their connections, then stop to listen and answer what was accepted."""
        self._guard.draining = True
        await asyncio.sleep(self._drain)
        for listener in sockets or []:
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                refuse_new(listener)
        await asyncio.sleep(ACCEPT_SECONDS)
        end = asyncio.get_running_loop().time() + ASK_SECONDS
        while any(map(_waits, self.server_state.connections)) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


def _waits(connection: object) -> bool:
    return isinstance(connection, TimedProtocol) and connection.waits


def run(
    guard: Guard,
    models: Sequence[ServedModel],
    listener: socket.socket,
    *,
    limits: Limits,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was accepted. `ready` is called when requests are answered."""
    _allow_connections()
    protocol = type("Protocol", (TimedProtocol,), {"header_timeout": limits.header_timeout})
    config = uvicorn.Config(
        guard,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=int(limits.timeout + limits.body_timeout) + 1,
    )
    server = Server(config, guard, drain=limits.drain, ready=ready)
    stopped = threading.Event()
    watcher = threading.Thread(target=_watch, args=(models, stopped), name="resnetkit-watch", daemon=True)
    watcher.start()
    with _signals_ignored_after():
        server.run([listener])
    stopped.set()
    watcher.join()
    for model in models:
        model.close()


def _watch(models: Sequence[ServedModel], stopped: threading.Event) -> None:
    while not stopped.wait(WATCH_SECONDS):
        for model in models:
            model.reload_if_changed()


@contextlib.contextmanager
def _signals_ignored_after() -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT do nothing by themselves: uvicorn raises again those that it has handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_connections() -> None:
    """Raise the limit of open files to what the system allows: each connection is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
