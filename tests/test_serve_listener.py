"""The listening socket at the end: connections that have begun are kept, others can't begin."""

import socket
import sys

import pytest

from resnetkit.serve.listener import listen, refuse_new


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can refuse new connections and keep those that wait")
def test_connections_that_wait_are_kept_and_new_ones_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        waiting = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        refuse_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.3)
        for client in waiting:
            accepted, _ = listener.accept()
            with client, accepted:
                client.sendall(b"question")
                assert accepted.recv(8) == b"question"
                accepted.sendall(b"answer")
                assert client.recv(8) == b"answer"
