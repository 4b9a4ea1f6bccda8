"""The limit of pixels, the scale at which very large pictures are decoded, and no output of libtiff."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.decoding import opening
from resnetkit.data.decoding.opening import LARGE, MOST_PIXELS, accept_pixels, most_pixels, reduction
from resnetkit.data.decoding.pictures import PictureFile, open_picture
from resnetkit.errors import DataError, UsageError
from scenes import scene
from tiffs import tiff

KINDS = ["PNG", "TIFF", "BMP", "GIF", "JPEG", "WEBP", "PPM", "JPEG2000"]


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_a_limit_is_ours_or_whose_was_set(monkeypatch):
    assert most_pixels() == MOST_PIXELS > 200e6
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert most_pixels() == 2000
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert most_pixels() == float("inf")
    with accept_pixels(7):
        with accept_pixels(None):
            assert most_pixels() == 7
        with pytest.raises(UsageError, match="`max_pixels` is 0; it must be at least 1"), accept_pixels(0):
            pass
        assert most_pixels() == 7
    assert most_pixels() == float("inf")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_for_is_read_whatever_pillow_says(kind, monkeypatch):
    picture = scene(50, 40)
    content = encoded(picture, kind)
    expected = open_picture(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"more than 1,000 pixels; make it smaller, or raise the limit by `max_pixels`"):
        open_picture(content)
    with pytest.raises(DataError, match="more than 1,000 pixels"):
        PictureFile(content)
    if kind == "WEBP":  # which asks for the process's limit alone, and has no more than 2**28 pixels
        return
    monkeypatch.setattr(opening, "LARGE", 1000)
    monkeypatch.setattr(opening, "SMALLER", 2**20)
    with accept_pixels(2000):
        assert np.array_equal(open_picture(content), expected)
        assert PictureFile(content).size == (50, 40)
    with accept_pixels(1999), pytest.raises(DataError, match="more than 1,999 pixels"):
        open_picture(content)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_only_what_pillow_alone_would_refuse_is_decoded_at_a_scale():
    assert reduction((LARGE // 2, 2)) == 1
    assert reduction((16_384, 12_288)) == 2
    assert reduction((30_000, 12_000)) == 4
    assert reduction((50_000, 60_000)) == 8
    assert reduction((60_000, 65_500)) == 8


@pytest.mark.parametrize("turned", [False, True])
def test_a_very_large_jpeg_is_the_same_at_a_scale_everywhere(turned, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    content = encoded(scene(400, 300), "JPEG", exif=exif, subsampling="4:4:4")
    monkeypatch.setattr(opening, "LARGE", 100_000)
    monkeypatch.setattr(opening, "SMALLER", 30_000)
    half = open_picture(content)
    assert half.size == ((150, 200) if turned else (200, 150))
    assert np.array_equal(open_picture(content, at_least=1), half)
    file = PictureFile(content)
    assert file.size == ((300, 400) if turned else (400, 300))
    part, box = file.part((20, 40, 120, 100), at_least=100)
    assert box == (0, 0, 50, 30)
    assert np.array_equal(part, np.asarray(half)[20:50, 10:60])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_photograph_of_200_megapixels_takes_little_memory(tmp_path):
    Image.new("RGB", (16_320, 12_240), (200, 30, 90)).save(tmp_path / "large.jpg")
    # Not ru_maxrss, which goes on from that of the process that started this one.
    program = (
        "import sys; from resnetkit.data.decoding.pictures import open_picture; open_picture(sys.argv[2])\n"
        "def resident(line):\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(text.split()[1]) for text in lines if text.startswith(line))\n"
        "open('/proc/self/clear_refs', 'w').write('5')  # the largest amount so far is the present one\n"
        "before = resident('VmRSS'); picture = open_picture(sys.argv[1]); after = resident('VmHWM')\n"
        "print(*picture.size, *picture.getpixel((4000, 3000)), (after - before) // 1024)"
    )
    scene(8, 8).save(tmp_path / "small.jpg")
    argv = [sys.executable, "-c", program, tmp_path / "large.jpg", tmp_path / "small.jpg"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    width, height, *color, mebibytes = map(int, done.stdout.split())
    assert (width, height) == (8160, 6120)
    assert np.abs(np.array(color) - (200, 30, 90)).max() < 3
    assert 140 < mebibytes < 500  # its pixels are 143, those of the whole photograph 571


def test_libtiff_prints_nothing_and_is_as_it_was(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 50, 3)).astype(np.uint8)
    broken = bytearray(tiff(pixels, packed=True))
    broken[2000:3000] = bytes(1000)
    (tmp_path / "broken.tif").write_bytes(broken)
    (tmp_path / "odd.tif").write_bytes(tiff(pixels, packed=True, tags={65000: [1, 2, 3]}.items()))
    program = (
        "import sys; from resnetkit.data.decoding.pictures import open_picture; from PIL import Image\n"
        "for path in sys.argv[1:3]:\n"
        "    try: print(open_picture(path).size)\n"
        "    except Exception as error: print(type(error).__name__)\n"
        "print('now Pillow', file=sys.stderr, flush=True)\n"
        "try: Image.open(sys.argv[1]).load()\n"
        "except OSError: pass"
    )
    argv = [sys.executable, "-c", program, tmp_path / "broken.tif", tmp_path / "odd.tif"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "DataError\n(50, 64)\n"
    before, _, after = done.stderr.partition("now Pillow\n")
    assert before == ""
    assert after.startswith("ZIPDecode")  # who uses Pillow beside us hears libtiff as ever
