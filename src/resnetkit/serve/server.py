"""Run the application with uvicorn: one line when it is ready, a drain on SIGTERM, models that are replaced."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from resnetkit.serve.listener import BACKLOG, refuse_new
from resnetkit.serve.served import ServedModel

WATCH_SECONDS = 1.0
"""Between two looks at the files of the models."""
HEADER_BYTES = 16 * 1024
"""Largest header of a request."""
KEEP_ALIVE_SECONDS = 75
"""How long a connection is kept without a request: longer than the 60 s for which proxies usually keep theirs. A
request is lost if it is sent while its connection is closed."""
ACCEPT_SECONDS, ASK_SECONDS = 0.2, 1.0
"""At the end: for connections that have begun to be accepted, and for their clients to send a first request."""
UPGRADE = re.compile(rb"(\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
log = logging.getLogger("resnetkit.serve")


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 by httptools, with limits on the size of a header and on the time that it takes to arrive.

    httptools keeps what it has read of a header or a trailer, however long. So what it keeps is counted here.
    """

    header_timeout = 10.0
    """Seconds."""
    body_timeout = 30.0
    """Seconds for the rest of a body whose request was refused before it came; the guard has the time of the others."""
    _timer: asyncio.TimerHandle | None = None
    _begun = False
    """Whether a part of a header has come, but not all of it."""
    _in_body = False
    _ended = False
    """Whether a request ended in what came last."""
    _kept = 0
    """Bytes since the last header or the last bytes of a body, without those that came with its end."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a header."""
        super().connection_made(transport)
        self._wait(self.header_timeout)

    def data_received(self, data: bytes) -> None:
        """Take bytes; the time goes on until a header is complete."""
        if not self._in_body:
            data = _without_upgrade(data)
        self._kept += len(data)
        self._ended = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._kept > HEADER_BYTES:
            self.send_400_response("Too long a header.")
        elif self._begun or not (self._answers or self._ended):  # also after empty lines
            self._wait(self.body_timeout if self._in_body else self.header_timeout)
        else:
            self._stop()
            if not self._answers and self.timeout_keep_alive_task is None:  # a body that was refused has ended
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def on_message_begin(self) -> None:
        """Note that a header has begun."""
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        """Start the request, if its header is not too long. httptools turns the error into its own."""
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEADER_BYTES:
            raise ValueError("too long a header")
        if self.parser.should_upgrade():  # a header that came in pieces: without its body, the answer would be wrong
            raise ValueError("another protocol is asked for")
        self._begun, self._in_body, self._kept = False, True, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of the header. Those after the body (trailers) are dropped."""
        if not self._in_body:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. A chunk may be of one byte, and has five bytes around it."""
        self._kept = max(0, self._kept - 6 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request, of which the answer may have begun."""
        self._in_body, self._ended, self._kept = False, True, 0
        self._stop()  # the next header has its own time
        super().on_message_complete()

    @property
    def waits(self) -> bool:
        """Whether a header, or the rest of a body that was refused, is awaited."""
        return self._timer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    @property
    def _answers(self) -> bool:
        """Whether a request has come that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._answers:  # the next request began to come before the answer to this one
            self._wait(self.header_timeout)
        else:
            self.transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _without_upgrade(data: bytes) -> bytes:
    """Return the bytes with another name for the field Upgrade in the first header.

    A server may ignore a wish for another protocol, such as Java's client has it for HTTP/2 in each first request. But
    httptools then drops the body, as that would be in the other protocol.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(rb"\1x-upgrade", head) + end + rest


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
    server = Server(configuration(guard, limits), guard, drain=limits.drain, ready=ready)
    stopped = threading.Event()
    watcher = threading.Thread(target=_watch, args=(models, stopped), name="resnetkit-watch", daemon=True)
    watcher.start()
    with _signals_ignored_after():
        server.run([listener])
    stopped.set()
    watcher.join()
    for model in models:
        model.close()


def configuration(app: Any, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's configuration for an ASGI application with these limits."""
    times = {"header_timeout": limits.header_timeout, "body_timeout": limits.body_timeout}
    return uvicorn.Config(
        app,
        http=type("Protocol", (TimedProtocol,), times),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(limits.timeout + limits.body_timeout) + 1,
    )


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
