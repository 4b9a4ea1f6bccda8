"""Pictures that belong together, so that a drawn validation part never has some of them while training has others."""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.quiet import warnings_ignored
from resnetkit.data.reading import BY_EXIF_TIME, BY_PARENT
from resnetkit.errors import UsageError

AlikeNumbers = Callable[[Sequence[Path]], NDArray[np.int64]]
"""Takes n files; returns a number for each, int64 (n,), equal for pictures that are alike."""

SERIES_SECONDS = 60
"""With exif-time: pictures of a camera belong together if each was taken at most so many seconds after another."""
MARK_BYTES = 6
# EXIF 2.32: the tags of the time, its place and the camera.
EXIF_IFD, TAKEN, MAKE, MODEL = 0x8769, 0x9003, 0x010F, 0x0110


def group_by(rule: str, keys: Sequence[str], paths: Sequence[Path], columns: Sequence[str]) -> NDArray[np.int64]:
    """Return a number for each of n pictures, int64 (n,): equal for pictures that the rule puts together.

    `rule` is parent, the folder of a picture; exif-time, pictures taken soon after each other; or a regular expression,
    whose groups (or whose whole match) are found in the `keys`, the relative paths. `columns` are the values of the
    list's column with the name of the rule; empty if it has none. A picture without a value is in a group of its own.

    Raises UsageError if the rule is no regular expression, or fits no picture.
    """
    if any(columns):
        values = list(columns)
    elif rule == BY_PARENT:
        values = [key.rpartition("/")[0] or "." for key in keys]
    elif rule == BY_EXIF_TIME:
        values = _series([_taken(path) for path in paths])
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise UsageError(f"`group_by` {rule!r} is no regular expression: {error}") from error
        found = [pattern.search(key) for key in keys]
        values = ["\0".join(map(str, one.groups() or (one[0],))) if one else "" for one in found]
    if not any(values):
        raise UsageError(
            f"`group_by` {rule!r} fits none of the {len(keys):,} pictures, such as {keys[0] if keys else 'none'}; give "
            f"{BY_PARENT}, {BY_EXIF_TIME}, a column of the list, or a regular expression for the path"
        )
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value or f"\0{place}", len(numbers)) for place, value in enumerate(values)])


def united(*numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a number for each picture, int64 (n,), equal for pictures that any of the `numbers` connects."""
    result = np.arange(len(numbers[0]))
    while True:
        before = result
        for one in numbers:
            _, group = np.unique(one, return_inverse=True)
            lowest = np.full(group.max(initial=-1) + 1, len(result))
            np.minimum.at(lowest, group.reshape(-1), result)
            result = lowest[group.reshape(-1)]
        if np.array_equal(result, before):
            return result


def mark(key: str) -> bytes:
    """Return the short hash by which the record of a division names a picture."""
    return blake2b(key.encode(), digest_size=MARK_BYTES).digest()


def packed(keys: Collection[str]) -> str:
    """Return the marks of pictures as text."""
    return b64encode(b"".join(sorted(map(mark, keys)))).decode()


def unpacked(text: object) -> set[bytes]:
    """Return the marks in a text of `packed`; none for another value."""
    try:
        content = b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return set()
    return {content[at : at + MARK_BYTES] for at in range(0, len(content), MARK_BYTES)}


def _series(taken: Sequence[tuple[str, float] | None]) -> list[str]:
    """Return the name of each picture's series, empty without a time, from cameras and times in seconds."""
    order = sorted((one, place) for place, one in enumerate(taken) if one is not None)
    names = [""] * len(taken)
    number = 0
    for at, ((camera, seconds), place) in enumerate(order):
        before = order[at - 1][0] if at else None
        if before is None or before[0] != camera or seconds - before[1] > SERIES_SECONDS:
            number += 1
        names[place] = f"{camera} {number}"
    return names


def _taken(path: Path) -> tuple[str, float] | None:
    """Return the camera and the time of a photograph, in seconds, from its EXIF; None without a time."""
    try:
        with warnings_ignored, Image.open(path) as picture:
            exif = picture.getexif()
            time = datetime.strptime(str(exif.get_ifd(EXIF_IFD)[TAKEN])[:19], "%Y:%m:%d %H:%M:%S")
            return f"{exif.get(MAKE, '')} {exif.get(MODEL, '')}", time.timestamp()
    except Exception:  # files without EXIF, broken EXIF, and broken files, which raise many kinds of errors
        return None
