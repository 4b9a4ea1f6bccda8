"""Open a picture file for Pillow: check its format and its number of pixels, and choose the scale of decoding."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, ImageFile, TiffImagePlugin

from resnetkit.data.decoding.heif import is_heif, open_heif
from resnetkit.data.decoding.jpeg import SCALES
from resnetkit.data.decoding.png import SIGNATURE, read_png
from resnetkit.errors import DataError, UsageError

# Formats that are read. Pillow has more, but it starts other programs for some of them (EPS), which is not safe for
# files of unknown origin.
FORMATS = frozenset(
    {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"},
)

MOST_PIXELS = 2**28
"""Most pixels of a picture, by default. Phones make photographs of 200 million pixels."""
PILLOW_LIMIT = 89_478_485
"""Pillow's default MAX_IMAGE_PIXELS. Pillow refuses pictures of more than twice that."""
LARGE = 2 * PILLOW_LIMIT
"""A JPEG with more pixels is decoded at a half, a quarter or an eighth of its sides."""
SMALLER = 2**26
"""Most pixels to which a LARGE picture is decoded, if an eighth of its sides is enough for that."""

_asked: int | None = None


@contextmanager
def accept_pixels(most: int | None) -> Iterator[None]:
    """Within the block, in all threads, accept pictures of up to `most` pixels; None does not change the limit.

    Raises UsageError for less than 1.
    """
    global _asked
    if most is not None and most < 1:
        raise UsageError(f"`max_pixels` is {most}; it must be at least 1")
    before = _asked
    _asked = before if most is None else most
    try:
        yield
    finally:
        _asked = before


def most_pixels() -> float:
    """Return the largest number of pixels that a picture may have.

    It is the limit of `accept_pixels`; without that, twice PIL.Image.MAX_IMAGE_PIXELS if its default was changed, as in
    Pillow; else MOST_PIXELS.
    """
    if _asked is not None:
        return _asked
    if Image.MAX_IMAGE_PIXELS == PILLOW_LIMIT:
        return MOST_PIXELS
    return float("inf") if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def reduction(size: tuple[int, int]) -> int:
    """Return the divisor of the sides of a JPEG of `size` (width, height) in decoding: 1 unless it is LARGE."""
    pixels = size[0] * size[1]
    if pixels <= LARGE:
        return 1
    return next((scale for scale in reversed(SCALES) if pixels <= SMALLER * scale**2), max(SCALES))


def opened(content: bytes) -> Image.Image:
    """Read the header of a picture file, and return Pillow's picture, which is not decoded yet unless it is HEIF.

    Raises DataError for a format that is not read, DecompressionBombError for more than `most_pixels` pixels, and all
    errors that Pillow raises.
    """
    if is_heif(content):
        return open_heif(content, most_pixels=most_pixels())
    if content.startswith(SIGNATURE):
        content = read_png(content).content
    try:
        picture = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError:
        picture = _opened_of_any_size(content)
    if picture.format not in FORMATS:
        picture.close()
        raise DataError(f"{picture.format} files are not read; convert it to PNG or JPEG")
    if picture.width * picture.height > most_pixels():
        picture.close()
        raise Image.DecompressionBombError
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.width * picture.height > LARGE:
        # The memory is allocated here, because Pillow would check its own limit again before it allocates.
        picture.im = Image.core.new(picture.mode, picture._tile_size)
    return picture


def _opened_of_any_size(content: bytes) -> ImageFile.ImageFile:
    """Open a picture like Image.open, with our limit; Pillow's limit can only be changed for the whole process."""
    for name in sorted(FORMATS & Image.OPEN.keys()):
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(content[:16]) is not True:
            continue
        with suppress(SyntaxError):  # another format that begins with the same bytes
            picture = factory(io.BytesIO(content), "")
            if picture.width * picture.height <= most_pixels():
                return picture
    raise Image.DecompressionBombError
