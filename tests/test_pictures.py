"""Decoding: the content of any file becomes upright 8-bit pixels, or one error with the file's name."""

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.decoding import quiet
from resnetkit.data.decoding.jpeg import decode_rows
from resnetkit.data.decoding.pictures import UPRIGHT, PictureFile, open_picture
from resnetkit.errors import DataError
from scenes import scene


def pixel(picture):
    return picture.getpixel((0, 0))


@pytest.mark.parametrize(
    ("stored", "suffix"),
    [
        *product(["1", "L", "P", "RGB", "RGBA", "LA", "I;16"], ["png", "tif"]),
        *product(["CMYK", "YCbCr", "I", "F"], ["tif"]),
        *product(["L", "RGB", "CMYK"], ["jpg"]),
    ],
)
def test_every_colour_mode_becomes_eight_bit_rgb_or_grey(tmp_path, stored, suffix):
    grey = np.asarray(scene(20, 12, "L"))
    numbers = {"I;16": np.uint16(257) * grey, "I": np.int32(257) * grey, "F": grey / np.float32(255)}
    picture = Image.fromarray(numbers[stored]) if stored in numbers else scene(20, 12, "RGB")
    path = tmp_path / f"a.{suffix}"
    (picture if stored in numbers else picture.convert(stored)).save(path)
    for mode in ("RGB", "L"):
        opened = open_picture(path, mode=mode)
        assert (opened.mode, opened.size) == (mode, (20, 12))
        if suffix != "jpg" and stored in {*numbers, "L", "LA"}:
            assert np.array_equal(opened, scene(20, 12, "L").convert(mode))
        elif suffix != "jpg" and stored in {"RGB", "RGBA"}:
            assert np.array_equal(opened, scene(20, 12).convert(mode))
        elif stored != "1":
            gap = np.asarray(opened.convert("L"), float) - grey
            assert np.abs(gap).mean() < 12


@pytest.mark.parametrize("stored", ["I;16", "I;16B", "I;16L", "I"])
def test_sixteen_bits_are_scaled_with_rounding_not_clipped(stored):
    values = np.array([[0, 128, 129, 255, 256], [257, 1000, 32767, 65406, 65535]])
    kind = {"I": "<i4", "I;16B": ">u2"}.get(stored, "<u2")
    opened = open_picture(Image.frombytes(stored, (5, 2), values.astype(kind).tobytes()), mode="L")
    assert np.asarray(opened).tolist() == [[0, 0, 1, 1, 1], [1, 4, 127, 254, 255]]


def test_sixteen_bit_files_keep_their_brightness(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for name in ("ramp.png", "ramp.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert np.asarray(open_picture(tmp_path / name, mode="L")).ravel().tolist() == list(range(256))
    (tmp_path / "ramp.pgm").write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    assert np.asarray(open_picture(tmp_path / "ramp.pgm", mode="L")).ravel().tolist() == list(range(256))


def test_float_pictures_are_of_unit_or_byte_range(tmp_path):
    for limit, name in ((1, "unit.tif"), (255, "byte.tif")):
        Image.fromarray(np.array([[0, 0.5, 1]], np.float32) * limit).save(tmp_path / name)
        assert np.asarray(open_picture(tmp_path / name, mode="L")).tolist() == [[0, 128, 255]]
    for bad in (np.nan, -1, 300):
        Image.fromarray(np.array([[0, bad]], np.float32)).save(tmp_path / "bad.tif")
        with pytest.raises(DataError, match=r"bad.tif: grey values go from .* convert it to 8 or 16 bits"):
            open_picture(tmp_path / "bad.tif")


def test_transparency_is_laid_on_white(tmp_path):
    for alpha, red in ((0, (255, 255, 255)), (255, (200, 0, 0)), (51, (244, 204, 204))):
        Image.new("RGBA", (2, 2), (200, 0, 0, alpha)).save(tmp_path / "a.png")
        assert pixel(open_picture(tmp_path / "a.png")) == red
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    assert pixel(open_picture(tmp_path / "grey.png", mode="L")) == 255

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 0, 200, 0])
    palette.putdata([0, 1])
    for name in ("p.png", "p.gif"):
        palette.save(tmp_path / name, transparency=0)
        opened = open_picture(tmp_path / name)
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 200, 0)]
    palette.save(tmp_path / "bytes.png", transparency=bytes([255, 0]))
    assert [open_picture(tmp_path / "bytes.png").getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 255), (255, 255, 255)]

    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert pixel(open_picture(tmp_path / "key.png")) == (255, 255, 255)


