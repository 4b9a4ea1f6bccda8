"""Pictures of more than 8 bits a value, brought to 8 by one rule, whatever their kind and whoever opened them."""

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from resnetkit.data.decoding.opening import opened
from resnetkit.data.decoding.png import SIGNATURE, read_png
from resnetkit.errors import DataError

DEPTHS = (8, 12, 16)
"""Bits that a value may have where the file doesn't say: the fewest that hold the highest value of the picture."""
MAX_SAMPLE_VALUE = 281  # TIFF 6.0, Sec. 8
# How Pillow unpacks the higher of two bytes, by the end of a raw mode, and what then unpacks the lower.
LOWER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def load(picture: Image.Image) -> Image.Image:
    """Decode a picture; one of more than 8 bits a value comes with 8, in a new picture without metadata.

    16 bits (and Pillow's mode I, which keeps 16 in 32) are scaled with rounding, in colour as in grey. Cameras and
    microscopes put 12 bits or fewer into 16: the depth is what the file says (TIFF's BitsPerSample and MaxSampleValue,
    PNG's sBIT, PPM's maximum), else the fewest of DEPTHS that hold the highest value. Floats are taken as 0 to 1, or
    as 0 to 255 if one is over 1. Raises DataError for other values.
    """
    _mend_planes(picture)
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
            raise DataError("12 bits or fewer in 16, stored in a way that Pillow does not read; save it as a PNG file")
        return picture
    values = higher.astype(np.uint16) << 8 | lower
    return Image.fromarray(_eight_bits(values, _stated_bits(picture, content, values)))


def _raw_modes(picture: Image.Image) -> list[str]:
    """How the parts of a file that is not decoded yet will be unpacked."""
    if not isinstance(picture, ImageFile.ImageFile):
        return []
    modes = [tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in picture.tile]
    return [mode for mode in modes if isinstance(mode, str)]


def _mend_planes(picture: Image.Image) -> None:
    """Let colours that a TIFF file stores one after the other in 16 bits be read as such; Pillow takes them for 8."""
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
    """The file of a picture, where it can still be read and this is the first picture in it."""
    file = picture.fp if isinstance(picture, ImageFile.ImageFile) else None
    if file is None or picture.tell():
        return b""
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    return content


def _lower_bytes(picture: Image.Image, content: bytes) -> NDArray[np.uint8] | None:
    """The lower bytes of a colour picture of 16 bits a value, of which Pillow keeps the higher; None where it can't."""
    if not content:
        return None
    again = opened(content)
    assert isinstance(again, ImageFile.ImageFile)
    _mend_planes(again)
    modes = _raw_modes(again)
    if not all(mode[:-1].endswith(";16") for mode in modes) or not again.tile:
        return None
    if modes == ["LA;16B"]:  # there is no raw mode for its lower bytes: two of four bytes a pixel
        again._mode, again.tile = "RGBA", [again.tile[0]._replace(args="RGBA")]
        grey, alpha = np.moveaxis(np.asarray(again)[:, :, 1::2], -1, 0)
        return np.stack([grey] * (len(picture.getbands()) - 1) + [alpha], -1)
    again.tile = [
        tile._replace(args=(lower, *tile.args[1:]) if isinstance(tile.args, tuple) else lower)
        for tile, lower in zip(again.tile, [mode[:-1] + LOWER_BYTE[mode[-1]] for mode in modes], strict=True)
    ]
    if isinstance(again, TiffImagePlugin.TiffImageFile) and again.use_load_libtiff and again._planar_configuration == 2:
        return None  # Pillow's libtiff splits planes by a raw mode of its own
    try:
        return np.asarray(again)
    except ValueError:  # a raw mode that this Pillow has not in both orders
        return None


def _stated_bits(picture: Image.Image, content: bytes, values: NDArray[np.generic]) -> int | None:
    """How many bits a value has, as the file says: 2**bits - 1 is white. None where it doesn't say."""
    if content.startswith(SIGNATURE):
        bits = read_png(content).significant_bits
        if bits is None or bits >= 16:
            return bits and 16
        # PNG (3rd edition), Sec. 13.12: fewer bits are to be scaled to all 16. Not everybody does it.
        numbers = values.astype(np.int64)
        scaled = numbers.max() >= 2**bits or (numbers.any() and not (numbers % 2 ** (16 - bits)).any())
        return 16 if scaled else bits
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = max(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
        largest = picture.tag_v2.get(MAX_SAMPLE_VALUE, 0)
        largest = max(largest) if isinstance(largest, tuple) else largest
        # Some write the largest value of the picture there; that is no depth.
        return bits if bits < 16 else (largest.bit_length() if largest & (largest + 1) == 0 and largest > 255 else None)
    return 16 if picture.format in ("PPM", "JPEG2000") else None  # Pillow has scaled them


def _eight_bits(values: NDArray[np.generic], bits: int | None) -> NDArray[np.uint8]:
    """Values of 16 bits (Pillow's I may hold 32, and keeps 16 in them) or floats, to 0 to 255."""
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.floating):
        limit = 1 if high <= 1 else 255
    else:
        limit = 2 ** (bits or next((bits for bits in DEPTHS if high < 2**bits), DEPTHS[-1])) - 1
    if not 0 <= low <= high <= limit:  # also not-a-number
        raise DataError(f"grey values go from {low:g} to {high:g}, a range of no standard; convert it to 8 or 16 bits")
    return np.rint(values.astype(np.float64) * (255 / limit)).astype(np.uint8)
