"""A table on disk that only grows: rows of one shape, each found by its key."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError

KEY_BYTES = 16


class Table:
    """Rows of numbers on disk, memory-mapped when they are read.

    Two files: `<name>.rows` has the rows one after another, `<name>.keys` has their keys. A row counts when its key is
    written, which happens after the row is on the disk.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        """Open the table of `path` (without a suffix), or begin it with the first `append`."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._rows, self._keys = path.with_name(path.name + ".rows"), path.with_name(path.name + ".keys")
        self._places: dict[bytes, int] = {}
        keys = self._keys.read_bytes() if self._keys.is_file() else b""
        rows = self._rows.stat().st_size // self.row_bytes if self._rows.is_file() else 0
        for place in range(min(len(keys) // KEY_BYTES, rows)):
            self._places[keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]] = place
        self._count = min(len(keys) // KEY_BYTES, rows)

    def __len__(self) -> int:
        """Number of rows."""
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    @property
    def row_bytes(self) -> int:
        """Size of a row on disk."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def places(self, keys: list[bytes]) -> NDArray[np.int64]:
        """Return the row of each key, int64 (n,); -1 for a key without a row."""
        return np.array([self._places.get(key, -1) for key in keys], np.int64)

    def rows(self) -> NDArray[np.generic]:
        """Return all rows, (len(self), *shape), as a read-only memory map."""
        if not self._count:
            return np.zeros((0, *self.shape), self.dtype)
        return np.memmap(self._rows, self.dtype, "r", shape=(self._count, *self.shape))

    def append(self, keys: list[bytes], rows: NDArray[np.generic]) -> None:
        """Add rows (n, *shape). Raises DataError if the disk is full or can't be written."""
        if not keys:
            return
        try:
            self._rows.parent.mkdir(parents=True, exist_ok=True)
            self._write(self._rows, self._count * self.row_bytes, np.ascontiguousarray(rows, self.dtype).tobytes())
            self._write(self._keys, self._count * KEY_BYTES, b"".join(keys))
        except OSError as error:
            raise DataError(
                f"{self._rows} can't be written: {error.strerror or error}. Free some space, give a smaller "
                "`cache_gb`, or set RESNETKIT_CACHE to another folder"
            ) from error
        for key in keys:
            self._places[key] = self._count
            self._count += 1

    @staticmethod
    def _write(path: Path, offset: int, content: bytes) -> None:
        """Write at `offset`, and cut off what an interrupted write left after it."""
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
