"""Find the pictures that annotation files name, and their upright sizes without decoding them."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from PIL import Image

from resnetkit.data.decoding.opening import FORMATS, most_pixels
from resnetkit.data.decoding.pictures import PictureFile, orientation_of
from resnetkit.data.decoding.quiet import libtiff_silent, warnings_ignored
from resnetkit.data.folders.listing import decoded, find_below
from resnetkit.data.reading import part_of
from resnetkit.errors import DataError

SWAPPED = (5, 6, 7, 8)
"""EXIF orientations of pictures whose width and height are swapped."""
MAY_TURN = re.compile(rb"eXIf|Raw profile type|XML:com\.adobe\.xmp")
"""Chunks of a PNG file that may contain an orientation."""


class Files:
    """The files below a folder: pictures, found by name, and the others."""

    def __init__(self, root: Path) -> None:
        """List the folder. Raises DataError if it can't be read."""
        self.root = root
        self.pictures: list[Path] = []
        self.others: list[Path] = []
        for found in find_below(root):
            if found.kind == "picture":
                self.pictures.append(found.path)
            elif found.kind == "other":
                self.others.append(found.path)
            elif found.kind == "unreadable" and found.path == root:
                raise DataError(f"{root} {found.reason}; check its permissions")
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.pictures:
            self._named[_spelled(path.name)].append(path)
            self._named[f"{_spelled(path.stem)}\0"].append(path)

    def key(self, path: Path) -> str:
        """Return the path of a file relative to the root, with slashes and in composed Unicode."""
        try:
            return _spelled(path.relative_to(self.root).as_posix())
        except ValueError:
            return _spelled(path.as_posix())

    def find(self, name: str, near: Path, *, stem: bool = False) -> Path | None:
        """Return the picture that an annotation means; None if there is none, or if it may be one of several.

        `name` may have folders before it, which decide between pictures of one name, and Windows' separators. With
        `stem`, it has no suffix. Between pictures that are left, the one with the most folders in common with `near`,
        the annotation, is meant. Nothing outside the root is ever found.
        """
        wanted = PurePosixPath(_spelled(name.replace("\\", "/")))
        found = self._named.get(f"{wanted.name}\0" if stem else wanted.name, [])
        if len(found) > 1:
            found = _best(found, [_shared_end(path.parent, wanted.parent) for path in found])
        if len(found) > 1:
            found = _best(found, [_shared_start(path, near) for path in found])
        if len(found) > 1 and (part := self.part(near)):
            found = [path for path in found if self.part(path) == part] or found
        return found[0] if len(found) == 1 else None

    def part(self, path: Path) -> str | None:
        """Return the part that the folders of a file, or its name, stand for; None if they stand for none."""
        within = path.relative_to(self.root).parts if path.is_relative_to(self.root) else path.parts[-1:]
        for folder in within[:-1]:
            if part := part_of(folder):
                return part
        return None


def _spelled(name: str) -> str:
    return normalize("NFC", decoded(name))


def _best(paths: Sequence[Path], scores: Sequence[int]) -> list[Path]:
    return [path for path, score in zip(paths, scores, strict=True) if score == max(scores)]


def _shared_end(folder: Path, wanted: PurePosixPath) -> int:
    """Return the number of last folders that two paths have in common."""
    return _shared(folder.parts[::-1], wanted.parts[::-1])


def _shared_start(path: Path, near: Path) -> int:
    """Return the number of first folders that two files have in common."""
    return _shared(path.parts[:-1], near.parts[:-1])


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    number = 0
    for mine, yours in zip(one, other, strict=False):
        if mine != yours:
            break
        number += 1
    return number


def upright_size(path: Path) -> tuple[tuple[int, int], int]:
    """Return the width and height of an upright picture in pixels, and its EXIF orientation, 1 to 8.

    Only the header is read, unless the picture is rotated and no JPEG. Raises DataError for a file that is no picture.
    """
    try:
        with warnings_ignored, libtiff_silent, Image.open(path) as picture:
            if picture.format not in FORMATS or picture.width * picture.height > most_pixels():
                return PictureFile(path).size, 1  # raises the error
            turns = picture.format != "PNG" or MAY_TURN.search(path.read_bytes()) is not None
            orientation = orientation_of(picture) if turns else 1
            if orientation == 1:
                return picture.size, 1
            if picture.format in ("JPEG", "MPO"):
                width, height = picture.size
                return ((height, width) if orientation in SWAPPED else (width, height)), orientation
    except Exception:  # HEIF, very large and broken pictures: the one reader of pictures opens them or names the fault
        return PictureFile(path).size, 1
    return PictureFile(path).size, orientation
