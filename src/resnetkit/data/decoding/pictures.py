"""Decode picture files to upright 8-bit RGB or grey pictures. Errors are DataErrors with the name of the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, floor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from resnetkit.data.decoding import depth
from resnetkit.data.decoding.jpeg import JpegHeader, decode_rows, read_header, scale_for
from resnetkit.data.decoding.opening import most_pixels, opened, reduction
from resnetkit.data.decoding.quiet import libtiff_silent, warnings_ignored
from resnetkit.errors import DataError

ColorMode = Literal["RGB", "L"]
PictureSource = str | Path | bytes | Image.Image
"""A picture to decode: a path, the bytes of a file, or a picture that Pillow has opened."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, from the top left corner of a picture; right and bottom are exclusive."""

EXIF_ORIENTATION = 0x0112
# EXIF 2.32, tag Orientation -> the step that turns the stored picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same as three steps: swap rows and columns, mirror left to right, mirror top to bottom.
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


def open_picture(source: PictureSource, *, mode: ColorMode = "RGB", at_least: int | None = None) -> Image.Image:
    """Decode a picture file, its bytes, or a picture that Pillow has opened.

    The result is a new picture in memory: upright (EXIF applied), in `mode`, 8 bits per channel, without metadata.
    Transparent pixels are blended with white. More than 8 bits are scaled to 8: see `depth.load`. Of an animation, the
    first frame is decoded. Colour profiles are not applied. Only a JPEG of more than `opening.LARGE` pixels is made
    smaller: it is decoded at a half, a quarter or an eighth of its sides, so that it fits into memory.

    With `at_least`, the JPEG decoder may halve the picture up to three times, as long as its shorter side keeps that
    many pixels. This is several times faster for large photographs and changes pixels slightly. Only training uses it.

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
    """A picture file of which only a part is decoded. The header is read first.

    Only training uses it. A part of a JPEG is decoded at a half, a quarter or an eighth of its size if that is enough.
    So its pixels differ slightly from those of `open_picture` and a resize. Pictures of other formats are decoded
    completely when the file is opened. Rotation and errors are as in `open_picture`, but errors in the pixels of a JPEG
    are found only when a part is decoded.
    """

    size: tuple[int, int]
    """Width and height of the whole picture, upright, in pixels."""

    def __init__(self, source: PictureSource, *, mode: ColorMode = "RGB") -> None:
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
        """Find the rotation of the picture, and return its size (width, height) as stored."""
        if self._header and not self._header.has_metadata:
            width, height = self._header.size
            if width * height <= most_pixels():
                return width, height
        picture = opened(self._content)
        if not isinstance(picture, JpegImagePlugin.JpegImageFile):
            return self._read_whole(picture)
        with picture:
            self._steps = STEPS[orientation_of(picture)]
            if self._header and self._header.size != picture.size:
                self._header = None  # the headers disagree on the size; let Pillow decode
            return picture.size

    def _read_whole(self, picture: Image.Image) -> tuple[int, int]:
        self._whole = _as_array(_as_mode(_upright(picture), self.mode))
        height, width, _ = self._whole.shape
        return width, height

    def part(self, box: Box, *, at_least: int) -> tuple[NDArray[np.uint8], Box]:
        """Decode the part of the picture in `box`.

        Returns uint8 (height, width, channels), and the box in the coordinates of this array. The array contains all
        pixels that the box touches, because the sides of the box may be between pixels. The scale may be smaller, as
        long as both sides of the box keep `at_least` pixels; a picture that is never decoded in full size (see
        `open_picture`) may keep fewer.

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
        """Do the work of `part` for a JPEG, in the coordinates of the picture as it is stored."""
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
        # A grey JPEG is decoded to one channel, also if the mode is RGB.
        part = np.broadcast_to(part, (*part.shape[:2], len(self.mode)))
        return part, _moved(scaled, (x, y))


def _draft(picture: Image.Image, size: tuple[int, int]) -> None:
    """Let Pillow decode a JPEG at its smallest scale that is not smaller than `size`. No effect on other formats."""
    if isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture.draft(None, size)


def _as_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an 8-bit picture: uint8 (height, width, channels)."""
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _touched(box: Box) -> tuple[int, int, int, int]:
    """Return the smallest box of whole pixels that contains a box."""
    return floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])


def _moved(box: Box, origin: tuple[int, int]) -> Box:
    """Return a box in coordinates relative to `origin`."""
    return box[0] - origin[0], box[1] - origin[1], box[2] - origin[0], box[3] - origin[1]


def _swapped(box: Box) -> Box:
    """Return a box after rows and columns are swapped."""
    return box[1], box[0], box[3], box[2]


def _mirrored(box: Box, sides: tuple[int, int], mirror: bool, flip: bool) -> Box:
    """Return a box after a picture of `sides` is mirrored left to right (`mirror`) and top to bottom (`flip`)."""
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
        with Path(source).open("rb", buffering=0) as file:  # a buffer would only add a copy
            content = file.read()
    if not content:
        raise DataError("the file is empty (0 bytes)")
    return content


@contextmanager
def _named(source: PictureSource) -> Iterator[None]:
    """Within the block, turn every error into a DataError with the name of `source` and the reason."""
    try:
        with warnings_ignored, libtiff_silent:
            yield
    except Exception as error:  # for broken files, Pillow raises SyntaxError, KeyError, struct.error and others
        raise DataError(_reason(error), name=_name(source)) from error


def _name(source: PictureSource) -> str:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture in memory")
    return str(source)


def _reason(error: Exception) -> str:
    """Return the reason why a file can't be read, for people."""
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
            return f"more than {most_pixels():,} pixels; make it smaller, or raise the limit by `max_pixels`"
        case MemoryError():
            return "not enough memory to decode it"
        case _:
            return f"broken or incomplete ({str(error) or type(error).__name__})"


def _upright(picture: Image.Image) -> Image.Image:
    """Decode a picture to 8 bits, then rotate or mirror it upright by its EXIF.

    Decoding comes first, because a PNG may have its EXIF after the pixels, and Pillow rotates a TIFF while decoding.
    """
    decoded = depth.load(picture)
    orientation = orientation_of(picture)
    return decoded if orientation == 1 else decoded.transpose(UPRIGHT[orientation])


def orientation_of(picture: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1, which is upright, if it can't be read."""
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION)
        return orientation if orientation in UPRIGHT else 1
    except Exception:  # a broken EXIF block raises many kinds of exceptions, but the pixels are intact
        return 1


def _as_mode(picture: Image.Image, mode: ColorMode) -> Image.Image:
    """Return a new picture in `mode`, with 8 bits per channel."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    result = picture.convert(mode)  # a copy, even if the mode is right
    result.info.clear()  # otherwise a second call would rotate it again
    return result
