"""Parts of JPEG files: libjpeg-turbo's pixels down to the needed row only, and None if Pillow must decode the file."""

import io
from math import ceil

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.decoding import jpeg
from resnetkit.data.decoding.jpeg import decode_rows, read_header, scale_for
from scenes import scene


def encoded(width, height, mode="RGB", **options):
    """Return the bytes of a JPEG and its header."""
    content = io.BytesIO()
    scene(width, height, mode).save(content, "JPEG", **{"quality": 90, "subsampling": "4:4:4", **options})
    return content.getvalue(), read_header(content.getvalue())


def by_pillow(content, scale=1):
    with Image.open(io.BytesIO(content)) as picture:
        picture.draft(None, (picture.width // scale, picture.height // scale))
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def luma(pixels):
    return pixels @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize(
    ("sides", "scale"),
    [
        ((447, 900), 1),
        ((448, 900), 2),
        ((895.9, 896), 2),
        ((896, 896), 4),
        ((1791, 5000), 4),
        ((9000, 1792), 8),
        ((5, 9), 1),
    ],
)
def test_scale_is_the_largest_that_keeps_enough(sides, scale):
    assert scale_for(sides, 224) == scale


@pytest.mark.parametrize(("subsampling", "unit"), [("4:4:4", 8), ("4:2:2", 8), ("4:2:0", 16), ("grey", 8)])
@pytest.mark.parametrize("size", [(131, 97), (64, 80)])
@pytest.mark.parametrize("restart", [0, 1])
def test_rows_are_pillows_and_no_more_than_needed(subsampling, unit, size, restart):
    options = {} if subsampling == "grey" else {"subsampling": subsampling}
    content, header = encoded(*size, "L" if subsampling == "grey" else "RGB", restart_marker_rows=restart, **options)
    whole = by_pillow(content)
    for bottom in (1, 15, 16, 30, 31, 50, size[1] - 1, size[1]):
        pixels = decode_rows(content, header, bottom=bottom, scale=1)
        assert len(pixels) == min(ceil(bottom / unit) * unit, size[1])
        if subsampling in ("4:4:4", "grey"):
            assert np.array_equal(pixels[:bottom], whole[:bottom])
        else:  # colours are repeated, not smoothed; what the eye sees first, brightness, is the same
            gap = np.abs(luma(pixels[:bottom]) - luma(whole[:bottom]))
            assert np.median(gap) < 0.6
            assert np.abs(pixels[:bottom].astype(int) - whole[:bottom]).mean() < 8
    assert header == (size, whole.shape[2], True, unit, header.height_at, False)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_scaled_rows_are_pillows(scale, mode):
    content, header = encoded(331, 250, mode)
    whole = by_pillow(content, scale)
    assert whole.shape[:2] == (ceil(250 / scale), ceil(331 / scale))
    for bottom in (10, 100, 250):
        pixels = decode_rows(content, header, bottom=bottom, scale=scale)
        assert len(pixels) < ceil((bottom + 34) / scale)
        assert np.array_equal(pixels[: bottom // scale], whole[: bottom // scale])


def test_progressive_files_are_decoded_whole():
    content, header = encoded(131, 97, progressive=True)
    assert np.array_equal(decode_rows(content, header, bottom=20, scale=1), by_pillow(content))


def test_a_thumbnail_is_not_taken_for_the_picture():
    thumbnail, _ = encoded(16, 16)
    content, header = encoded(131, 97, exif=b"Exif\0\0" + thumbnail)
    assert content.count(b"\xff\xc0") == 2
    pixels = decode_rows(content, header, bottom=60, scale=1)
    assert len(pixels) == 64
    assert np.array_equal(pixels[:60], by_pillow(content)[:60])


def test_padding_around_the_parts_of_a_file_does_no_harm():
    content, header = encoded(131, 97)
    whole = by_pillow(content)
    padded = content[:2] + b"\xff\xff" + content[2:] + b"\0\0\0\r\n"
    assert read_header(padded) == header._replace(height_at=header.height_at + 2)
    pixels = decode_rows(padded, read_header(padded), bottom=60, scale=1)
    assert np.array_equal(pixels, whole[:64])


def test_what_pillow_has_to_do_is_left_to_it(monkeypatch):
    content, header = encoded(131, 97)
    assert read_header(content[:-200]) is None  # cut short: Pillow says so
    assert read_header(content + b"trailer") is None
    assert read_header(content[:300] + b"\xff\xd9") is not None
    assert decode_rows(content[:300] + b"\xff\xd9", header, bottom=10, scale=1) is None
    assert encoded(20, 20, "CMYK")[1] is None
    at = header.height_at
    for changed in (content[:at] + b"\0\0" + content[at + 2 :], content[: at - 1] + b"\x0c" + content[at:]):
        assert read_header(changed) is None  # height to come after the rows; 12 bits
    for length in (0, 1, 2, 3, 12, at - 3, at + 5):
        assert read_header(content[:length] + b"\xff\xd9") is None
    assert decode_rows(content, header._replace(size=(131, 98)), bottom=98, scale=1) is None
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert read_header(content) is None


def test_metadata_is_noticed():
    assert not encoded(20, 20)[1].has_metadata
    exif = Image.Exif()
    exif[0x0112] = 6
    assert encoded(20, 20, exif=exif)[1].has_metadata
    assert encoded(20, 20, xmp=b"<x/>")[1].has_metadata


def test_bits_in_disorder_are_decoded_as_pillow_does():
    content, header = encoded(131, 97)
    middle = len(content) // 2
    broken = content[:middle] + bytes(40) + content[middle + 40 :]
    assert np.array_equal(decode_rows(broken, header, bottom=97, scale=1), by_pillow(broken))


@pytest.mark.parametrize(("subsampling", "share"), [("4:2:2", 1 / 4), ("4:2:0", 7 / 16)])
def test_repeated_colours_are_as_far_off_as_said(subsampling, share):
    """Edges between full colours are the worst case: large differences next to them, and none further away."""
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[:, :49] = 255, 0, 0
    picture[:, 49:] = 0, 0, 255
    picture[49:, 20:70] = 0, 255, 0
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95, subsampling=subsampling)
    content = file.getvalue()
    ours = decode_rows(content, read_header(content), bottom=96, scale=1).astype(int)
    gap = np.abs(ours - by_pillow(content))
    edges = np.zeros((96, 96), bool)
    edges[:, 46:53] = edges[46:53] = edges[:, 17:24] = edges[:, 67:74] = True
    assert 50 < gap.max() <= 1.772 * 255 * share + 2  # of blue, the colour that the difference counts most for
    assert gap[~edges].max() <= 6  # what ringing of the compressed colours leaves to smooth
    assert gap.mean() < 3
