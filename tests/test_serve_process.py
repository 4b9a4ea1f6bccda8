"""`resnetkit serve` as a process: ready, SIGTERM, a replaced file, clients that misbehave."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from resnetkit.cli import main
from resnetkit.infer.predictor import Predictor
from serving import jpeg, process, write_model

pytestmark = pytest.mark.slow
IMAGE = {"content-type": "image/jpeg"}


@pytest.fixture
def cache(tmp_path: Path, kernel_folder: Path) -> Path:
    folder = tmp_path / "serving"
    folder.mkdir()
    (folder / "kernels").symlink_to(kernel_folder)
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.safetensors")


def place(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def post(url: str, content: bytes, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/predict", content=content, headers=IMAGE, timeout=60, **options)


def memory(pid: int) -> float:
    """Resident MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow this process to have as many connections open as the system lets it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"the system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_tuned_backend_is_served_without_torch(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNETKIT_CACHE", str(cache))
    expected = Predictor(path, backend="openvino", goal="throughput")(jpeg(), top=3)  # makes the graph, once
    with process(f"m={path}", "--backend", "openvino", cache=cache) as (running, url):
        answer = post(url, jpeg()).json()
        explained = httpx.post(f"{url}/predict?explain=frog", content=jpeg(), headers=IMAGE, timeout=60).json()
        loaded = Path(f"/proc/{running.pid}/maps").read_text()
    assert explained["results"][0]["explanation"]["label"] == "frog"
    found = answer["results"][0]["predictions"]
    assert [one["index"] for one in found] == [p.index for p in expected]
    assert [one["probability"] for one in found] == pytest.approx([p.probability for p in expected], abs=1e-6)
    assert "openvino" in loaded
    assert "libtorch" not in loaded


def test_sigterm_under_load_answers_all_that_was_accepted(path: Path, cache: Path) -> None:
    stop = threading.Event()
    statuses: list[int] = []
    lost: list[BaseException] = []

    def load(url: str) -> None:
        with httpx.Client() as session:
            while not stop.is_set():
                try:
                    answer = session.post(f"{url}/predict", content=jpeg(), headers=IMAGE, timeout=60)
                    statuses.append(answer.status_code)
                except httpx.ConnectError:  # it listens no more
                    return
                except httpx.HTTPError as error:
                    lost.append(error)
                    return

    with (
        process(f"m={path}", "--backend", "torch", "--queue", "64", cache=cache) as (running, url),
        ThreadPoolExecutor(8) as pool,
    ):
        for _ in range(8):
            pool.submit(load, url)
        while len(statuses) < 40:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        code = running.wait(60)
        stop.set()
    assert code == 0
    assert lost == []
    assert set(statuses) == {200}


def test_an_interrupt_ends_it_too(path: Path, cache: Path) -> None:
    with process(f"m={path}", "--backend", "torch", cache=cache) as (running, url):
        assert post(url, jpeg()).status_code == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        assert "Traceback" not in (cache / "log.txt").read_text()


def test_a_file_is_replaced_and_no_request_fails(path: Path, cache: Path, tmp_path: Path) -> None:
    answers: list[tuple[int, float]] = []
    with process(f"m={path}", "--backend", "torch", "--log-json", cache=cache) as (_, url):

        def ask() -> float:
            answer = post(url, jpeg())
            answers.append((answer.status_code, answer.json()["results"][0]["predictions"][0]["probability"]))
            return answers[-1][1]

        before = ask()
        shutil.move(write_model(tmp_path / "next.safetensors", seed=1), path)
        end = time.monotonic() + 60
        while ask() == before:
            assert time.monotonic() < end
    assert {status for status, _ in answers} == {200}
    log = [json.loads(line) for line in (cache / "log.txt").read_text().splitlines() if line.startswith("{")]
    assert any("replaced" in line.get("message", "") for line in log)
    requests = [line for line in log if line.get("path") == "/predict"]
    assert len(requests) == len(answers)
    assert all(re.fullmatch("[0-9a-f]{16}", line["request_id"]) and line["status"] == 200 for line in requests)


def test_clients_that_misbehave_hold_nobody_up(path: Path, cache: Path, many_files: None) -> None:
    """Idle, slow, half-closed and broken connections: others are served, nothing crashes, memory does not grow."""
    limits = ("--header-timeout", "2", "--body-timeout", "2", "--max-body", "200000")
    with process(f"m={path}", "--backend", "torch", *limits, cache=cache) as (running, url):
        assert post(url, jpeg()).status_code == 200
        idle = [socket.create_connection(place(url)) for _ in range(1000)]
        slow = [socket.create_connection(place(url)) for _ in range(20)]
        for connection in slow[:10]:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for connection in slow[10:]:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx"
            )
        before = memory(running.pid)
        for _ in range(10):
            assert post(url, jpeg()).status_code == 200
        for hostile in (
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 300_000,
            b"GET /" + b"a" * 300_000,
            b"\r\n" * 20_000,
            b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-T: " + b"a" * 600_000,
            b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 600_000,
            b"\x16\x03\x01\x02\x00" + b"\x00" * 200,
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n",
        ):
            answer = sent(url, hostile)
            assert b" 4" in answer[:12] or (answer == b"closed" and len(hostile) > 60_000)  # closed while it is sent
        half = socket.create_connection(place(url))
        half.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        half.shutdown(socket.SHUT_WR)
        assert half.recv(100) == b""
        big = httpx.post(f"{url}/predict", content=b"x" * 1_000_000, headers=IMAGE, timeout=60)
        assert (big.status_code, big.json()["error"]) == (413, "the body has more than 200,000 bytes")
        for connection in slow[10:]:
            assert b" 408 " in connection.recv(100)
        for connection in [*idle, *slow[:10]]:
            connection.settimeout(20)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""  # closed by the server
        for connection in [*idle, *slow, half]:
            connection.close()
        assert post(url, jpeg()).status_code == 200
        assert memory(running.pid) < 1.2 * before + 20
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert "Traceback" not in (cache / "log.txt").read_text()


