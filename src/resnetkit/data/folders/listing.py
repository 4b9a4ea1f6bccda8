"""Find the pictures below a folder, in the same way for training, checking, tuning and prediction."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple, TypeAlias
from unicodedata import normalize

from resnetkit.display import type_of, wrong_name
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded

# fmt: off
PICTURE_SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Suffixes of pictures, in lower case. Letter case does not matter in file names."""
FIRST_BYTES = 32
"""Number of bytes that are read to recognise a picture."""
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"\0\0\0\x0cjP  \r\n\x87\n")
TIFF_STARTS = (b"II*\0", b"MM\0*")
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
"""The first bytes of pictures. Raw files of cameras begin like TIFF, and their first picture is a small preview. So a
TIFF is recognised by its bytes only if it has no suffix."""
NOT_DATA = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information", "thumbs.db", "desktop.ini"}
)
"""Files and folders of operating systems, in lower case. They are ignored, as hidden names are."""
RUNS = "runs"
"""Default name of the folder for run folders."""
RECIPE, KEPT = "recipe.yaml", ("state.pt", "metrics.jsonl", "best.safetensors", "last.safetensors")
"""A run folder contains RECIPE and at least one file of KEPT."""
OF_RUNS = "contains a training run, not data"

OnePath: TypeAlias = str | Path
Kind: TypeAlias = Literal["picture", "other", "run", "broken", "unreadable"]
"""other: a file that is not a picture. run: a folder of training runs. broken: a broken link, neither a file nor a
folder, or a name that is not UTF-8. unreadable: a folder that can't be listed."""


class Found(NamedTuple):
    """A file in a folder, or a folder that can't be used."""

    path: Path
    kind: Kind
    reason: str = ""
    """The reason why it is left out; empty for a picture."""


def find_below(folder: Path, *, above: Iterable[Path] = ()) -> Iterator[Found]:
    """Yield the pictures in `folder` and the folders below it, and everything else with the reason to leave it out.

    A picture is recognised by its suffix, in any letter case, or by its first bytes. Hidden names and NOT_DATA are
    ignored. Links are followed, but a link to a folder that contains it, or to one of `above`, is ignored. Names are
    sorted, so the order is the same on every machine. Memory contains only the names in a folder and in the folders
    above it.
    """
    inside: list[Iterator[Path | Found]] = [iter([folder])]
    places = [_place(path) for path in above]
    first = len(places)
    while inside:
        found = next(inside[-1], None)
        if found is None:
            inside.pop()
            del places[first + max(len(inside) - 1, 0) :]
        elif isinstance(found, Found):
            yield found
        elif is_of_runs(found):
            yield Found(found, "run", OF_RUNS)
        elif (place := _place(found)) is None or place not in places:
            try:
                entries = _entries(found)
            except OSError as error:
                yield Found(found, "unreadable", f"can't be read: {error.strerror or error}")
            else:
                inside.append(_each(found, entries))
                places.append(place)


def listed(folder: Path) -> Iterator[Path | Found]:
    """Yield the folders directly in `folder` as paths and everything else as Found, in the order of `find_below`.

    Raises DataError if `folder` can't be read.
    """
    try:
        entries = _entries(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror or error}; check its permissions") from None
    yield from _each(folder, entries)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in `folder`, without those of training runs. Raises DataError if it can't be read."""
    return [path for path in listed(folder) if isinstance(path, Path) and not is_of_runs(path)]


def loose_pictures(folder: Path) -> list[Path]:
    """Return the pictures directly in `folder`. Raises DataError if it can't be read."""
    return [found.path for found in listed(folder) if isinstance(found, Found) and found.kind == "picture"]


def is_of_runs(folder: Path) -> bool:
    """Whether a folder is a run folder, or has the name runs and contains a run folder."""
    try:
        if (folder / RECIPE).is_file() and any((folder / name).is_file() for name in KEPT):
            return True
        return folder.name == RUNS and any((run / RECIPE).is_file() and is_of_runs(run) for run in folder.iterdir())
    except OSError:  # no permission; listing the folder raises the error
        return False


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture, by its suffix."""
    return PurePath(name).suffix.lower() in PICTURE_SUFFIXES


def is_picture_file(path: Path) -> bool:
    """Whether a file is a picture, by its suffix or else by its first bytes."""
    if is_picture_name(path.name):
        return True
    try:
        with path.open("rb", buffering=0) as file:
            start = file.read(FIRST_BYTES)
    except OSError:
        return False
    return (
        start.startswith(STARTS)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4) and len(start) > 14)
        or (start[4:8] == b"ftyp" and start[8:12] in BRANDS)
        or (start.startswith(TIFF_STARTS) and not path.suffix)
    )


def is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8. In other names, Python reads bytes as surrogates, which can't be stored or sent."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def decoded(name: str) -> str:
    """Return a file name in UTF-8. In an ASCII locale, Python reads letters outside ASCII as surrogates.

    A name that is not UTF-8 is returned without a change.
    """
    if is_utf8(name):
        return name
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeError:
        return name


def encoded(name: str) -> str:
    """Return a UTF-8 name, for example from a list, in the form that Python's file functions need in this locale."""
    try:
        name.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    except UnicodeError:
        return os.fsdecode(name.encode("utf-8", "surrogatepass"))
    return name


def each_path(paths: OnePath | Iterable[OnePath]) -> Iterable[str]:
    """Return paths as text, with ~ as the home folder. Iterators are read lazily. Raises UsageError for other types."""
    if isinstance(paths, str | Path):
        return [_text(paths)]
    if isinstance(paths, bytes) or not isinstance(paths, Iterable):
        raise _no_path(paths)
    return [_text(path) for path in paths] if isinstance(paths, Sequence) else map(_text, paths)


def _text(path: object) -> str:
    """Return a path as text, with ~ as the home folder."""
    if not isinstance(path, str | Path):
        raise _no_path(path)
    return str(expanded(path)) if str(path) else ""


def _no_path(value: object) -> UsageError:
    return UsageError(f"{str(value)[:40]!r} ({type_of(value)}) is not a path; give a str or Path, or several of them")


def _place(folder: Path) -> tuple[int, int] | None:
    """Return the device and inode of a folder, which are the same through links; None if it can't be read."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[tuple[str, str]]:
    """Return the names in a folder, sorted, each with its kind: see `_what`."""
    with os.scandir(folder) as entries:
        found = [
            (entry.name, _what(entry))
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in NOT_DATA
        ]
    # Some file systems decompose letters with accents, so names are compared in composed form.
    return sorted(found, key=lambda entry: (normalize("NFC", decoded(entry[0])), entry[0]))


def _what(entry: "os.DirEntry[str]") -> str:
    """Return "folder", "file", or the reason why the entry is neither."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except PermissionError as error:
        return f"can't be read: {error.strerror}"
    except OSError:  # a link to itself
        pass
    return "a broken link" if entry.is_symlink() else "neither a file nor a folder"


def _each(folder: Path, entries: Iterable[tuple[str, str]]) -> Iterator[Path | Found]:
    """Yield the folders in `folder` as paths, and everything else as Found."""
    for name, what in entries:
        path = folder / name
        if what != "folder" and not (is_picture_file(path) if what == "file" else is_picture_name(name)):
            yield Found(path, "other", "not a picture by its suffix")
        elif not is_utf8(decoded(name)):
            yield Found(path, "broken", f"its name {wrong_name('')}")
        elif what == "folder":
            yield path
        else:
            yield Found(path, "picture") if what == "file" else Found(path, "broken", what)
