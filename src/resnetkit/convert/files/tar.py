"""Read files of PyTorch before version 0.1.10: tar archives of storages, tensors, and a pickle that refers to them."""

import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, BinaryIO

from resnetkit.convert.files.pickles import Name, PickleError, Pickles
from resnetkit.convert.files.storages import InMemory, Storage, numbers_in, storage_type
from resnetkit.convert.files.tensors import Stored, checked


def read_tar(file: BinaryIO, size: int) -> object:
    """Return the value in a file of `size` bytes. Its pickle refers to storages and tensors by number."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        parts: dict[str, tuple[IO[bytes], int]] = {}
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and not member.sparse else None
            if content is not None and member.name in ("storages", "tensors", "pickle") and member.size <= size:
                parts[member.name] = (content, member.size)
        if len(parts) != 3:
            raise PickleError("it is a tar archive, but not PyTorch's")
        storages = _storages(*parts["storages"])
        tensors = _tensors(*parts["tensors"], storages)
        # Everything is in memory now. This is acceptable, because these files are small.
        pickles = Pickles(*parts["pickle"])
        value = pickles.load()
        for reference in pickles.references:
            to = reference.to
            if isinstance(to, str | int):
                found = tensors.get(str(to))
                reference.to = found if found is not None else storages.get(str(to))
        return value


def _storages(file: IO[bytes], size: int) -> dict[str, Storage]:
    storages: dict[str, Storage] = {}
    pickles = Pickles(file, size)
    for _ in range(_count(pickles.load())):
        key, _device, kind = _three(pickles.load())
        dtype = storage_type(kind) if isinstance(kind, Name) else None
        if dtype is None:
            raise PickleError("a storage in it is of an unknown kind")
        (count,) = struct.unpack("<q", pickles.read(8))
        storages[str(key)] = Storage(InMemory(pickles.read(count * dtype.itemsize)), "", dtype, 0, count)
    views = pickles.load()
    for view in views if isinstance(views, list) else []:
        key, root, start, count = numbers_in(view, 4)
        whole = storages.get(str(root))
        if whole is None or start + count > whole.count:
            raise PickleError("a storage in it is a part of another storage, but ends after it")
        storages[str(key)] = replace(whole, start=start, count=count)
    return storages


def _tensors(file: IO[bytes], size: int, storages: Mapping[str, Storage]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    pickles = Pickles(file, size)
    for _ in range(_count(pickles.load())):
        key, storage, _kind = _three(pickles.load())
        (dimensions,) = struct.unpack("<q", pickles.read(8)[:4] + bytes(4))
        shape, strides = (struct.unpack(f"<{dimensions}q", pickles.read(8 * dimensions)) for _ in range(2))
        (offset,) = struct.unpack("<q", pickles.read(8))
        if (found := storages.get(str(storage))) is None:
            raise PickleError("a tensor in it has no storage")
        tensors[str(key)] = checked(found, found.dtype, offset, shape, strides)
    return tensors


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise PickleError("it does not contain the number of its tensors")
    return value


def _three(value: object) -> Sequence[object]:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise PickleError("a storage in it does not have PyTorch's form")
    return value
