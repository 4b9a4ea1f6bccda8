"""Decode a part of a JPEG file: only the rows down to its bottom, and at a smaller scale if that is enough.

A JPEG is one stream of bits, row after row. So a decoder must decode all rows above a part, but no rows below it: if
the height in the header is changed to a smaller number, the decoder ignores the rest of the file. A block of 8x8 pixels
can be decoded directly to 4x4, 2x2 or one pixel (libjpeg-turbo's scaled transforms).
"""

from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # there is no wheel for this machine; then Pillow decodes every file
    simplejpeg = None

SCALES = (8, 4, 2, 1)
"""Divisors of a picture's sides. libjpeg-turbo has all multiples of an eighth, but is fast only with these."""

# ITU-T T.81, Table B.1: second bytes of the markers, after 0xFF.
ONE_PASS = (0xC0, 0xC1)  # Huffman-coded frames, from top to bottom
PROGRESSIVE = 0xC2  # Huffman-coded frames, in several passes from top to bottom
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN = 0xDA
APPLICATION_1 = 0xE1  # EXIF or XMP
END = b"\xff\xd9"
ENDING = 64  # END must be in the last bytes of a file, because some programs add padding after it


class JpegHeader(NamedTuple):
    """The header of an 8-bit grey or colour JPEG (Sec. B.2.2)."""

    size: tuple[int, int]
    """Width and height as stored, in pixels."""
    channels: int
    """1 or 3."""
    one_pass: bool
    """Whether rows are stored in their order; otherwise in several passes over the whole picture."""
    unit: int
    """Number of rows that are coded together: 8, or 16 if colours are stored at half of the height."""
    height_at: int
    """Position in the file of the two bytes of the height."""
    has_metadata: bool
    """Whether there is EXIF or XMP. It may state that the picture is stored rotated or mirrored."""


def scale_for(box_sides: tuple[float, float], at_least: int) -> int:
    """Return the largest of SCALES with which both sides of a box keep `at_least` pixels; 1 if there is none."""
    return next((scale for scale in SCALES if min(box_sides) >= at_least * scale), 1)


def read_header(content: bytes) -> JpegHeader | None:
    """Read the header that decoding a part needs, from marker to marker (Sec. B.1.1).

    Returns None if Pillow must decode the file: simplejpeg is not installed, the file is not a JPEG or a rare kind of
    JPEG, or its end is missing (then Pillow raises an error with the reason).
    """
    if simplejpeg is None or not content[-ENDING:].rstrip(b"\0\r\n").endswith(END):
        return None
    at, has_metadata = 2, False
    while at + 10 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if kind == 0xFF:  # a marker may begin with any number of 0xFF bytes
            at += 1
            continue
        if kind in FRAMES:
            break
        if kind == SCAN:
            return None
        has_metadata |= kind == APPLICATION_1
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    else:
        return None
    bits, channels = content[at + 4], content[at + 9]
    height, width = (int.from_bytes(content[i : i + 2], "big") for i in (at + 5, at + 7))
    unit = 8 * max((sampling & 15 for sampling in content[at + 11 : at + 10 + 3 * channels : 3]), default=0)
    sound = (
        bits == 8 and channels in (1, 3) and width and height and unit <= 32 and at + 10 + 3 * channels <= len(content)
    )
    if kind not in (*ONE_PASS, PROGRESSIVE) or not sound or not unit:
        return None
    if channels == 1:
        unit = 8  # with one channel the sampling does not change the order of the blocks (Sec. A.2.2)
    return JpegHeader((width, height), channels, kind in ONE_PASS, unit, at + 5, has_metadata)


def decode_rows(content: bytes, header: JpegHeader, *, bottom: int, scale: int) -> NDArray[np.uint8] | None:
    """Decode the rows of a JPEG at 1/scale, from the first down to `bottom` (in pixels of the full size) or further.

    The pixels equal Pillow's with one exception: colours that are stored at half of the width or height are repeated,
    not smoothed. This is 5 % faster, and changes crops of photographs by 0.3 of 255 levels on average. Next to an edge
    between two colours the change is larger, up to 50 levels in photographs: libjpeg's smoothing mixes a quarter of the
    neighbour's colour into a pixel (7/16 if the height is halved too), and for blue 1.772 times as much (T.871,
    Sec. 7). Brightness is stored in full and does not change. Only training decodes in this way; evaluation and
    prediction decode as Pillow does.

    Returns uint8 (rows, ceil(width / scale), channels), or None if simplejpeg can't decode the file.
    """
    if simplejpeg is None:
        return None
    width, height = header.size
    rows = ceil(bottom / header.unit) * header.unit
    if header.one_pass and rows < height:
        after = header.height_at + 2
        content = b"".join((content[: header.height_at], rows.to_bytes(2, "big"), content[after:]))
        height = rows
    sides = (ceil(height / scale), ceil(width / scale))
    try:
        pixels = simplejpeg.decode_jpeg(
            content,
            "RGB" if header.channels == 3 else "GRAY",
            min_height=sides[0],
            min_width=sides[1],
            min_factor=scale,
            fastupsample=True,
            strict=False,  # pictures with damaged bits are read, as by Pillow
        )
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape[:2] == sides else None
