"""PNG files with long notes: their pixels are intact and are read."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.decoding.png import read_png
from resnetkit.errors import DataError
from scenes import scene

LONG = bytes(3 * 2**20)


def with_chunk(content, kind, data, *, at_end=False):
    """Return a PNG file with one more chunk, before or after its pixels."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    at = len(content) - 12 if at_end else 33
    return content[:at] + chunk + content[at:]


@pytest.fixture
def png():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    scene(40, 30).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
        (b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
        (b"iTXt", b"Comment\0\1\0en\0Kommentar\0" + zlib.compress(LONG)),
        (b"iTXt", b"Comment\0\0\0en\0Kommentar\0" + b"a" * 2**20),
        (b"tEXt", b"Comment\0" + b"a" * 70 * 2**20),
    ],
)
def test_a_long_note_costs_no_picture(png, kind, data, at_end):
    content = with_chunk(png, kind, data, at_end=at_end)
    opened = open_picture(content)
    assert opened.size == (30, 40)  # still turned as EXIF says
    assert np.array_equal(opened, open_picture(png))
    assert read_png(content).content == png
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == (2**20, 2**26)


def test_many_notes_cost_no_picture(png):
    content = png
    for _ in range(80):
        content = with_chunk(content, b"zTXt", b"Comment\0\0" + zlib.compress(LONG[: 2**20 - 2000]))
    assert np.array_equal(open_picture(content), open_picture(png))


def test_short_notes_and_the_rest_stay(png):
    content = with_chunk(png, b"zTXt", b"Comment\0\0" + zlib.compress(LONG[:1000]))
    assert read_png(content) == (content, None)
    assert read_png(with_chunk(content, b"sBIT", b"\5\6\5")).significant_bits == 6
    for broken in (b"Comment", b"Comment\0\0not packed" * 500):
        assert np.array_equal(open_picture(with_chunk(png, b"zTXt", broken)), open_picture(png))


def test_files_that_are_cut_or_lie_are_named(png):
    for length in (8, 20, 33, 60, len(png) // 2):
        assert read_png(png[:length]).content == png[:length]
        with pytest.raises(DataError):
            open_picture(png[:length])
    lying = png[:33] + b"\xff\xff\xff\xff" + b"tEXt" + png[33:]
    with pytest.raises(DataError):
        open_picture(lying)
