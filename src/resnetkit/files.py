"""Writing files whole or not at all, paths that people give, and the cache folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryFile
from typing import BinaryIO

from resnetkit.display import type_of
from resnetkit.errors import UsageError

HEADER_KEY = "resnetkit"
"""The key of a model's header in the metadata of a .safetensors file."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path that a person gave, with ~ as the home folder: a shell does not expand it within quotes.

    Raises UsageError for a value that is not a path, such as None.
    """
    try:
        given = Path(path)
    except TypeError as error:
        raise UsageError(f"{type_of(path)} is not a path or a name; give a str or a Path") from error
    try:
        return given.expanduser()
    except (RuntimeError, ValueError):  # ~name, and there is no user with this name
        return given


NOWHERE = Path(os.devnull) / "resnetkit"
"""A folder that does not exist and can't be created."""


def cache_folder() -> Path:
    """Return the folder for downloads and decoded data: `$RESNETKIT_CACHE`, else resnetkit/ in the XDG cache folder.

    Without a home folder, as for a user without a name in a container, it is NOWHERE: work that needs no cache
    succeeds, and other work fails with the error that the folder can't be written.
    """
    if own := os.environ.get("RESNETKIT_CACHE"):
        return expanded(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return expanded(xdg) / "resnetkit"
    try:
        return Path.home() / ".cache" / "resnetkit"
    except RuntimeError:
        return NOWHERE


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends without an error, and is removed otherwise.

    The bytes are on the disk before the name changes, so a crash, a kill or a full disk leaves `path` unchanged. If
    several threads, processes or containers write it, the file is that of the last one to finish.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # the message must not name the temporary file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all."""
    with whole_file(path) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def can_write(folder: Path) -> bool:
    """Whether files can be written in `folder`. The folder is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
