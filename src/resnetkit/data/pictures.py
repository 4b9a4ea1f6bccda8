"""Picture files to pixels: whatever a file holds becomes upright 8-bit RGB or grey, or one DataError that names it."""

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from resnetkit.errors import DataError

ColorMode = Literal["RGB", "L"]

# What is read. Pillow knows more kinds, but hands some (EPS) to other programs, which no stranger's file may start.
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"},
)

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

# Pillow warns above a limit of pixels and refuses above twice that. Refusing is enough. Set once, and not around each
# call: catch_warnings() is not safe with threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Cameras write broken EXIF blocks; the pixels are sound.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


def open_picture(
    source: str | Path | bytes | Image.Image, *, mode: ColorMode = "RGB", at_least: int | None = None
) -> Image.Image:
    """Decode a picture file, its bytes, or a picture that Pillow has opened.

    The result is upright (EXIF applied), 8 bits a channel, in `mode`, decoded, without metadata, and tied to no file.
    Transparency is laid on white. 16 bits are scaled to 8, rounding; floats are taken as 0 to 1, or as 0 to 255 if one
    is over 1. Of an animation it is the first frame. Colour profiles are not applied.

    `at_least` lets the JPEG decoder halve the picture up to three times while its shorter side keeps that many pixels:
    several times faster for large photographs, with slightly other pixels. It is for training only.

    Raises:
        DataError: the file is missing, empty, broken, too large, or not a picture; the message starts with its name.
    """
    try:
        if isinstance(source, Image.Image):
            return _as_mode(_upright(source), mode)
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not content:
            raise DataError("the file is empty (0 bytes)")
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format not in FORMATS:
                raise DataError(f"{picture.format} files are not read; convert it to PNG or JPEG")
            if at_least is not None and isinstance(picture, ImageFile.ImageFile):
                picture.draft(None, (at_least, at_least))
            return _as_mode(_upright(picture), mode)
    except Exception as error:  # a broken file makes Pillow raise nearly anything: SyntaxError, KeyError, struct.error
        raise DataError(f"{_name(source)}: {_reason(error)}") from error


def _name(source: str | Path | bytes | Image.Image) -> str:
    if isinstance(source, bytes):
        return f"picture of {len(source)} bytes"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture in memory")
    return str(source)


def _reason(error: Exception) -> str:
    """What is wrong with a file, for a person."""
    match error:
        case DataError():
            return str(error)
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "this is a folder, not a picture"
        case PermissionError():
            return "no permission to read the file"
        case Image.UnidentifiedImageError():
            return "not a picture of a known kind, or broken at its beginning"
        case Image.DecompressionBombError():
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            return f"more than {limit:,} pixels; make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS higher"
        case MemoryError():
            return "not enough memory to decode it"
        case _:
            return f"broken or incomplete ({str(error) or type(error).__name__})"


def _upright(picture: Image.Image) -> Image.Image:
    """Decode, then turn as EXIF says: PNG may say so behind its pixels, and TIFF turns while it decodes."""
    picture.load()
    try:
        orientation = picture.getexif().get(EXIF_ORIENTATION)
    except Exception:  # a broken EXIF block, again with nearly any exception; the pixels are sound
        return picture
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def _as_mode(picture: Image.Image, mode: ColorMode) -> Image.Image:
    """A new picture of 8 bits a channel in `mode`."""
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(_eight_bits(np.asarray(picture)))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    result = picture.convert(mode)  # a copy, even where the mode is right
    result.info.clear()  # else a second call would turn it again
    return result


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values of 16 bits (Pillow's I may hold 32, and keeps 16 in them) or floats, to 0 to 255."""
    low, high = float(values.min()), float(values.max())
    limit = 65535 if np.issubdtype(values.dtype, np.integer) else 1 if high <= 1 else 255
    if not 0 <= low <= high <= limit:  # also not-a-number
        raise DataError(f"grey values go from {low:g} to {high:g}, a range of no standard; convert it to 8 or 16 bits")
    return np.rint(values.astype(np.float64) * (255 / limit)).astype(np.uint8)