def test_hostile_bytes_leave_nothing_behind(path: Path, cache: Path) -> None:
    """The memory after the tenth round of broken requests is that after the second."""
    attacks = [
        b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 500_000,
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 60_000,
        b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-T: b\r\n" * 60_000,
        b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 400000\r\n\r\n" + bytes(300_000),
        b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 400000\r\n\r\n" + bytes(400_000),
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"[" * 300_000,
    ]
    with process(f"m={path}", "--backend", "torch", "--body-timeout", "1", cache=cache) as (running, url):
        memories: list[float] = []
        for _ in range(10):
            with ThreadPoolExecutor(len(attacks)) as pool:
                list(pool.map(lambda attack: sent(url, attack), attacks * 2))
            assert post(url, jpeg()).status_code == 200
            memories.append(memory(running.pid))
    assert memories[-1] < memories[1] + 8


def test_requests_share_a_connection_in_any_pieces(path: Path, cache: Path) -> None:
    """Pipelined, byte by byte, with a request to change the protocol as Java's client sends it: each is answered."""
    body = jpeg()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    plain = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    asked = head + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\nX-Trailer: 1\r\n\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    with (
        process(f"m={path}", "--backend", "torch", cache=cache) as (_, url),
        socket.create_connection(place(url), timeout=60) as connection,
    ):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")

        def answer() -> dict[str, Any]:
            assert b" 200 " in answers.readline()
            fields = {}
            while (line := answers.readline()) != b"\r\n":
                name, _, value = line.decode().lower().partition(":")
                fields[name] = value.strip()
            return json.loads(answers.read(int(fields["content-length"])))

        connection.sendall(plain * 3)
        first = answer()
        assert [answer(), answer()] == [first] * 2
        for place_ in range(0, len(plain), 97):
            connection.sendall(plain[place_ : place_ + 97])
        assert answer() == first
        for content in (asked, plain, chunked, asked, plain):
            connection.sendall(content)
            assert answer() == first


def sent(url: str, content: bytes) -> bytes:
    """What the server answers to these bytes."""
    with socket.create_connection(place(url), timeout=30) as connection:
        try:
            connection.sendall(content)
            return connection.recv(1000)
        except ConnectionError:
            return b"closed"


HOSTILE = {
    "empty": b"",
    "a script": b"#!/bin/sh\necho",
    "cut": jpeg()[:400],
    "a jpeg's head": jpeg()[:3],
    "png called jpeg": jpeg(kind="PNG"),
    "noise after the head": jpeg()[:200] + os.urandom(2000),
    "zeros": bytes(100_000),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "a bomb": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + (60_000).to_bytes(4, "big") * 2
    + b"\x08\x02\x00\x00\x00"
    + bytes(40),
}


def test_hostile_pictures_are_errors_and_others_are_answered(path: Path, cache: Path) -> None:
    async def run(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as session:
            calls = []
            for content in HOSTILE.values():
                calls.append(session.post(f"{url}/predict", content=content, headers=IMAGE))
                calls.append(session.post(f"{url}/predict", content=jpeg(), headers=IMAGE))
            return await asyncio.gather(*calls)

    with process(f"m={path}", "--backend", "torch", cache=cache) as (_, url):
        answers = asyncio.run(run(url))
        expected = post(url, jpeg()).json()["results"][0]["predictions"][0]["probability"]
    for name, bad in zip(HOSTILE, answers[::2], strict=True):
        assert bad.status_code == (200 if name == "png called jpeg" else 422), name
        assert "passwd" not in bad.text
    for good in answers[1::2]:
        assert good.json()["results"][0]["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNETKIT_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors"], "none.safetensors does not exist"),
        (["resnet20:cifar10", "a=resnet20:cifar10", "a=resnet32"], "two models are called a"),
        (["resnet20:cifar10", "--port", "99999"], "--port is 99999; it must be from 0 to 65535"),
        (["resnet20:cifar10", "--queue", "0"], "--queue is 0; it must be at least 1"),
        (["resnet20:cifar10", "--host", "256.1.1.1"], "--host 256.1.1.1"),
        (["resnet20:cifar10", "--api-key-file", "none"], "the file of the key, none, can't be read"),
    ],
)
def test_wrong_use_is_said_before_anything_is_served(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], quiet_environment: None
) -> None:
    assert main(["serve", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "resnet20:cifar10", "--port", str(port)]) == 2
    assert f"--port {port} can't be listened on: Address already in use" in capsys.readouterr().err
