"""Parts of JPEG files, decoded no further down and no finer than they are needed.

A JPEG is one stream of bits, row after row, so a decoder has to go through what lies above a part, but not through what
lies below it: to one that is told of a lower picture, the rest is bytes after its end. And a block of 8x8 pixels may be
decoded to 4x4, 2x2 or one pixel straight away (libjpeg-turbo's scaled transforms).
"""

from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: every file takes Pillow's way
    simplejpeg = None

SCALES = (8, 4, 2, 1)
"""What a picture's sides may be divided by. libjpeg-turbo knows all eighths, but is fast at these alone."""

# ITU-T T.81, Table B.1: second bytes of the markers, after 0xFF.
ONE_PASS = (0xC0, 0xC1)  # frames that are Huffman-coded, from top to bottom
PROGRESSIVE = 0xC2  # Huffman-coded too, but over and over again
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN = 0xDA
APPLICATION_1 = 0xE1  # EXIF or XMP
END = b"\xff\xd9"
ENDING = 64  # bytes at the end of a file in which END may be followed by the padding that some programs add


class JpegHeader(NamedTuple):
    """What is known of an 8-bit grey or colour JPEG before it is decoded (Sec. B.2.2)."""

    size: tuple[int, int]
    """Width and height as stored, in pixels."""
    channels: int
    """1 or 3."""
    one_pass: bool
    """Whether rows are decoded in their order, and not in passes over the whole picture."""
    unit: int
    """Rows that are coded together: 8, or 16 where colours are stored at half of the height."""
    height_at: int
    """Where in the file the two bytes of the height are."""
    has_metadata: bool
    """Whether there is EXIF or XMP, which may say that the picture is stored turned."""


def scale_for(box_sides: tuple[float, float], at_least: int) -> int:
    """The largest of SCALES at which both sides of a box keep `at_least` pixels; 1 where it has not so many."""
    return next((scale for scale in SCALES if min(box_sides) >= at_least * scale), 1)


def read_header(content: bytes) -> JpegHeader | None:
    """What is needed to decode a part, found by going from marker to marker (Sec. B.1.1).

    None where Pillow must do it: for want of the library, for what is no JPEG or of a kind that is rare, and for a file
    that does not end as it should, of which Pillow will say what is missing.
    """
    if simplejpeg is None or not content[-ENDING:].rstrip(b"\0\r\n").endswith(END):
        return None
    at, has_metadata = 2, False
    while at + 10 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if kind == 0xFF:  # any number of these may stand before a marker
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
        unit = 8  # alone, a colour's blocks follow one another whatever its sampling says (Sec. A.2.2)
    return JpegHeader((width, height), channels, kind in ONE_PASS, unit, at + 5, has_metadata)


def decode_rows(content: bytes, header: JpegHeader, *, bottom: int, scale: int) -> NDArray[np.uint8] | None:
    """Rows of a JPEG at 1/scale, from the first to `bottom` (of the whole size) or further.

    They are Pillow's pixels, except that colours stored at half of the width or height are repeated rather than
    smoothed: 0.3 levels of 255 on average in crops of photographs, and a twentieth faster. Right beside an edge between
    two colours it is more, 50 levels in photographs: libjpeg's smoothing gives a pixel a quarter of its neighbour's
    colour (7 sixteenths where the height is halved too), and blue takes 1.772 times of it (T.871, Sec. 7). Brightness,
    which is stored whole, is the same. Only training sees it: evaluation and prediction decode as Pillow does.

    Returns uint8 (rows, ceil(width / scale), channels); or None for what the fast decoder does not take.
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
            strict=False,  # as Pillow does it: bits in disorder are no reason to lose the picture
        )
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape[:2] == sides else None
