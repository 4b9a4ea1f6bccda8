"""Find the pictures of files, folders and globs. No torch here."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnetkit.data.folders.archives import is_archive, is_spreadsheet, of_archive
from resnetkit.data.folders.listing import PICTURE_SUFFIXES, OnePath, each_path, find_below, is_picture_file
from resnetkit.data.reading import LISTS


def is_one_file(path: OnePath) -> bool:
    """Whether `path` exists and is not a folder. False for a glob and for a name that no file can have."""
    return os.path.lexists(path) and not _is_folder(Path(path))


def find_pictures(paths: OnePath | Iterable[OnePath]) -> Iterator[tuple[Path, str | None]]:
    """Find the pictures of files, folders and globs; yield each path with None or with the reason it can't be read.

    `paths` is one path or several. The pictures of a folder are those that training finds: see `listing.find_below`. A
    folder that can't be read is yielded with the reason, and so is a file that training would leave out as broken.
    Files without the suffix of a picture are left out; so are run folders, with a warning. A file that is given by name
    or by a glob is yielded whatever its suffix, unless it is an archive or a list. Raises UsageError for a value that
    is not a path.
    """
    for text in each_path(paths):
        try:
            matches = [Path(text)] if _is_there(text) else _matches(Path(text))
        except PermissionError as error:
            yield Path(text), f"can't be read: {error.strerror}"
            continue
        if not matches:
            yield Path(text), "no such file or folder, and nothing matches it"
        for match in matches:
            if _is_folder(match):
                yield from _pictures_below(match)
            else:
                yield match, _no_picture_file(match)


def _no_picture_file(path: Path) -> str | None:
    """Why a file is certainly not a picture, with the fix; None for a file that may be one."""
    if not path.is_file() or not path.stat().st_size or is_picture_file(path):
        return None
    if path.suffix.lower() in LISTS or is_spreadsheet(path):
        return "a list, and no picture; give the folder of its pictures, or its files"
    return of_archive(path) if is_archive(path) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to a place without permission; opening it gives the error
        return False


def _is_there(text: str) -> bool:
    """Whether the path exists, as a file, a folder or a link. Raises PermissionError if its folder can't be read."""
    try:
        os.lstat(text)
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False
    return True


def _matches(pattern: Path) -> list[Path]:
    """Return the paths that match a glob, without hidden files, as in a shell."""
    try:
        found = sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except (ValueError, IndexError, NotImplementedError, OSError):  # no pattern for pathlib: a**, empty, too long
        return []
    return [path for path in found if not path.name.startswith(".")]


def _pictures_below(folder: Path) -> Iterator[tuple[Path, str | None]]:
    empty = True
    for found in find_below(folder):
        if found.kind == "other":
            continue
        if found.kind == "run" and found.path != folder:
            warnings.warn(f"{found.path} is left out: it {found.reason}", stacklevel=2)
            continue
        empty = False
        yield found.path, found.reason or None
    if empty:
        yield folder, f"no pictures in this folder; they end in {', '.join(sorted(PICTURE_SUFFIXES))}"
