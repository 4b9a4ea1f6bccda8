"""More than 8 bits per value: the same rule for all formats, and for pictures that Pillow has opened."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.decoding.pictures import PictureFile, open_picture
from resnetkit.errors import DataError
from tiffs import MAX_SAMPLE_VALUE, tiff

GREY = np.array([[0, 128, 129, 255, 256], [257, 1000, 32767, 65406, 65535]], np.uint16)
EIGHT = [[0, 0, 1, 1, 1], [1, 4, 127, 254, 255]]
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(values, *, significant=None):
    """A PNG file of uint16 (height, width, 1 to 4) values; Pillow can't write colours of 16 bits."""
    height, width, channels = values.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    bits = chunk(b"sBIT", bytes([significant] * channels)) if significant else b""
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), bits, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def grey(content):
    return np.asarray(open_picture(content, mode="L")).tolist()


def files(values):
    """The same values in every format with 16 bits; uint16 (height, width, 1 or 3)."""
    for order in "<>":
        for packed in (False, True):
            yield f"tiff {order} {packed}", tiff(values, order=order, packed=packed)
        if values.shape[2] == 3:
            yield f"planar tiff {order}", tiff(values, order=order, planar=True)
    yield "png", png(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_alike_in_every_file_and_by_every_way(channels):
    values = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)[:, :, :channels]
    expected = np.stack([EIGHT, EIGHT[::-1], np.array(EIGHT)[:, ::-1]], -1)[:, :, :channels]
    for name, content in files(values):
        mode = "L" if channels == 1 else "RGB"
        assert np.array_equal(np.asarray(open_picture(content, mode=mode)).reshape(expected.shape), expected), name
        with Image.open(io.BytesIO(content)) as picture:  # as a person hands it to a Predictor
            opened = np.asarray(open_picture(picture, mode=mode))
        assert np.array_equal(opened.reshape(expected.shape), expected), name
        part, _ = PictureFile(content, mode=mode).part((0, 0, 5, 2), at_least=1)
        assert np.array_equal(part, expected), name


def test_alpha_of_sixteen_bits_is_scaled_too():
    light = np.array([[[65406, 65535], [0, 0]]], np.uint16)
    assert grey(png(light)) == [[254, 255]]
    color = np.array([[[65406, 129, 0, 65535], [0, 0, 0, 0]]], np.uint16)
    assert np.asarray(open_picture(png(color))).tolist() == [[[254, 1, 0], [255, 255, 255]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_are_not_black(channels):
    values = np.array([[0, 16, 2048, 4095]], np.uint16)[:, :, None].repeat(channels, 2)
    for name, content in files(values):
        assert grey(content) == [[0, 1, 128, 255]], name
    picture = Image.fromarray(values[:, :, 0])  # in memory
    assert grey(picture) == [[0, 1, 128, 255]]


def test_eight_bits_in_sixteen_are_eight_bits():
    assert grey(png(np.array([[[0], [7], [255]]], np.uint16))) == [[0, 7, 255]]
    assert grey(png(np.zeros((1, 2, 1), np.uint16))) == [[0, 0]]


def test_what_a_file_says_of_its_depth_is_believed():
    dark = np.array([[[0], [16], [1008]]], np.uint16)  # by their highest value alone, 12 bits
    assert grey(png(dark)) == [[0, 1, 63]]
    assert grey(png(dark + 1, significant=14)) == [[0, 0, 16]]
    assert grey(png(dark, significant=12)) == [[0, 0, 4]]  # scaled to 16 bits, as the standard has it
    assert grey(png(dark + 1, significant=10)) == [[0, 4, 252]]
    assert grey(png(np.array([[[0], [65535]]], np.uint16), significant=10)) == [[0, 255]]
    assert grey(tiff(dark, tags={MAX_SAMPLE_VALUE: [2**14 - 1]}.items())) == [[0, 0, 16]]
    assert grey(tiff(dark, tags={MAX_SAMPLE_VALUE: [1008]}.items())) == [[0, 1, 63]]  # the picture's highest value
    for most, white in ((4095, [0, 1, 63]), (65535, [0, 0, 4]), (1023, [0, 4, 251])):
        content = f"P5 3 1 {most}\n".encode() + dark.astype(">u2").tobytes()
        assert grey(content) == [white]


def test_planes_whose_depth_can_not_be_told_are_named():
    dark = np.array([[[0, 1, 2], [16, 2048, 4095]]], np.uint16)
    with pytest.raises(DataError, match=r"12 bits or fewer in 16 .*; save it as a PNG"):
        open_picture(tiff(dark, planar=True, packed=True))
    bright = np.uint16(257) * np.array([[[0, 1, 2], [16, 200, 255]]], np.uint16)
    assert np.asarray(open_picture(tiff(bright, planar=True, packed=True))).tolist() == [[[0, 1, 2], [16, 200, 255]]]
