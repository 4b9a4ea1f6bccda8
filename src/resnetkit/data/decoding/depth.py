"""Scale pictures of more than 8 bits per value to 8 bits, by the same rule for all formats."""

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from resnetkit.data.decoding.opening import opened
from resnetkit.data.decoding.png import SIGNATURE, read_png
from resnetkit.errors import DataError

DEPTHS = (8, 12, 16)
"""Bits per value that are tried if the file does not state them: the first that can store the picture's maximum."""
MAX_SAMPLE_VALUE = 281  # TIFF 6.0, Sec. 8
# Last letter of Pillow's raw mode for the higher of two bytes -> last letter of its raw mode for the lower byte.
LOWER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def load(picture: Image.Image) -> Image.Image:
    """Decode a picture. If it has more than 8 bits per value, return a new picture of 8 bits without metadata.

    Values of 16 bits (also in Pillow's mode I, which stores 16 bits in 32) are scaled and rounded, in colour and grey
    pictures alike. Cameras and microscopes store 12 bits or fewer in 16. So the number of bits is the one that the file
    states (TIFF's BitsPerSample and MaxSampleValue, PNG's sBIT, PPM's maximum), else the smallest of DEPTHS that can
    store the picture's maximum. Floats are values from 0 to 1, or from 0 to 255 if one is above 1. Raises DataError for
    other values.
    """
    _correct_planes(picture)
    deep = picture.mode.startswith(("I", "F")) or any(";16" in mode for mode in _raw_modes(picture))
    if not deep:
        picture.load()
        return picture
    content = _content(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        return Image.fromarray(_eight_bits(values, _stated_bits(picture, content, values)))
    lower = _lower_bytes(picture, content)
    higher = np.asarray(picture)
    if lower is None:
        if higher.max() < 2**4:
            raise DataError(
                "its 12 bits or fewer in 16 are stored in a way that Pillow does not read; save it as a PNG file"
            )
        return picture
    values = higher.astype(np.uint16) << 8 | lower
    return Image.fromarray(_eight_bits(values, _stated_bits(picture, content, values)))


def _raw_modes(picture: Image.Image) -> list[str]:
    """Return the raw modes with which Pillow will unpack the parts of a file that is not decoded yet."""
    if not isinstance(picture, ImageFile.ImageFile):
        return []
    modes = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in picture.tile]
    return [mode for mode in modes if isinstance(mode, str)]


def _correct_planes(picture: Image.Image) -> None:
    """Correct the raw modes of TIFF files with a separate plane of 16 bits per colour, which Pillow reads as 8 bits."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile) or picture._planar_configuration != 2:
        return
    if 16 in picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, ()):
        order = "L" if picture.tag_v2.prefix.startswith(b"II") else "B"
        picture.tile = [
            tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
            if isinstance(tile.args, tuple) and tile.args[0] in ("R", "G", "B", "A")
            else tile
            for tile in picture.tile
        ]


def _content(picture: Image.Image) -> bytes:
    """Return the file's bytes; empty if it can't be read any more, or if this is not its first picture."""
    file = picture.fp if isinstance(picture, ImageFile.ImageFile) else None
    if file is None or picture.tell():
        return b""
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    return content


def _lower_bytes(picture: Image.Image, content: bytes) -> NDArray[np.uint8] | None:
    """Return the lower bytes of a 16-bit colour picture, which Pillow drops; None if they can't be read."""
    if not content:
        return None
    again = opened(content)
    assert isinstance(again, ImageFile.ImageFile)
    _correct_planes(again)
    modes = _raw_modes(again)
    if not all(mode[:-1].endswith(";16") for mode in modes) or not again.tile:
        return None
    if modes == ["LA;16B"]:  # no raw mode unpacks its lower bytes, which are 2 of the 4 bytes of a pixel
        again._mode, again.tile = "RGBA", [again.tile[0]._replace(args="RGBA")]
        grey, alpha = np.moveaxis(np.asarray(again)[:, :, 1::2], -1, 0)
        return np.stack([grey] * (len(picture.getbands()) - 1) + [alpha], -1)
    again.tile = [
        tile._replace(args=(lower, *tile.args[1:]) if isinstance(tile.args, tuple) else lower)
        for tile, lower in zip(again.tile, [mode[:-1] + LOWER_BYTE[mode[-1]] for mode in modes], strict=True)
    ]
    if isinstance(again, TiffImagePlugin.TiffImageFile) and again.use_load_libtiff and again._planar_configuration == 2:
        return None  # with libtiff, Pillow chooses the raw mode of a plane itself
    try:
        return np.asarray(again)
    except ValueError:  # this version of Pillow lacks the raw mode
        return None


def _stated_bits(picture: Image.Image, content: bytes, values: NDArray[np.generic]) -> int | None:
    """Return the bits per value that the file states: 2**bits - 1 is white. None if it states no number."""
    if content.startswith(SIGNATURE):
        bits = read_png(content).significant_bits
        if bits is None or bits >= 16:
            return bits and 16
        # PNG (3rd edition), Sec. 13.12: fewer bits must be scaled to 16. Not every program does this.
        numbers = values.astype(np.int64)
        scaled = numbers.max() >= 2**bits or (numbers.any() and not (numbers % 2 ** (16 - bits)).any())
        return 16 if scaled else bits
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = max(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
        largest = picture.tag_v2.get(MAX_SAMPLE_VALUE, 0)
        largest = max(largest) if isinstance(largest, tuple) else largest
        # Some programs write the picture's largest value there, which is not 2**bits - 1.
        return bits if bits < 16 else (largest.bit_length() if largest & (largest + 1) == 0 and largest > 255 else None)
    return 16 if picture.format in ("PPM", "JPEG2000") else None  # Pillow has scaled these to 16 bits


def _eight_bits(values: NDArray[np.generic], bits: int | None) -> NDArray[np.uint8]:
    """Scale 16-bit values (in Pillow's mode I, in 32 bits) or floats to 0 to 255; return uint8 of the same shape."""
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.floating):
        limit = 1 if high <= 1 else 255
    else:
        limit = 2 ** (bits or next((bits for bits in DEPTHS if high < 2**bits), DEPTHS[-1])) - 1
    if not 0 <= low <= high <= limit:  # also not-a-number
        raise DataError(
            f"grey values go from {low:g} to {high:g}, which is no standard range; convert it to 8 or 16 bits"
        )
    return np.rint(values.astype(np.float64) * (255 / limit)).astype(np.uint8)
