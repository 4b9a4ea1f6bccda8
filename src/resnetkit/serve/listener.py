"""The socket that a server listens on."""

import ctypes
import socket
import struct
import sys

from resnetkit.errors import UsageError

BACKLOG = 2048
"""Connections that may wait to be accepted."""
NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
"""A packet filter (Linux, socket(7), SO_ATTACH_FILTER): drop a packet if of TCP's flags SYN is set and ACK is not."""
SO_ATTACH_FILTER = 26


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is a free one. Raises UsageError if it can't be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise UsageError(f"`host` {host} and `port` {port} can't be listened on: {error.strerror or error}") from error
    return listener


def refuse_new(listener: socket.socket) -> None:
    """Let no further connection begin; those that have begun can still be accepted, and must be, before the close.

    A listener that is closed resets the connections that wait for it, although their clients have connected and may
    have asked. Only Linux can tell the two apart; elsewhere nothing is done.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in NO_NEW_CONNECTIONS))
    listener.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(NO_NEW_CONNECTIONS), ctypes.addressof(program))
    )


def address_of(listener: socket.socket) -> str:
    """Return the address of a listening socket, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
