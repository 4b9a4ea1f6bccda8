"""Downloads from a server on this machine that has faults on purpose."""

import errno
import hashlib
import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from resnetkit.data.published.download import UnreachableError, cannot_write, fetch, npm_pack, read_archive
from resnetkit.errors import DataError
from resnetkit.files import cache_folder

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Server(ThreadingHTTPServer):
    """Sends CONTENT at every address; the address names the fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        """The Range of every request, "" without one."""
        self.released = threading.Event()

    def url(self, fault: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{fault}/file.bin"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        fault = self.path.split("/")[1]
        asked = self.headers.get("Range", "")
        server.asked.append(asked)
        if fault == "missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "no-range" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:] if fault != "wrong" else bytes(len(CONTENT))
        self.send_response(206 if start else 200)
        if start:
            shown = start + 1 if fault == "other-range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(f"{len(body):x}\r\n".encode() + body[:1000])
            self.close_connection = True
            return
        length = {"too-long": len(body) + 1000, "too-short": len(body) // 2}.get(fault, len(body))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "breaks" and len(server.asked) <= 2:
            body = body[: len(body) // 2]
        if fault in ("always-breaks", "no-range") and len(server.asked) < 99:
            body = body[:HALF]
        if fault == "stalls" and len(server.asked) == 1:
            self.wfile.write(body[:HALF])
            self.wfile.flush()
            server.released.wait(20)
        else:
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def left_over(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} - {f"{path.name}.lock"}


def test_fetches_once(server: Server, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert fetch(server.url("good"), path, md5=MD5, sha256=SHA256) == path
    assert path.read_bytes() == CONTENT
    assert server.asked == [""]
    assert left_over(path) == {"file.bin"}
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "file.bin: fetching 1.0 MB\n"


def test_the_first_digits_of_a_hash_are_enough(server: Server, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server.url("good"), path, sha256=SHA256[:8], progress=False)
    path.write_bytes(CONTENT[:-1])
    fetch(server.url("good"), path, sha256=SHA256[:8], progress=False)
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().err == f"{path} is not the expected file; fetching it again\n"
    with pytest.raises(DataError, match=f"sha256 {SHA256}, not {SHA256[1:9]}"):
        fetch(server.url("good"), path, sha256=SHA256[1:9])


def test_without_a_hash_takes_what_is_there(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(b"of something else")
    fetch(server.url("good"), path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [""]


def test_broken_file_is_fetched_again(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    assert fetch(server.url("good"), path, md5=MD5).read_bytes() == CONTENT


def test_continues_a_part(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT[:1234])
    fetch(server.url("good"), path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=1234-"]


@pytest.mark.parametrize("part", [b"x" * 1234, CONTENT + b"x"], ids=["of another file", "too long"])
def test_starts_again_after_a_useless_part(server: Server, path: Path, part: bytes) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(part)
    fetch(server.url("good"), path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(part)}-", ""]


def test_starts_again_when_another_range_comes(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT[:1000])
    fetch(server.url("other-range"), path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", ""]


def test_goes_on_after_breaks(server: Server, path: Path) -> None:
    fetch(server.url("breaks"), path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]


def test_goes_on_after_a_stall(server: Server, path: Path) -> None:
    fetch(server.url("stalls"), path, md5=MD5, timeout_seconds=0.3)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", f"bytes={HALF}-"]


def test_keeps_what_came_when_it_always_breaks(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(
        DataError, match=rf"broke off 5 times .512,000 of 1,024,000 bytes came.; {HALF:,} bytes are kept"
    ):
        fetch(server.url("no-range"), path, md5=MD5)
    assert left_over(path) == {"file.bin.part"}
    assert len(server.asked) == 5


def test_broken_chunks(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(DataError, match="broke off 5 times"):
        fetch(server.url("chunked"), path, md5=MD5)
    assert not path.exists()


def test_length_that_promises_too_much(server: Server, path: Path) -> None:
    fetch(server.url("too-long"), path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [""]


@pytest.mark.parametrize("fault", ["wrong", "too-short"])
def test_wrong_bytes_are_thrown_away(server: Server, path: Path, fault: str) -> None:
    with pytest.raises(
        DataError, match=rf"{fault}/file.bin sent other bytes than expected .md5 [0-9a-f]{{32}}, not {MD5}"
    ):
        fetch(server.url(fault), path, md5=MD5)
    assert left_over(path) == set()


def test_status_is_named(server: Server, path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"missing/file.bin: the server answered 404 Not Found; .* put it at {path}"
    ) as error:
        fetch(server.url("missing"), path, md5=MD5)
    assert not isinstance(error.value, UnreachableError)
    assert left_over(path) == set()


def test_nobody_answers(server: Server, path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file.bin"
        with pytest.raises(UnreachableError, match=rf"no answer .*refused.*put it at {path}"):
            fetch(url, path, md5=MD5)


def test_silent_host(server: Server, path: Path) -> None:
    with socket.socket() as silent:  # accepts, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        with pytest.raises(UnreachableError, match=r"no answer .*timed out"):
            fetch(url, path, md5=MD5, timeout_seconds=0.2)


def test_offline_says_what_to_put_where(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")
    with pytest.raises(
        DataError, match=rf"RESNETKIT_OFFLINE is set: download {server.url('good')} .* put it at {path}"
    ):
        fetch(server.url("good"), path, md5=MD5)
    assert server.asked == []
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=rf"{path} is not the expected file .*; download {server.url('good')}"):
        fetch(server.url("good"), path, md5=MD5)
    path.write_bytes(CONTENT)
    assert fetch(server.url("good"), path, md5=MD5) == path


def test_full_disk(server: Server, path: Path) -> None:
    path.parent.mkdir()
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path.with_name("file.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"can't write .*No space left on device. Free some space"):
        fetch(server.url("good"), path, md5=MD5)
    assert not path.exists()


def test_two_processes_fetch_once(server: Server, path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from resnetkit.data.published.download import fetch; "
        "fetch(sys.argv[1], Path(sys.argv[2]), md5=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, server.url("stalls"), str(path), MD5]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while not server.asked and running[0].poll() is None:
        time.sleep(0.01)
    # The first holds the lock and its download stands still: whoever else comes waits.
    said = ""
    for process in running:
        time.sleep(0.3)
        if process.poll() is not None:
            said = "a process did not wait"
    server.released.set()
    errors = [process.communicate(timeout=30)[1] for process in running]
    assert said == ""
    assert [process.returncode for process in running] == [0, 0], errors
    assert path.read_bytes() == CONTENT
    assert len([range_ for range_ in server.asked if not range_]) == 1


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RESNETKIT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "resnetkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "resnetkit"


def test_cache_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"can't write .*set RESNETKIT_CACHE to another folder"):
        fetch(server.url("good"), tmp_path / "file" / "file.bin")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_may_not_be_written_is_no_want_of_space(number: int, own_cache: Path) -> None:
    error = cannot_write(own_cache / "a" / "b", OSError(number, os.strerror(number)))
    assert str(error) == (
        f"can't write {own_cache}/a/b: {os.strerror(number)}. The cache folder {own_cache} can't be written; "
        "set RESNETKIT_CACHE to another folder"
    )


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_read_archive(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", {"top/one": b"1", "top/deep/two": b"22", "three": b"333"})
    assert read_archive(path, ["one", "two"]) == {"one": b"1", "two": b"22"}
    with pytest.raises(DataError, match="lacks five, four; remove it"):
        read_archive(path, ["one", "four", "five"])


def test_read_archive_that_is_cut_off(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", {"one": os.urandom(100_000)})
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"a.tar.gz can't be unpacked .* get it again"):
        read_archive(path, ["one"])
    path.write_bytes(b"<html>sign in</html>")
    with pytest.raises(DataError, match=r"a.tar.gz can't be unpacked"):
        read_archive(path, ["one"])


def fake_npm(folder: Path, script: str) -> None:
    """A program with the name npm on the search path."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(stat.S_IRWXU)


def test_npm_pack(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", 'echo "$@" > "$ARGUMENTS"; printf content > thing-1.0.tgz')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("ARGUMENTS", str(tmp_path / "arguments"))
    assert npm_pack("thing@1.0", path).read_bytes() == b"content"
    assert (tmp_path / "arguments").read_text().startswith("pack thing@1.0 --ignore-scripts")
    assert left_over(path) == {"file.bin"}


def test_npm_pack_that_fails(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "printf half > thing.tgz; echo 'npm error code E404' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.raises(DataError, match=r"`npm pack thing` failed .npm error code E404."):
        npm_pack("thing", path)
    assert left_over(path) == set()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(DataError, match="npm is not installed"):
        npm_pack("thing", path)
