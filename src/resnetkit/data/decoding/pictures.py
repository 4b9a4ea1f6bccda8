"""Picture files to pixels: whatever a file holds becomes upright 8-bit RGB or grey, or one DataError that names it."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, floor
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from resnetkit.data.decoding import depth
from resnetkit.data.decoding.jpeg import JpegHeader, decode_rows, read_header, scale_for
from resnetkit.data.decoding.opening import libtiff_silent, most_pixels, opened, reduction
from resnetkit.errors import DataError

ColorMode = Literal["RGB", "L"]
Source = str | Path | bytes | Image.Image
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the top left corner of a picture; right and bottom are outside."""

EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag Orientation: what brings the stored rows and columns upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same as three steps: swap rows and columns, mirror left and right, mirror top and bottom.
STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}

# Pillow warns above a limit of pixels and refuses above twice that; refusing is enough. And cameras write broken EXIF
# blocks; the pixels are sound.
UNHEARD: tuple[Any, ...] = (
    ("ignore", None, Image.DecompressionBombWarning, None, 0),
    ("ignore", re.compile("Corrupt EXIF data"), UserWarning, None, 0),
)
"""What of Pillow's warnings is not passed on, as entries of warnings.filters."""


class _Unheard:
    """Within it, UNHEARD holds; the process's own filters are as they were once the last thread has left it.

    catch_warnings() would not do: it puts a list of filters back that another thread may have replaced meanwhile.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads = 0
        self._lists: list[list[Any]] = []
        """Lists of filters that have our entries: who uses catch_warnings() makes new ones."""

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            filters = cast("list[Any]", warnings.filters)
            if not filters or filters[0] is not UNHEARD[0]:
                # Not by filterwarnings(), which would also make Python forget which warnings it has shown already.
                filters[:0] = UNHEARD
                self._lists.append(filters)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads:
                return
            for filters in (*self._lists, cast("list[Any]", warnings.filters)):
                for entry in UNHEARD:
                    while any(other is entry for other in filters):
                        filters.remove(entry)
            self._lists.clear()


_unheard = _Unheard()


def open_picture(source: Source, *, mode: ColorMode = "RGB", at_least: int | None = None) -> Image.Image:
    """Decode a picture file, its bytes, or a picture that Pillow has opened.

    The result is upright (EXIF applied), 8 bits a channel, in `mode`, decoded, without metadata, and tied to no file.
    Transparency is laid on white. What has more bits is scaled to 8: see `depth.load`. Of an animation it is the first
    frame. Colour profiles are not applied. A JPEG of more than `opening.LARGE` pixels, and only such a one, is decoded
    at a half, a quarter or an eighth of its sides, here as everywhere, so that memory holds it.

    `at_least` lets the JPEG decoder halve the picture up to three times while its shorter side keeps that many pixels:
    several times faster for large photographs, with slightly other pixels. It is for training only.

    Raises:
        DataError: the file is missing, empty, broken, too large, or not a picture; the message starts with its name.
    """
    with _named(source):
        if isinstance(source, Image.Image):
            return _as_mode(_upright(source), mode)
        with opened(_content(source)) as picture:
            scale = reduction(picture.size)
            if scale > 1:
                _draft(picture, (picture.width // scale, picture.height // scale))
            elif at_least is not None:
                _draft(picture, (at_least, at_least))
            return _as_mode(_upright(picture), mode)


class PictureFile:
    """A picture of which only a part is wanted: the header is read first, then as much as the part needs.

    That is for training, since parts of photographs come at a half, quarter or eighth of their size where that is
    enough, with slightly other pixels than `open_picture` and a resize would give. Pictures that are not JPEG files are
    decoded at once, and whole. What is read, turned and refused is what `open_picture` reads, turns and refuses, but
    for the pixels of a JPEG, which are decoded when a part is asked for.
    """

    size: tuple[int, int]
    """Width and height of the whole picture, upright, in pixels."""

    def __init__(self, source: Source, *, mode: ColorMode = "RGB") -> None:
        """Read the header. Raises DataError as `open_picture` does."""
        self.source = source
        self.mode: ColorMode = mode
        self._whole: NDArray[np.uint8] | None = None
        self._content = b""
        self._header: JpegHeader | None = None
        self._steps = STEPS[1]
        with _named(source):
            if isinstance(source, Image.Image):
                size = self._read_whole(source)
            else:
                self._content = _content(source)
                self._header = read_header(self._content)
                size = self._read_header()
        self.size = (size[1], size[0]) if self._steps[0] else size
        self._reduction = reduction(size)

    def _read_header(self) -> tuple[int, int]:
        """Learn the size, as stored, and how the picture is stored, from a header."""
        if self._header and not self._header.has_metadata:
            width, height = self._header.size
            if width * height <= most_pixels():
                return width, height
        picture = opened(self._content)
        if not isinstance(picture, JpegImagePlugin.JpegImageFile):
            return self._read_whole(picture)
        with picture:
            self._steps = STEPS[_orientation(picture)]
            if self._header and self._header.size != picture.size:
                self._header = None  # the headers disagree on the size; let Pillow decode
            return picture.size

    def _read_whole(self, picture: Image.Image) -> tuple[int, int]:
        self._whole = _as_array(_as_mode(_upright(picture), self.mode))
        height, width, _ = self._whole.shape
        return width, height

    def part(self, box: Box, *, at_least: int) -> tuple[NDArray[np.uint8], Box]:
        """Decode the part of the picture in `box`.

        Returns uint8 (height, width, channels), and where in it the box is: the part may be at a smaller scale, as
        long as both sides of the box keep `at_least` pixels (or the picture is so large that it is never decoded at
        its size: see `open_picture`), and is of whole pixels even where the box is not.

        Raises DataError as `open_picture` does.
        """
        if self._whole is not None:
            left, top, right, bottom = _touched(box)
            return self._whole[top:bottom, left:right], _moved(box, (left, top))
        swap, mirror, flip = self._steps
        box = _mirrored(box, self.size, mirror, flip)
        with _named(self.source):
            pixels, box = self._stored_part(_swapped(box) if swap else box, at_least)
        if swap:
            pixels, box = pixels.swapaxes(0, 1), _swapped(box)
        box = _mirrored(box, (pixels.shape[1], pixels.shape[0]), mirror, flip)
        return pixels[:: -1 if flip else 1, :: -1 if mirror else 1], box

    def _stored_part(self, box: Box, at_least: int) -> tuple[NDArray[np.uint8], Box]:
        """`part` for a JPEG, as it is stored."""
        left, top, right, bottom = box
        scale = max(scale_for((right - left, bottom - top), at_least), self._reduction)
        scaled = (left / scale, top / scale, right / scale, bottom / scale)
        x, y, x_end, y_end = touched = _touched(scaled)
        pixels = None
        if self._header and self._header.channels in (1, len(self.mode)):
            pixels = decode_rows(self._content, self._header, bottom=ceil(bottom), scale=scale)
        if pixels is not None:
            part = pixels[y:y_end, x:x_end]
        else:
            with opened(self._content) as picture:
                _draft(picture, (picture.width // scale, picture.height // scale))
                part = _as_array(_as_mode(picture.crop(touched), self.mode))
        # Grey comes with one channel.
        part = np.broadcast_to(part, (*part.shape[:2], len(self.mode)))
        return part, _moved(scaled, (x, y))


def _draft(picture: Image.Image, size: tuple[int, int]) -> None:
    """Let a JPEG be decoded at the smallest scale that leaves it as large as `size`; other kinds stay as they are."""
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture.draft(None, size)


def _as_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an 8-bit picture: uint8 (height, width, channels)."""
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _touched(box: Box) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches."""
    return floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])


def _moved(box: Box, origin: tuple[int, int]) -> Box:
    """A box seen from another place than the top left corner."""
    return box[0] - origin[0], box[1] - origin[1], box[2] - origin[0], box[3] - origin[1]


def _swapped(box: Box) -> Box:
    """A box after rows and columns have changed places."""
    return box[1], box[0], box[3], box[2]


def _mirrored(box: Box, sides: tuple[int, int], mirror: bool, flip: bool) -> Box:
    """Where a box comes to be if a picture of `sides` is mirrored left and right, top and bottom."""
    left, top, right, bottom = box
    if mirror:
        left, right = sides[0] - right, sides[0] - left
    if flip:
        top, bottom = sides[1] - bottom, sides[1] - top
    return left, top, right, bottom


def _content(source: str | Path | bytes) -> bytes:
    if isinstance(source, bytes):
        content = source
    else:
        with Path(source).open("rb", buffering=0) as file:  # in one piece: a buffer would only be one more copy
            content = file.read()
    if not content:
        raise DataError("the file is empty (0 bytes)")
    return content


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Turn every error into a DataError that names `source` and says what is wrong with it."""
    try:
        with _unheard, libtiff_silent:
            yield
    except Exception as error:  # a broken file makes Pillow raise nearly anything: SyntaxError, KeyError, struct.error
        raise DataError(_reason(error), name=_name(source)) from error


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture in memory")
    return str(source)


