"""The resampling kernel against Pillow, to the bit."""

import ctypes
import mmap
import sys

import numpy as np
import pytest
from PIL import Image

from resnetkit import native
from resnetkit.data.transforms import resampling
from resnetkit.data.transforms.preprocess import FILTERS, Preprocess, as_array
from resnetkit.data.transforms.resampling import can_resample, prepare, resample, rows_first
from resnetkit.errors import UsageError
from resnetkit.machine import read_instructions
from resnetkit.native import find_compiler
from scenes import scene

needs_a_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")
needs_a_kernel = pytest.mark.skipif(not resampling.status().startswith("on"), reason=resampling.status())


@pytest.fixture(autouse=True)
def prepared() -> None:
    prepare()


def pillows(pixels, sides, interpolation, box=None):
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    return np.asarray(picture.resize(sides, FILTERS[interpolation], box=box)).reshape(sides[1], sides[0], -1)


BUILDS = [name for name, build in native.BUILDS.items() if read_instructions().issuperset(build.instructions)]


@needs_a_kernel
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("interpolation", resampling.FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_pillow_for_any_sizes_boxes_and_windows(interpolation, channels, build, monkeypatch):
    monkeypatch.setenv("RESNETKIT_KERNELS", build)
    kernel, why = resampling._load.__wrapped__(make=True)
    if kernel is None and find_compiler() is None:
        pytest.skip(f"{build} is {why}")
    assert kernel is not None, why
    monkeypatch.setattr(resampling, "_kernel", lambda *, make: kernel)
    rng = np.random.default_rng(0)
    compared = 0
    while compared < 300:
        size, sides = (tuple(int(side) for side in rng.integers(1, 200, 2)) for _ in range(2))
        if not rows_first(size, sides):
            continue
        pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
        if compared % 2:  # overshoots of bicubic, which are cut
            pixels = np.where(pixels < 128, np.uint8(0), np.uint8(255))
        box = None
        if compared % 3:
            (left, right), (top, bottom) = (np.sort(rng.random(2) * side) for side in size)
            if compared % 3 == 1:  # whole pixels
                left, top, right, bottom = int(left), int(top), int(right) + 1, int(bottom) + 1
            box = tuple(float(np.float32(side)) for side in (left, top, right, bottom))
            if box[0] == box[2] or box[1] == box[3]:
                continue
        left, top = int(rng.integers(sides[0])), int(rng.integers(sides[1]))
        width, height = int(rng.integers(1, sides[0] - left + 1)), int(rng.integers(1, sides[1] - top + 1))
        expected = pillows(pixels, sides, interpolation, box)[top : top + height, left : left + width]
        window = (left, top, width, height)
        for mirrored in (False, True):
            found = resample(pixels, sides, interpolation=interpolation, box=box, window=window, mirrored=mirrored)
            assert np.array_equal(found, expected[:, ::-1] if mirrored else expected), (size, sides, box, window)
        compared += 1


@needs_a_kernel
def test_any_layout():
    pixels = np.asarray(scene(120, 90))
    turned = (pixels[::-1], pixels[:, ::-1], pixels.swapaxes(0, 1), pixels[5:6][::-1], pixels[:, 5:6][:, ::-1])
    for view in (*turned, pixels[10:50, 7:], pixels[::2, ::3], np.broadcast_to(pixels[:, :, :1], pixels.shape)):
        sides = (max(1, view.shape[1] // 2), max(1, view.shape[0] // 2))
        expected = pillows(np.ascontiguousarray(view), sides, "bilinear")
        assert np.array_equal(resample(view, sides, interpolation="bilinear"), expected)


@needs_a_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="protects a page by Linux's mprotect")
def test_reads_nothing_behind_the_last_pixel():
    """The memory after the pixels can't be read, so reading beyond them would end the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None)
    try:
        assert libc.mprotect(ctypes.c_void_p(start + page), page, 0) == 0
        for height in (1, 3, 4, 5, 30):
            count = height * 40 * 3
            pixels = np.frombuffer(memory, np.uint8, count, page - count).reshape(height, 40, 3)
            assert resample(pixels, (20, height), interpolation="bicubic") is not None
            assert resample(pixels, (77, 2 * height), interpolation="bilinear") is not None
    finally:
        libc.mprotect(ctypes.c_void_p(start + page), page, mmap.PROT_READ | mmap.PROT_WRITE)


@needs_a_kernel
def test_writes_where_it_is_told():
    batch = np.zeros((3, 20, 30, 3), np.uint8)
    pixels = np.asarray(scene(120, 90))
    assert resample(pixels, (30, 20), interpolation="bilinear", out=batch[1]) is not None
    assert np.array_equal(batch[1], pillows(pixels, (30, 20), "bilinear"))
    assert not batch[0].any()
    assert not batch[2].any()


def test_pillow_does_the_rest():
    assert not can_resample("nearest")
    assert not can_resample("lanczos")


@needs_a_kernel
def test_what_can_not_hold_the_result_is_refused():
    pixels = np.asarray(scene(60, 40))
    for out in (np.empty((20, 60, 3), np.uint8)[:, :30], np.empty((20, 31, 3), np.uint8), np.empty((20, 30, 3))):
        with pytest.raises(ValueError, match="it must be contiguous uint8"):
            resample(pixels, (30, 20), interpolation="bilinear", out=out)


NO_PICTURES = [
    np.zeros((40, 50, 3)),
    np.zeros((40, 50, 1), np.uint8),
    np.zeros((40, 50), np.uint8),
    np.zeros((0, 5, 3), np.uint8),
]


@pytest.mark.parametrize("pixels", NO_PICTURES, ids=lambda pixels: f"{pixels.dtype}{pixels.shape}")
def test_arrays_that_are_no_pictures_are_refused(pixels):
    with pytest.raises(UsageError, match=r"expected uint8 \(height, width, 3\)"):
        Preprocess(size=24, resize=32).pixels(pixels)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_large_pictures_are_copied_in_strips(mode):
    picture = scene(1501, 1403, mode)
    assert np.array_equal(as_array(picture), np.asarray(picture).reshape(1403, 1501, -1))


@pytest.mark.parametrize(
    "sides", [(500, 375), (375, 500), (64, 64), (63, 640), (640, 63), (90, 200), (24, 32), (40, 1000)]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preprocessing_is_the_same_without_the_kernel(sides, mode, monkeypatch):
    grey = {"mode": "L", "mean": (0.5,), "std": (0.5,)} if mode == "L" else {}
    preprocess = Preprocess(size=56, resize=64, **grey)
    picture = scene(*sides, mode)
    pixels = np.asarray(picture).reshape(sides[1], sides[0], -1)
    found = [preprocess.pixels(picture), preprocess.pixels(pixels)]
    monkeypatch.setattr(resampling, "_kernel", lambda *, make: None)
    expected = np.asarray(preprocess.resized(picture))
    left, top = round((expected.shape[1] - 56) / 2), round((expected.shape[0] - 56) / 2)
    expected = expected.reshape(*expected.shape[:2], -1)[top : top + 56, left : left + 56]
    for result in (*found, preprocess.pixels(picture), preprocess.pixels(pixels)):
        assert np.array_equal(result, expected)


def test_what_comes_out_is_a_copy():
    pixels = np.zeros((32, 32, 3), np.uint8)
    Preprocess(size=32).pixels(pixels)[:] = 1
    assert not pixels.any()


@needs_a_compiler
def test_nothing_is_compiled_before_somebody_prepares(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path))  # `prepared` may have compiled it for the test's own
    assert resampling._load.__wrapped__(make=False) == (None, "off: not compiled yet")
    assert not list(tmp_path.rglob("*.so"))
    assert resampling._load.__wrapped__(make=True)[0] is not None
    kernel, why = resampling._load.__wrapped__(make=False)
    assert kernel is not None
    assert ", compiled by " in why
