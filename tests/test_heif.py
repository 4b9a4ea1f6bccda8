"""HEIC pictures of telephones: read with pillow-heif, named without it; AVIF by Pillow alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.decoding.heif import is_heif
from resnetkit.data.decoding.opening import accept_pixels
from resnetkit.data.decoding.pictures import PictureFile, open_picture
from resnetkit.data.folders.folder import load_folder
from resnetkit.data.folders.listing import find_below
from resnetkit.errors import DataError
from scenes import scene

HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


@pytest.fixture
def pillow_heif():
    return pytest.importorskip("pillow_heif", reason="resnetkit[heic] is not installed")


def encoded(pillow_heif, picture, **options):
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_of_a_telephone(pillow_heif, mode, tmp_path):
    picture = scene(64, 48)
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(encoded(pillow_heif, picture))
    opened = open_picture(path, mode=mode)
    assert (opened.mode, opened.size) == (mode, (64, 48))
    assert np.abs(np.asarray(opened, int) - np.asarray(picture.convert(mode))).max() <= 2
    part, _ = PictureFile(path, mode=mode).part((8, 4, 40, 30), at_least=1)
    assert np.array_equal(part, np.asarray(opened).reshape(48, 64, -1)[4:30, 8:40])


def test_it_is_turned_once(pillow_heif):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = scene(48, 64)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()  # as telephones write it: both the file itself (irot) and EXIF say that it is turned
    options = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    pillow_heif.encode("RGB", stored.size, stored.tobytes(), file, exif=exif.tobytes(), **options)
    content = file.getvalue()
    assert b"irot" in content
    opened = open_picture(content)
    assert opened.size == (48, 64)
    assert np.abs(np.asarray(opened, int) - np.asarray(upright)).max() <= 2


def test_transparency_bits_and_size(pillow_heif):
    see_through = scene(64, 48)
    see_through.putalpha(0)
    opened = np.asarray(open_picture(encoded(pillow_heif, see_through)))
    assert opened.min() >= 253
    with accept_pixels(64 * 48 - 1), pytest.raises(DataError, match="more than 3,071 pixels"):
        open_picture(encoded(pillow_heif, scene(64, 48)))


def test_broken_ones_are_named(pillow_heif, tmp_path):
    content = encoded(pillow_heif, scene(64, 48))
    path = tmp_path / "a.heic"
    for length in (20, 40, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.heic: "):
            open_picture(path)


def test_pillow_does_not_learn_it(pillow_heif, tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(encoded(pillow_heif, scene(64, 48)))
    program = (
        "import sys; from PIL import Image; from resnetkit.data.decoding.pictures import open_picture; Image.init();"
        "before = sorted(Image.OPEN); open_picture(sys.argv[1]); print(sorted(Image.OPEN) == before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC + bytes(100))
    with pytest.raises(
        DataError, match=r"a\.heic: HEIC and HEIF files need pillow-heif; pip install 'resnetkit\[heic\]'"
    ):
        open_picture(tmp_path / "a.heic")


def test_none_vanishes_by_its_suffix(tmp_path):
    for name in ("a.heic", "b.HEIF", "c.hif", "d.avif"):
        (tmp_path / name).touch()
    assert [(found.path.name, found.kind) for found in find_below(tmp_path)] == [
        (name, "picture") for name in ("a.heic", "b.HEIF", "c.hif", "d.avif")
    ]


@pytest.mark.parametrize("orientation", [1, 6])
def test_avif_needs_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = scene(48, 64)
    stored = upright.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else upright
    file = io.BytesIO()
    stored.save(file, "AVIF", exif=exif, quality=100, subsampling="4:4:4")
    assert not is_heif(file.getvalue())
    opened = open_picture(file.getvalue())
    assert opened.size == (48, 64)
    assert np.abs(np.asarray(opened, int) - np.asarray(upright)).mean() < 2


def test_a_set_says_what_is_lost_of_each_class(tmp_path, monkeypatch):
    for label, suffixes in {"cat": ["png"] * 4, "dog": ["HEIC"] * 3 + ["png"], "ship": ["heif"] * 4}.items():
        (tmp_path / label).mkdir()
        for i, suffix in enumerate(suffixes):
            (tmp_path / label / f"{i}.{suffix}").write_bytes(b"x")
    monkeypatch.setattr("resnetkit.data.samples.can_read_heif", lambda: False)
    note = "HEIC pictures can't be read here, 3 of 4 of 'dog', 4 of 4 of 'ship': pip install 'resnetkit[heic]'"
    assert note in load_folder(tmp_path).notes
    for i in range(4):
        (tmp_path / "ship" / f"{i}.heif").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(DataError) as error:
        load_folder(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: all 4 pictures of 'ship' are HEIC, which needs pillow-heif; pip install 'resnetkit[heic]'"
    )
    monkeypatch.setattr("resnetkit.data.samples.can_read_heif", lambda: True)
    assert not any("HEIC" in note for note in load_folder(tmp_path).notes)