def test_cmyk_jpegs_are_not_inverted(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg")
    assert b"Adobe" in (tmp_path / "red.jpg").read_bytes()  # the marker that tells of inverted inks
    red, green, blue = pixel(open_picture(tmp_path / "red.jpg"))
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_all_eight_exif_orientations_come_upright(tmp_path, orientation, suffix):
    upright = Image.new("L", (32, 16))
    upright.paste(255, (0, 0, 16, 8))  # top left
    upright.paste(128, (16, 0, 32, 8))  # top right
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright
    if orientation in UPRIGHT:
        stored = upright.transpose(inverse.get(orientation, UPRIGHT[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.convert("RGB").save(path, exif=exif, **({} if suffix == "tif" else {"quality": 95}))
    opened = open_picture(path, mode="L")
    assert opened.size == (32, 16)
    assert np.abs(np.asarray(opened, int) - np.asarray(upright)).max() < 12
    again = open_picture(opened, mode="L")  # turned once, not twice
    assert np.array_equal(again, opened)


BROKEN_EXIF = b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_costs_nothing(tmp_path):
    scene(16, 8).save(tmp_path / "a.jpg", exif=BROKEN_EXIF)
    assert open_picture(tmp_path / "a.jpg").size == (16, 8)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / f"a.{suffix}") as animation:
        assert animation.n_frames == 3
    assert pixel(open_picture(tmp_path / f"a.{suffix}")) == (255, 0, 0)


def test_pictures_are_decoded_and_free_of_their_source(tmp_path):
    path = tmp_path / "a.jpg"
    scene(40, 30).save(path)
    from_path = open_picture(path)
    from_bytes = open_picture(path.read_bytes())
    with Image.open(path) as lazy:
        from_pillow = open_picture(lazy)
    path.unlink()
    assert type(from_path) is type(from_pillow) is Image.Image
    assert np.array_equal(from_path, from_bytes)
    assert np.array_equal(from_path, from_pillow)
    assert np.array_equal(open_picture(from_path), from_path)
    assert from_path.info == {}


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif"])
def test_truncated_files_are_named_with_the_reason(tmp_path, suffix):
    whole = io.BytesIO()
    scene(64, 64).save(whole, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: (broken or incomplete \(.+\)|not a picture)"):
        open_picture(path)


def test_what_is_no_picture_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text.jpg").write_text("not a picture, but long enough to look like a header of some kind " * 9)
    scene(8, 8).save(tmp_path / "a.eps")
    for name, reason in {
        "empty.jpg": "the file is empty",
        "folder.jpg": "this is a folder",
        "text.jpg": "not a picture of a known kind",
        "missing.jpg": "no such file",
        "a.eps": "EPS files are not read; convert it to PNG or JPEG",
    }.items():
        with pytest.raises(DataError) as caught:
            open_picture(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {reason}")
    with pytest.raises(DataError, match="picture of 4 bytes: not a picture"):
        open_picture(b"1234")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (50, 50)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: more than 2,000 pixels"):
        open_picture(tmp_path / "bomb.png")


def test_large_pictures_and_broken_exif_load_without_pillows_warnings(tmp_path):
    Image.new("RGB", (50, 30)).save(tmp_path / "large.jpg", exif=BROKEN_EXIF)
    program = (
        "import sys; from PIL import Image; from resnetkit.data.decoding.pictures import open_picture;"
        "Image.MAX_IMAGE_PIXELS = 1000; print(open_picture(sys.argv[1]).size)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "large.jpg"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(50, 30)\n", "")


def test_pillows_warnings_are_the_callers_own_again(tmp_path, monkeypatch):
    """The filters are restored after every reading, in any threads, and also if other code changes them meanwhile."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (50, 30)).save(tmp_path / "large.jpg", exif=BROKEN_EXIF)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: open_picture(tmp_path / "large.jpg").size, range(200))) == {(50, 30)}
        assert warnings.filters == before
        with pytest.raises(UserWarning, match="Corrupt EXIF data"):
            Image.open(tmp_path / "large.jpg")

        outer = warnings.filters
        with quiet.warnings_ignored, warnings.catch_warnings():  # a list of its own, with our entries
            warnings.simplefilter("error")
            assert open_picture(tmp_path / "large.jpg").size == (50, 30)
        with pytest.raises(DataError, match="no such file"):
            open_picture(tmp_path / "missing.png")
        assert warnings.filters is outer
        assert warnings.filters == before


def test_draft_halves_only_while_enough_is_left(tmp_path):
    scene(640, 481).save(tmp_path / "a.jpg", quality=90)
    whole = open_picture(tmp_path / "a.jpg")
    sizes = {n: open_picture(tmp_path / "a.jpg", at_least=n).size for n in (1000, 241, 240, 120, 60, 1)}
    assert sizes == {1000: (640, 481), 241: (640, 481), 240: (320, 241), 120: (160, 121), 60: (80, 61), 1: (80, 61)}
    half = open_picture(tmp_path / "a.jpg", at_least=240)
    assert np.abs(np.asarray(half, float) - np.asarray(whole.resize((320, 241), Image.Resampling.BOX))).mean() < 6
    scene(64, 48).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png", at_least=8).size == (64, 48)


@pytest.fixture(params=["simplejpeg", "Pillow"])
def jpeg_decoder(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr("resnetkit.data.decoding.jpeg.simplejpeg", None)
    return request.param


BOXES = [(0, 0, 77, 53), (0, 0, 1, 1), (76, 52, 77, 53), (30, 20, 41, 31), (50, 37, 77, 53), (0, 40, 60, 53)]


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "keep_rgb.jpg", "grey.jpg", "cmyk.jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_parts_are_cut_from_the_upright_picture(tmp_path, jpeg_decoder, orientation, kind, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene(*((53, 77) if orientation >= 5 else (77, 53)))
    stored = stored.convert({"grey.jpg": "L", "cmyk.jpg": "CMYK"}.get(kind, "RGB"))
    path = tmp_path / f"a.{kind}"
    options = {"progressive": "progressive" in kind, "keep_rgb": "keep_rgb" in kind, "subsampling": "4:4:4"}
    stored.save(path, exif=exif, **({} if kind == "png" else options))
    whole = np.asarray(open_picture(path, mode=mode)).reshape(53, 77, -1)
    for left, top, right, bottom in BOXES:
        picture = PictureFile(path, mode=mode)
        assert picture.size == (77, 53)
        pixels, box = picture.part((left, top, right, bottom), at_least=64)
        assert box == (0, 0, right - left, bottom - top)
        assert np.array_equal(pixels, whole[top:bottom, left:right])
    pixels, box = PictureFile(path, mode=mode).part((10.5, 20.25, 30, 40.75), at_least=64)
    assert box == pytest.approx((0.5, 0.25, 20, 20.75))
    assert np.array_equal(pixels, whole[20:41, 10:30])


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
def test_large_parts_come_smaller_but_not_too_small(tmp_path, jpeg_decoder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = scene(401, 303)
    steps = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(steps.get(orientation, UPRIGHT[orientation])) if orientation > 1 else upright
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling="4:2:0")
    for wanted, scale in (
        ((3, 5, 401, 303), 8),
        ((201, 101, 401, 201), 2),
        ((11, 13, 149, 151), 4),
        ((0, 0, 63, 90), 1),
    ):
        pixels, box = PictureFile(tmp_path / "a.jpg").part(wanted, at_least=34)
        sides = ((wanted[2] - wanted[0]) / scale, (wanted[3] - wanted[1]) / scale)
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(sides)
        assert min(sides) >= 34
        height, width, _ = pixels.shape
        assert 0 <= box[0] < 1
        assert 0 <= box[1] < 1
        assert (width, height) == (np.ceil(box[2]), np.ceil(box[3]))
        ours = Image.fromarray(np.ascontiguousarray(pixels)).resize((34, 34), Image.Resampling.BILINEAR, box=box)
        theirs = upright.resize((34, 34), Image.Resampling.BILINEAR, box=wanted)
        # The scene is noise and sharp edges, of which a scaled transform keeps a little more or less than a filter.
        assert np.abs(np.asarray(ours, float) - np.asarray(theirs)).mean() < 5


def test_no_more_rows_are_decoded_than_the_box_needs(tmp_path, monkeypatch):
    decoded = []

    def decode(*arguments, **options):
        decoded.append(decode_rows(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr("resnetkit.data.decoding.pictures.decode_rows", decode)
    scene(600, 400).save(tmp_path / "a.jpg", subsampling="4:2:0")
    for box in ((100, 100, 300, 200), (0, 0, 500, 220), (0, 0, 600, 400)):
        PictureFile(tmp_path / "a.jpg").part(box, at_least=100)
    assert [pixels.shape for pixels in decoded] == [(208, 600, 3), (112, 300, 3), (100, 150, 3)]


def test_of_several_pictures_in_a_jpeg_file_the_first_has_parts(tmp_path, jpeg_decoder):
    others = [scene(77, 53, seed=1)]
    scene(77, 53).save(tmp_path / "a.mpo", save_all=True, append_images=others, subsampling="4:4:4")
    pixels, _ = PictureFile(tmp_path / "a.mpo").part((10, 20, 60, 50), at_least=30)
    assert np.array_equal(pixels, np.asarray(open_picture(tmp_path / "a.mpo"))[20:50, 10:60])


def test_pictures_in_memory_have_parts():
    picture = scene(40, 30)
    part = PictureFile(picture)
    pixels, box = part.part((3, 4, 20.5, 30), at_least=1)
    assert (part.size, box) == ((40, 30), (0, 0, 17.5, 26))
    assert np.array_equal(pixels, np.asarray(picture)[4:30, 3:21])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_parts_of_truncated_files_are_refused_wherever_they_are(tmp_path, jpeg_decoder, suffix):
    whole = io.BytesIO()
    scene(64, 64).save(whole, "jpeg" if suffix == "jpg" else suffix)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) * 3 // 4])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: broken or incomplete"):
        PictureFile(path).part((0, 0, 8, 8), at_least=8)


def test_headers_that_open_picture_refuses_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture, but long enough to look like a header of some kind " * 9)
    scene(8, 8).save(tmp_path / "a.eps")
    scene(64, 64).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("empty.jpg", "text.jpg", "missing.jpg", "a.eps", "bomb.jpg"):
        with pytest.raises(DataError) as ours:
            PictureFile(tmp_path / name)
        with pytest.raises(DataError) as theirs:
            open_picture(tmp_path / name)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_costs_no_part(tmp_path):
    scene(16, 8).save(tmp_path / "a.jpg", exif=BROKEN_EXIF)
    assert PictureFile(tmp_path / "a.jpg").part((0, 0, 16, 8), at_least=8)[0].shape == (8, 16, 3)
