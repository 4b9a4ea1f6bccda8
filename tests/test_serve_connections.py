"""Connections of the server, with an application that answers before the body has come, as a full server does."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from resnetkit.serve.listener import listen
from resnetkit.serve.server import TimedProtocol


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        refuse, http=TimedProtocol, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()


def test_a_connection_whose_body_was_refused_is_closed_when_it_stays_idle(address: tuple[str, int]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n"
    with socket.create_connection(address, timeout=8) as connection:
        for _ in range(2):  # it is used again
            connection.sendall(head + b"a" * 5)
            answer = b""
            while not answer.endswith(b"no"):
                answer += connection.recv(1000)
            assert b" 503 " in answer
            connection.sendall(b"a" * 15)
        assert connection.recv(1000) == b""
