"""Resize with our own C++ kernel: the pixels are Pillow's, several times faster, of a window only. No torch here."""

import ctypes
from functools import cache
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.native import load

FILTERS = ("bilinear", "bicubic")
"""The filters of the kernel, in the order of their numbers in resample.cpp."""
SOURCES = Path(__file__).parent
# No fused multiply-add: the filter's weights equal Pillow's only if each product is rounded before it is added.
FLAGS = ("-ffp-contract=off",)

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_ARGUMENTS = [_POINTER, ctypes.c_long, *[_INT] * 4, _POINTER, _INT, _INT, _POINTER, _INT, _POINTER]

_prepared = Event()
_lock = Lock()


def prepare() -> None:
    """Compile the kernel if there is none. This takes two seconds: call it before resizing many pictures."""
    _kernel(make=True)
    _prepared.set()


def can_resample(interpolation: str) -> bool:
    """Whether `resample` has the filter and its kernel is compiled. Otherwise use Pillow."""
    return interpolation in FILTERS and _kernel(make=_prepared.is_set()) is not None


def resample(
    pixels: NDArray[np.uint8],
    sides: tuple[int, int],
    *,
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
    window: tuple[int, int, int, int] | None = None,
    mirrored: bool = False,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize uint8 (height, width, 1 or 3) pixels to `sides` (width, height), with antialiasing.

    The result is that of Pillow's `resize` with `box` (left, top, right, bottom) along the rows first. It is equal to
    the bit if Pillow also begins with the rows, see `rows_first`. Only the part `window` (left, top, width, height) of
    the result is computed. It is mirrored left and right with `mirrored`, and written to `out` if given. No thread is
    started. Call it only if `can_resample` is true.

    Returns uint8 (window's height, window's width, channels). Raises ValueError for an `out` of another shape or type
    or one that is not contiguous, and MemoryError.
    """
    kernel = _kernel(make=_prepared.is_set())
    height, width, channels = pixels.shape
    if pixels.strides[1:] != (channels, 1) or pixels.strides[0] < width * channels:
        pixels = pixels.copy()
    boxed = np.array((0, 0, width, height) if box is None else box, np.float32)
    wanted = np.array((0, 0, *sides) if window is None else window, np.int32)
    shape = (int(wanted[3]), int(wanted[2]), channels)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; it must be contiguous uint8 {shape}")
    failed = kernel(
        pixels.ctypes.data,
        pixels.strides[0],
        width,
        height,
        channels,
        FILTERS.index(interpolation),
        boxed.ctypes.data,
        *sides,
        wanted.ctypes.data,
        bool(mirrored),
        out.ctypes.data,
    )
    if failed:
        raise MemoryError(f"there is no memory to resize {width} x {height} pixels")
    return out


def rows_first(size: tuple[int, int], sides: tuple[int, int]) -> bool:
    """Whether every version of Pillow resizes a picture of `size` (width, height) to `sides` along its rows first.

    Since version 13, Pillow begins with the columns if the height shrinks by more than twice as many pixels as the
    width.
    """
    return size[1] - sides[1] <= 2 * max(size[0] - sides[0], 0) or sides[1] >= size[1]


def status() -> str:
    """Return a line about the kernel: that it is loaded, or why not. The first call compiles it in two seconds."""
    return _load(make=True)[1]


def _kernel(*, make: bool) -> Any:
    return _load(make=make)[0]


@cache
def _load(*, make: bool) -> tuple[Any, str]:
    with _lock:  # so that only one thread compiles
        library, why = load(SOURCES, FLAGS, make=make)
    if library is None:
        return None, why
    library.resample.argtypes, library.resample.restype = _ARGUMENTS, _INT
    return library.resample, why
