"""What stands in front of the routes: limits on bodies, the key, request ids, security headers, the log of requests."""

import asyncio
import hmac
import itertools
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from hashlib import sha256
from typing import Any, TypeAlias

from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
"""Paths that need no key: the page, which asks for it, and what an orchestrator calls."""
OPEN_FOLDER = "/static/"
"""The files of the page, which need no key either."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
OTHER = "other"
"""The route, in the metrics, of requests for what there is not."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read and dropped, so that the client reads the answer before the close."""
log = logging.getLogger("resnetkit.serve")


class RefusedError(Exception):
    """A request that is answered before it reaches a route."""

    def __init__(
        self, status: int, message: str, *, reason: str, headers: dict[str, str] | None = None, closes: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.closes = closes


class Guard:
    """An ASGI application around another. It reads the whole body before the other begins, and within the limits.

    If the client goes away, the other application is cancelled.
    """

    def __init__(self, app: Application, *, limits: Limits, metrics: Metrics, api_key: str | None = None) -> None:
        """With `api_key`, every path but those in OPEN needs it, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        self.draining = False
        """If it is set, each answer closes its connection, and readiness is over."""
        self.seconds_until_room: Callable[[], int | None] = lambda: None
        """Says when there should be room in the queues again if they are full. Then what a client posts is refused
        before its body is read, which costs little; the connection stays open, and the body is dropped as it comes."""
        self.route_of: Callable[[Scope], str] = lambda scope: OTHER
        """Names the route of a request that was refused before it reached one."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._key = None if api_key is None else sha256(api_key.encode()).digest()
        self._bodies = 0  # bytes in memory
        self._first_id = secrets.randbits(64)
        self._ids = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else self._new_id()
        answer = _Answer(send, request_id)
        scope["state"] = dict(scope.get("state") or {}) | {"request_id": request_id}
        held = 0
        try:
            self._check_key(scope["path"], headers)
            self._check_room(scope["method"])
            body, held = await self._body(headers, receive)
            seconds = time.monotonic() - began
            if body:
                self._metrics.stage_seconds.labels("", "read").observe(seconds)
            answer.closes = self.draining
            await self._run(scope, body, receive, answer)
        except RefusedError as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            answer.closes = refusal.closes or self.draining
            await answer.refuse(refusal.status, str(refusal), refusal.headers)
        except _GoneError:
            answer.status = 499  # nginx's number for a client that closed its connection
        except Exception:
            log.exception("request %s failed", request_id)
            if not answer.status:
                answer.closes = True
                await answer.refuse(
                    500, "internal error; the log of the server has the reason under the request id", {}
                )
        finally:
            self._bodies -= held
            self._note(scope, answer, time.monotonic() - began)

    def _new_id(self) -> str:
        # An odd factor makes each id another one. Asking the system for each would give up the interpreter each time.
        return f"{(self._first_id + 0x9E3779B97F4A7C15 * next(self._ids)) % 2**64:016x}"

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        if self._key is None or path in OPEN or path.startswith(OPEN_FOLDER):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(sha256(key.encode("latin-1")).digest(), self._key):
            raise RefusedError(401, "the key is missing or wrong", reason="key", headers={"www-authenticate": "Bearer"})

    def _check_room(self, method: str) -> None:
        # While it drains, the connection closes after the answer; a body must be read first, or its answer is lost.
        if method == "POST" and not self.draining and (seconds := self.seconds_until_room()) is not None:
            raise RefusedError(
                503,
                "too many requests wait; try again later",
                reason="queue",
                headers={"retry-after": str(seconds)},
                closes=False,
            )

    async def _body(self, headers: dict[str, str], receive: Receive) -> tuple[bytes, int]:
        """Return the body, and the number of bytes that it adds to `_bodies`, which the caller takes off again."""
        most = self._limits.max_body
        length = headers.get("content-length", "")
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                if length.isdecimal() and int(length) > most:
                    await _drop(receive, most)
                    raise self._too_large()
                return await self._chunks(receive)
        except TimeoutError:
            raise RefusedError(408, "the body did not arrive in time", reason="body") from None

    async def _chunks(self, receive: Receive) -> tuple[bytes, int]:
        chunks: list[bytes] = []
        held = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                if chunk := message.get("body", b""):
                    chunks.append(chunk)
                    held += len(chunk)
                    self._bodies += len(chunk)
                if held > self._limits.max_body:
                    chunks.clear()
                    await _drop(receive, self._limits.max_body)
                    raise self._too_large()
                if self._bodies > self._limits.max_bodies:
                    chunks.clear()
                    raise RefusedError(
                        503,
                        "too many requests are in memory; try again later",
                        reason="memory",
                        headers={"retry-after": "1"},
                    )
                if not message.get("more_body"):
                    return b"".join(chunks), held
        except BaseException:
            self._bodies -= held
            raise

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than {self._limits.max_body:,} bytes", reason="body")

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: "_Answer") -> None:
        """Run the application, and cancel it if the client goes away."""
        given = asyncio.Event()

        async def receive_body() -> Message:
            if given.is_set():
                await asyncio.Event().wait()  # the application is cancelled when the client goes away
            given.set()
            return {"type": "http.request", "body": body, "more_body": False}

        running = asyncio.ensure_future(self._app(scope, receive_body, answer.send))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            elif not answer.status:
                raise _GoneError
            else:
                await running
        finally:
            for task in (running, gone):
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await running

    def _note(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or self.route_of(scope)
        status = str(answer.status or 500)
        self._metrics.requests.labels(route, status).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        fields = {
            "request_id": answer.request_id,
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": "".join(letter if letter.isprintable() else "?" for letter in scope["path"]),
            "status": int(status),
            "milliseconds": round(1000 * seconds, 2),
        }
        log.info("%(method)s %(path)s %(status)s, %(milliseconds)s ms", fields, extra={"fields": fields})


class _GoneError(Exception):
    """The client closed its connection before it was answered."""


class _Answer:
    """Sends an answer with the headers that every answer has, and notes its status."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.status = 0
        """0 before the answer has begun."""
        self.closes = False
        """Whether the connection is closed after the answer."""
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name.lower() for name, _ in message.get("headers", ())}
            added = HEADERS | {"x-request-id": self.request_id} | ({"connection": "close"} if self.closes else {})
            more = [(name.encode(), value.encode()) for name, value in added.items() if name.encode() not in own]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)

    async def refuse(self, status: int, message: str, headers: dict[str, str]) -> None:
        """Answer with an error."""
        body = json.dumps({"error": message}).encode()
        headers = headers | {"content-type": "application/json", "content-length": str(len(body))}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


async def _drop(receive: Receive, most: int) -> None:
    """Read and drop up to `most` bytes: a client that still sends when the connection is closed loses the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            dropped = 0
            while dropped <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                dropped += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
