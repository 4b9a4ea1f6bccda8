"""Connections of the server, with an application that answers before the body has come, as a full server does."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from resnetkit.serve.limits import Limits
from resnetkit.serve.listener import listen
from resnetkit.serve.server import KEEP_ALIVE_SECONDS, configuration


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    async def refuse(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    listener = listen("127.0.0.1", 0)
    config = configuration(refuse, Limits(header_timeout=0.4, body_timeout=1.6))
    assert config.timeout_keep_alive == KEEP_ALIVE_SECONDS > 60  # as long as proxies keep theirs, and longer
    config.timeout_keep_alive = 1
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
            assert b" 503 " in answer_on(connection)
            connection.sendall(b"a" * 15)
        assert connection.recv(1000) == b""


def test_the_rest_of_a_refused_body_has_the_time_of_a_body(address: tuple[str, int]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(address, timeout=8) as connection:
        for _ in range(2):
            connection.sendall(head)
            assert b" 503 " in answer_on(connection)
            for _ in range(9):  # in twice the time of a header
                time.sleep(0.09)
                connection.sendall(b"a")
        connection.sendall(head)
        assert b" 503 " in answer_on(connection)
        with pytest.raises(ConnectionError):  # but no longer: it is closed although it sends
            send_slowly(connection, b"a" * 8)


def answer_on(connection: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"no"):
        answer += connection.recv(1000)
    return answer


def send_slowly(connection: socket.socket, content: bytes) -> None:
    for place in range(len(content)):
        time.sleep(0.3)
        connection.sendall(content[place : place + 1])