def _reason(error: Exception) -> str:
    """What is wrong with a file, for a person."""
    match error:
        case DataError():
            return error.reason
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "this is a folder, not a picture"
        case PermissionError():
            return "no permission to read the file"
        case Image.UnidentifiedImageError():
            return "not a picture of a known kind, or broken at its beginning"
        case Image.DecompressionBombError():
            return f"more than {most_pixels():,} pixels; make it smaller, or raise the limit by --max-pixels"
        case MemoryError():
            return "not enough memory to decode it"
        case _:
            return f"broken or incomplete ({str(error) or type(error).__name__})"


def _upright(picture: Image.Image) -> Image.Image:
    """Decode to 8 bits, then turn as EXIF says: PNG may say so behind its pixels, and TIFF turns while it decodes."""
    decoded = depth.load(picture)
    orientation = _orientation(picture)
    return decoded if orientation == 1 else decoded.transpose(UPRIGHT[orientation])


def _orientation(picture: Image.Image) -> int:
    """Where EXIF says the top of a picture is, 1 to 8; 1, which is upright, where it says nothing that can be read."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # a broken EXIF block, again with nearly any exception; the pixels are sound
        return 1


def _as_mode(picture: Image.Image, mode: ColorMode) -> Image.Image:
    """A new picture of 8 bits a channel in `mode`."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    result = picture.convert(mode)  # a copy, even where the mode is right
    result.info.clear()  # else a second call would turn it again
    return result
