"""A client for the serving benchmark: sends prepared requests over kept connections and prints what came back.

It is a process of its own, and it parses no more of HTTP than it needs, so that it takes little of the processor that
it shares with the server. `closed` keeps a number of connections busy: each sends its next request when it has
the answer.
`open` sends at random moments (Poisson arrivals) at a given rate, whatever the server does, so a stall shows in the
latencies of all requests that would have come in it: latency is counted from the moment when a request was due.

    python serving_client.py closed 127.0.0.1:8000 FOLDER --connections 16 --seconds 10
    python serving_client.py open 127.0.0.1:8000 FOLDER --rate 30 --count 1000

FOLDER has a file for each request, header and body. The output is a JSON object: for each answer its status and its
latency in seconds, and the number of requests that had none.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

Found = list[tuple[int, float, float]]
"""Status (0: no answer), seconds until the answer, and when it was due, from the first on."""


class Connection:
    """One connection to a server, opened when it is needed."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request and return the status of its answer. Raises OSError and EOFError."""
        if self._streams is not None and self._streams[0].at_eof():  # the server has closed it meanwhile
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._place, limit=2**20)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"transfer-encoding: chunked" in head:
                while await reader.readuntil(b"\r\n") != b"0\r\n":
                    await reader.readuntil(b"\r\n")
                await reader.readuntil(b"\r\n")
            else:
                await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]))
        except (OSError, EOFError):
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head[9:12])

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed(place: tuple[str, int], requests: Sequence[bytes], *, connections: int, seconds: float) -> Found:
    """Keep `connections` busy for some seconds."""
    found: Found = []
    began = time.monotonic()

    async def one(first: int) -> None:
        connection = Connection(*place)
        turn = first
        while (due := time.monotonic()) - began < seconds:
            found.append(await timed(connection, requests[turn % len(requests)], due, began))
            turn += connections
        connection.close()

    await asyncio.gather(*(one(first) for first in range(connections)))
    return found


async def opened(place: tuple[str, int], requests: Sequence[bytes], *, rate: float, count: int) -> Found:
    """Send `count` requests at a rate, at random moments."""
    chance = random.Random(0)
    idle: list[Connection] = []
    found: Found = []
    began = time.monotonic()

    async def one(request: bytes, due: float) -> None:
        connection = idle.pop() if idle else Connection(*place)
        found.append(await timed(connection, request, due, began))
        idle.append(connection)

    due = began
    async with asyncio.TaskGroup() as group:
        for turn in range(count):
            due += chance.expovariate(rate)
            await asyncio.sleep(due - time.monotonic())
            group.create_task(one(requests[turn % len(requests)], due))
    for connection in idle:
        connection.close()
    return found


async def timed(connection: Connection, request: bytes, due: float, began: float) -> tuple[int, float, float]:
    """Send a request; return its status, its latency, and when it was due."""
    try:
        status = await connection.ask(request)
    except (OSError, EOFError) as error:
        print(f"a request was not answered: {error!r}", file=sys.stderr)
        status = 0
    return status, time.monotonic() - due, due - began


def main() -> None:
    """Send, and print what came back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("loop", choices=["closed", "open"])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    host, port = given.address.split(":")
    requests = [path.read_bytes() for path in sorted(given.folder.iterdir())]
    place = (host, int(port))
    if given.loop == "closed":
        running = closed(place, requests, connections=given.connections, seconds=given.seconds)
    else:
        running = opened(place, requests, rate=given.rate, count=given.count)
    began = time.monotonic()
    found = asyncio.run(running)
    print(json.dumps({"answers": found, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
