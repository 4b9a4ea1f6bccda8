"""Resizing by a kernel: Pillow's pixels in a fraction of the time, and only those that are wanted. No torch here."""

import ctypes
from functools import cache
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.native import load

FILTERS = ("bilinear", "bicubic")
"""Numbered as in resample.cpp."""
# Weights come out as Pillow's only if products are rounded before they are added.
FLAGS = ("-ffp-contract=off",)

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_ARGUMENTS = [_POINTER, ctypes.c_long, *[_INT] * 4, _POINTER, _INT, _INT, _POINTER, _INT, _POINTER]

_prepared = Event()
_lock = Lock()


def prepare() -> None:
    """Compile the kernel where that was not done before, which takes two seconds; for those who will resize many."""
    _kernel(make=True)
    _prepared.set()


def can_resample(interpolation: str) -> bool:
    """Whether `resample` knows the filter and has its kernel, which is used once it was compiled; Pillow has all."""
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
    """Bring uint8 (height, width, 1 or 3) pixels to `sides` (width, height), with antialiasing.

    As Pillow's `resize` with its `box` (left, top, right, bottom), rows first: to the bit where Pillow begins with rows
    too, see `rows_first`. `window` (left, top, width, height) is the part of the result that is returned, mirrored or
    not, in `out` if that is given. Runs in the thread that calls it, in no other. Ask `can_resample` first.

    Raises ValueError for an `out` that is not of its shape or not contiguous, MemoryError.
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
    """Whether every Pillow resizes a picture of `size` (width, height) row by row first, and then down the columns.

    Since version 13 it does columns first where the height loses more than twice what the width loses, in pixels.
    """
    return size[1] - sides[1] <= 2 * max(size[0] - sides[0], 0) or sides[1] >= size[1]


def status() -> str:
    """One line on the kernel: compiled and loaded, which takes two seconds the first time, or why not."""
    return _load(make=True)[1]


def _kernel(*, make: bool) -> Any:
    return _load(make=make)[0]


@cache
def _load(*, make: bool) -> tuple[Any, str]:
    with _lock:  # so that one thread compiles, and the others find what it made
        library, why = load(Path(__file__).parent, FLAGS, make=make)
    if library is None:
        return None, why
    library.resample.argtypes, library.resample.restype = _ARGUMENTS, _INT
    return library.resample, why
