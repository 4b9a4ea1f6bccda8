"""Suppress the warnings and messages of Pillow and libtiff about broken files, safely with threads."""

import ctypes
import re
import warnings
from functools import cache
from threading import Lock
from typing import Any, cast

from PIL import Image

# Pillow warns above a number of pixels and refuses pictures above twice that number; the error is enough. Some cameras
# write broken EXIF blocks with intact pixels.
IGNORED_WARNINGS: tuple[Any, ...] = (
    ("ignore", None, Image.DecompressionBombWarning, None, 0),
    ("ignore", re.compile("Corrupt EXIF data"), UserWarning, None, 0),
)
"""Warnings of Pillow that are not shown, as entries of warnings.filters."""


class _WarningsIgnored:
    """Within the block, IGNORED_WARNINGS are not shown. The filters are restored when the last thread leaves the block.

    catch_warnings() is not safe with threads: it restores a list of filters that another thread may have replaced.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads = 0
        self._lists: list[list[Any]] = []
        """Lists of filters that contain our entries. There may be several, because catch_warnings() makes new lists."""

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            filters = cast("list[Any]", warnings.filters)
            if not filters or filters[0] is not IGNORED_WARNINGS[0]:
                # After filterwarnings(), Python would show warnings again that it has shown already.
                filters[:0] = IGNORED_WARNINGS
                self._lists.append(filters)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads:
                return
            for filters in (*self._lists, cast("list[Any]", warnings.filters)):
                for entry in IGNORED_WARNINGS:
                    while any(other is entry for other in filters):
                        filters.remove(entry)
            self._lists.clear()


warnings_ignored = _WarningsIgnored()


class _Silence:
    """Within the block, libtiff prints nothing on the terminal, because Pillow raises errors for broken files.

    libtiff's handlers belong to the process. So they are restored when the last thread leaves the block.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._threads = 0
        self._handlers: list[Any] = []

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._handlers = [set_handler(None) for set_handler in _handlers()]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                for set_handler, handler in zip(_handlers(), self._handlers, strict=True):
                    set_handler(handler)


libtiff_silent = _Silence()


@cache
def _handlers() -> tuple[Any, ...]:
    """Return the functions of Pillow's libtiff that set the handlers of warnings and errors and return the old ones."""
    try:
        library = ctypes.CDLL(Image.core.__file__)  # this also finds functions of the libraries that it loads
        functions = (library.TIFFSetWarningHandler, library.TIFFSetErrorHandler)
    except (OSError, AttributeError):  # Pillow is built in another way, as on Windows
        return ()
    for function in functions:
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    return functions
