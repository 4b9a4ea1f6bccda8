"""Read HEIC and HEIF pictures, which phones make, with the package pillow-heif. Pillow itself reads AVIF."""

import io
from importlib.util import find_spec

from PIL import Image

from resnetkit.errors import DataError

# ISO/IEC 23008-12, Annex B: brands of pictures that are coded in HEVC, and of pictures in any coding.
BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif"})
AVIF = frozenset({b"avif", b"avis"})
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
"""Suffixes of HEIF files, in lower case."""


def can_read_heif() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def is_heif(content: bytes) -> bool:
    """Whether a file is HEIF and not AVIF, by the brands in its first box."""
    if content[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, length, 4))}
    return bool(brands & BRANDS) and not brands & AVIF


def open_heif(content: bytes, *, most_pixels: float) -> Image.Image:
    """Decode the main picture, upright, with 8 bits per channel. Its EXIF is dropped, because libheif applies it.

    Raises DataError if pillow-heif is not installed, DecompressionBombError for more than `most_pixels` pixels.
    """
    try:
        # The format is not registered with Pillow, because this would change Pillow for the whole process.
        from pillow_heif import open_heif as read
    except ImportError as error:
        raise DataError("HEIC and HEIF files need pillow-heif; pip install 'resnetkit[heic]'") from error
    file = read(io.BytesIO(content), convert_hdr_to_8bit=True)
    width, height = file.size
    if width * height > most_pixels:
        raise Image.DecompressionBombError
    picture = file.to_pillow()
    picture.info.clear()
    return picture
