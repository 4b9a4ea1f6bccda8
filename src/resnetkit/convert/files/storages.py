"""Storages: the numbers in PyTorch's files, of which tensors are views. They are read when a tensor is read."""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol

import torch

from resnetkit.convert.files.pickles import Name, PickleError, Reference

STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "Untyped": torch.uint8,
}
"""Name of a storage class, without "Storage" -> its dtype. Quantised numbers are stored as whole numbers."""
DTYPES = {
    str(dtype): dtype
    for dtype in (
        *STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    )
}
"""Name of a dtype, such as "torch.float32" -> the dtype."""


class Blobs(Protocol):
    """The bytes of a file's storages, by key."""

    def size(self, key: str) -> int:
        """Return the number of bytes under `key`. Raises KeyError for an unknown key."""
        ...

    def read(self, key: str) -> bytearray:
        """Return the bytes under `key`."""
        ...

    @property
    def big_endian(self) -> bool:
        """Whether the first byte of a number is the most significant byte."""
        ...


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in a file, of which tensors are views. `start` and `count` are numbers of elements of `dtype`."""

    blobs: Blobs
    key: str
    dtype: torch.dtype
    start: int
    count: int


@dataclass(frozen=True)
class Unread:
    """A tensor that can't be read."""

    what: str
    """The reason, as a description: "a sparse tensor"."""
    shape: tuple[int, ...] = ()
    nbytes = 0


def bind(reference: Reference, blobs: Blobs) -> None:
    """Replace the tuple in a reference, ("storage", class, key, device, count[, view]), by a Storage or an Unread.

    Other references stay unchanged. Raises PickleError for a tuple that PyTorch does not write.
    """
    to = reference.to
    if not isinstance(to, tuple) or len(to) < 5 or to[0] != "storage":
        return
    _, kind, key, _device, count, *view = to
    if not isinstance(kind, Name) or not isinstance(key, str | int) or not isinstance(count, int) or count < 0:
        raise PickleError("a storage in it does not have PyTorch's form")
    dtype = storage_type(kind)
    if dtype is None:
        reference.to = Unread(f"a tensor of {kind.text}")
        return
    storage = Storage(blobs, str(key), dtype, 0, count)
    if view and view[0] is not None:
        _, start, count = numbers_in(view[0], 3)
        if start + count > storage.count:
            raise PickleError("a storage in it is a part of another storage, but ends after it")
        storage = replace(storage, start=start, count=count)
    reference.to = storage


def storage_type(kind: Name) -> torch.dtype | None:
    """Return the dtype of a storage class, on any device; None for an unknown class."""
    name = kind.text.rpartition(".")[2]
    return STORAGES.get(name.removesuffix("Storage").removeprefix("_")) if name.endswith("Storage") else None


def numbers_in(value: object, count: int) -> tuple[Any, ...]:
    """Return a tuple or list of `count` values as a tuple.

    Raises PickleError for another length, and if a value after the first is not a whole number of at least 0.
    """
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise PickleError("a storage in it does not have PyTorch's form")
    if not all(isinstance(item, int) and item >= 0 for item in value[1:]):
        raise PickleError("a storage in it does not have PyTorch's form")
    return tuple(value)


def check_size(reference: Reference) -> None:
    """Raise PickleError if the storage of a reference is missing in the file, or has too few bytes there."""
    if isinstance(reference.to, Storage):
        storage = reference.to
        try:
            there = storage.blobs.size(storage.key)
        except KeyError:
            raise PickleError(f"its storage {storage.key[:40]!r} is missing") from None
        if there < (storage.start + storage.count) * storage.dtype.itemsize:
            raise PickleError(f"its storage {storage.key[:40]!r} has fewer bytes than it should")


class InMemory:
    """One storage whose bytes are in memory already."""

    def __init__(self, content: bytes | str, *, big_endian: bool = False) -> None:
        self.content = content
        self.big_endian = big_endian

    def size(self, key: str) -> int:
        """Return the number of bytes."""
        return len(self.content)

    def read(self, key: str) -> bytearray:
        """Return a copy of the bytes, because tensors may be changed later."""
        return bytearray(self.content.encode("latin-1") if isinstance(self.content, str) else self.content)


class Sequential:
    """Storages one after another in a file. The number of elements comes before each of them."""

    big_endian = False
    """In this form numbers are always little-endian."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._read: dict[str, bytearray] = {}

    def note(self, key: str, at: int, end: int, types: Mapping[str, torch.dtype]) -> int:
        """Note the place of a storage, and return the position after it.

        `at` is the position of its number of elements, `end` the end of the file, both in bytes; `types` contains the
        dtypes by key. Raises PickleError.
        """
        if key not in types or key in self._places or at + 8 > end:
            raise PickleError("it is truncated" if at + 8 > end else "it contains numbers that belong to no tensor")
        self._file.seek(at)
        (count,) = struct.unpack("<q", self._file.read(8))
        size = count * types[key].itemsize
        if count < 0 or at + 8 + size > end:
            raise PickleError("it is truncated")
        self._places[key] = (at + 8, size)
        return at + 8 + size

    def size(self, key: str) -> int:
        return self._places[key][1]

    def read(self, key: str) -> bytearray:
        if key not in self._read:
            at, size = self._places[key]
            self._file.seek(at)
            self._read[key] = content = bytearray(size)
            _fill(self._file, content)
        return self._read[key]


class Zipped:
    """Storages that are files in a zip archive: `data/<key>`."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, bytearray] = {}
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.NameToInfo else b"little"
        if order not in (b"little", b"big"):
            raise PickleError("its byte order is unknown")
        self.big_endian = order == b"big"

    def size(self, key: str) -> int:
        return self._archive.NameToInfo[f"{self._folder}data/{key}"].file_size

    def read(self, key: str) -> bytearray:
        if key not in self._read:
            content = bytearray(self.size(key))
            with self._archive.open(f"{self._folder}data/{key}") as file:
                _fill(file, content)
                if file.read(1):  # zipfile compares the checksum only at the end of the file
                    raise PickleError("a storage in it has more bytes than it should")
            self._read[key] = content
        return self._read[key]


def _fill(file: Any, content: bytearray) -> None:
    view, done = memoryview(content), 0
    while done < len(content):
        count = file.readinto(view[done:])
        if not count:
            raise PickleError("it is truncated")
        done += count
