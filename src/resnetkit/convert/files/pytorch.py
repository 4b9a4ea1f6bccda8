"""PyTorch's files to inert values and to tensors that are read when they are asked for; nothing of a file is ever run.

Four forms: a zip archive (since 1.6, and TorchScript's), pickles with the numbers behind them (since 0.1.10), a tar
archive (before that), and a bare pickle, whose numbers lie in it.
"""

import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from typing import IO, Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from resnetkit.convert.files.pickles import Name, PickleError, Pickles, Record, Reference

MAGIC = 0x1950A86A20F9469CFC6C
"""What the form between tar and zip begins with, as a pickle."""
MOST_DIMENSIONS = 16
MOST_STEPS_WITHIN = 200
"""Instructions of a storage that is a file in a pickle: some forty. There can be as many such files as tensors."""
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
"""By the names of their classes, less "Storage"; numbers of quantised ones lie there as whole numbers."""
DTYPES = {
    str(dtype): dtype
    for dtype in (
        *STORAGES.values(),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    )
}
NUMPY = {
    dtype.str[1:]: torch.from_numpy(np.zeros(1, dtype)).dtype
    for dtype in map(np.dtype, ("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
}
"""By NumPy's codes, less the order of bytes."""


class Blobs(Protocol):
    """Where a file's numbers lie, by key."""

    def size(self, key: str) -> int:
        """Bytes that are there; KeyError where nothing is."""
        ...

    def read(self, key: str) -> bytearray:
        """The bytes."""
        ...

    @property
    def big_endian(self) -> bool:
        """Whether the first byte of a number is the highest."""
        ...


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in a file that tensors are views of; `start` and `count` are in elements of `dtype`."""

    blobs: Blobs
    key: str
    dtype: torch.dtype
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file, not read yet."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """In elements, from the storage's first."""
    quantised: "Quantised | None" = None

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return prod(self.shape) * (4 if self.quantised else self.dtype.itemsize)

    def read(self) -> Tensor:
        """The tensor, a view of the bytes that were read; what was quantised comes as float32."""
        start = (self.storage.start + self.offset) * self.dtype.itemsize
        span = 1 + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        if not prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        content = self.storage.blobs.read(self.storage.key)
        flat = torch.frombuffer(content, dtype=torch.uint8)[start : start + span * self.dtype.itemsize]
        if self.storage.blobs.big_endian != (sys.byteorder == "big") and self.dtype.itemsize > 1:
            flat = torch.from_numpy(flat.numpy().view(f"u{self.dtype.itemsize}").byteswap().view(np.uint8))
        if flat.storage_offset() % self.dtype.itemsize:
            flat = flat.clone()
        tensor = flat.view(self.dtype).as_strided(self.shape, self.strides)
        return self.quantised.numbers(tensor) if self.quantised else tensor


@dataclass(frozen=True, eq=False)
class Quantised:
    """What whole numbers stand for: scale × (number - zero), with one of each for a tensor or for each channel."""

    scales: tuple[float, ...]
    zeros: tuple[float, ...]
    axis: int | None

    def numbers(self, tensor: Tensor) -> Tensor:
        """In float32."""
        shape = [-1 if side == self.axis else 1 for side in range(tensor.ndim)] if self.axis is not None else []
        scales, zeros = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in (self.scales, self.zeros))
        return ((tensor.double() - zeros) * scales).float()


@dataclass(frozen=True)
class Unread:
    """A tensor that is not read, and why: "a sparse tensor"."""

    what: str
    shape: tuple[int, ...] = ()
    nbytes = 0


Leaf = Stored | Unread


def tensor_of(value: object) -> Leaf | None:
    """The tensor that a record would be made into, or None for anything else. PickleError where it can't be one."""
    for _ in range(MOST_WRAPPERS):
        match value:
            case Reference(to=Stored() | Unread() as found):
                return found
            case Record(name=name, args=(inner, *_)) if name in WRAPPERS:
                value = inner
            case Record(name=name, args=(Name(text=function), _, args, *_)) if name in DERIVED:
                value = Record(function, args)
            case Record(name=name) if name in UNREAD:
                return Unread(UNREAD[name])
            case Record(name=name) if name in ARRAYS:
                return _of_numpy(value)
            case Record(name=name, args=tuple() as args) if name in REBUILD:
                try:
                    return REBUILD[name](*args)
                except PickleError:
                    raise
                except (TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
                    raise PickleError(f"a tensor in it is not what PyTorch writes ({name})") from error
            case _:
                return None
    raise PickleError("a tensor in it is wrapped too often")


def _view(storage: object, offset: object, size: object, stride: object, *rest: object) -> Leaf:
    """A view of a storage: every number of it must lie there."""
    metadata = rest[2] if len(rest) > 2 else None
    if isinstance(metadata, Record) and metadata.entries:
        return Unread("a conjugate or negative view", _sizes(size))
    found = storage_of(storage)
    return found if isinstance(found, Unread) else _checked(found, found.dtype, offset, size, stride)


def _view_of_type(  # _rebuild_tensor_v3: of bytes
    storage: object,
    offset: object,
    size: object,
    stride: object,
    grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> Leaf:
    found = storage_of(storage)
    if isinstance(found, Unread):
        return found
    kind = DTYPES.get(dtype.text) if isinstance(dtype, Name) else None
    if kind is None:
        return Unread(f"a tensor of {dtype.text}" if isinstance(dtype, Name) else "a tensor of no type", _sizes(size))
    bytes_there = found.count * found.dtype.itemsize
    of_type = replace(found, dtype=kind, start=found.start * found.dtype.itemsize // kind.itemsize)
    return _checked(replace(of_type, count=bytes_there // kind.itemsize), kind, offset, size, stride)


def _checked(storage: Storage, dtype: torch.dtype, offset: object, size: object, stride: object) -> Stored:
    shape, strides = _sizes(size), _sizes(stride)
    if not isinstance(offset, int) or offset < 0 or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise PickleError("a tensor in it has no shape that there is")
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if prod(shape) and last >= storage.count:
        raise PickleError(f"a tensor of {'×'.join(map(str, shape)) or 'one number'} reaches beyond its storage")
    return Stored(storage, dtype, shape, strides, offset)


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, Record) and value.name == "torch.Size" and isinstance(value.args, tuple):
        (value,) = value.args
    if not isinstance(value, (tuple, list)):
        raise PickleError("a tensor in it has no shape that there is")
    sizes = tuple(side for side in value if isinstance(side, int) and 0 <= side < 2**62)
    if len(sizes) != len(value):
        raise PickleError("a tensor in it has no shape that there is")
    return sizes


def _quantised(storage: object, offset: object, size: object, stride: object, scheme: object, *_: object) -> Leaf:
    view = _view(storage, offset, size, stride)
    if not isinstance(view, Stored):
        return view
    if not isinstance(scheme, tuple):
        raise PickleError("a quantised tensor in it has no scale")
    kind = scheme[0].text
    if kind == "torch.per_tensor_affine":
        scales, zeros, axis = (float(scheme[1]),), (float(scheme[2]),), None
    elif kind in ("torch.per_channel_affine", "torch.per_channel_affine_float_qparams"):
        scales, zeros, axis = _floats(scheme[1]), _floats(scheme[2]), int(scheme[3])
        if not 0 <= axis < len(view.shape) or {len(scales), len(zeros)} != {view.shape[axis]}:
            raise PickleError("a quantised tensor in it has not as many scales as channels")
    else:
        return Unread(f"a tensor quantised as {kind}", view.shape)
    return replace(view, quantised=Quantised(scales, zeros, axis))


def _floats(value: object) -> tuple[float, ...]:
    if isinstance(value, list):
        return tuple(map(float, value))
    plain = isinstance(value, Record) and REBUILD.get(value.name) in (_view, _view_of_type)
    found = tensor_of(value) if plain else None
    if not isinstance(found, Stored) or len(found.shape) != 1:
        raise PickleError("a quantised tensor in it has no scale")
    if found.nbytes > 2**23:
        raise PickleError("a quantised tensor in it has more scales than channels")
    return tuple(map(float, found.read().tolist()))


REBUILD: Mapping[str, Callable[..., Leaf]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view_of_type,
    "torch._utils._rebuild_qtensor": _quantised,
}
"""What PyTorch's functions that make tensors are taken for; they themselves are never called."""
UNREAD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another class",
}
"""Those that make what is not read, and what that is."""
WRAPPERS = {
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state", "xla_tensor")),
    *(f"torch._utils._rebuild_device_tensor_from_{kind}" for kind in ("numpy", "cpu_tensor")),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.variable.Variable"),
}
"""What has a tensor as its first argument."""
DERIVED = {f"{module}._rebuild_from_type{v}" for module in ("torch._tensor", "torch.tensor") for v in ("", "_v2")}
"""What makes a tensor of a derived class: by a function of REBUILD, the class, and arguments."""
ARRAYS = {
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
}
MOST_WRAPPERS = 8


def storage_of(value: object) -> Storage | Unread:
    """The storage that a reference is to, once its file's `bind` has said where its bytes lie."""
    if isinstance(value, Record) and value.name == "torch.storage._load_from_bytes":
        return _storage_in_bytes(value)
    if isinstance(value, Reference) and isinstance(value.to, Storage | Unread):
        return value.to
    raise PickleError("a tensor in it has no storage")


def _bind(reference: Reference, blobs: Blobs) -> None:
    """Put the storage in the place of the text that refers to it: ("storage", class, key, device, numbers[, view])."""
    to = reference.to
    if not isinstance(to, tuple) or len(to) < 5 or to[0] != "storage":
        return
    _, kind, key, _device, count, *view = to
    if not isinstance(kind, Name) or not isinstance(key, str | int) or not isinstance(count, int) or count < 0:
        raise PickleError("a storage in it is not what PyTorch writes")
    dtype = _storage_type(kind)
    if dtype is None:
        reference.to = Unread(f"a tensor of {kind.text}")
        return
    storage = Storage(blobs, str(key), dtype, 0, count)
    if view and view[0] is not None:
        _, start, count = _numbers(view[0], 3)
        if start + count > storage.count:
            raise PickleError("a storage in it reaches beyond another that it is a part of")
        storage = replace(storage, start=start, count=count)
    reference.to = storage


def _storage_type(kind: Name) -> torch.dtype | None:
    """By the class's last name: of a device, too."""
    name = kind.text.rpartition(".")[2]
    return STORAGES.get(name.removesuffix("Storage").removeprefix("_")) if name.endswith("Storage") else None


def _numbers(value: object, count: int) -> tuple[Any, ...]:
    """A tuple or list of so many, all but the first whole numbers."""
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise PickleError("a storage in it is not what PyTorch writes")
    if not all(isinstance(item, int) and item >= 0 for item in value[1:]):
        raise PickleError("a storage in it is not what PyTorch writes")
    return tuple(value)


def _storage_in_bytes(record: Record) -> Storage | Unread:
    """A storage that a plain pickle holds as bytes: a file of PyTorch's in itself."""
    content = record.args[0] if isinstance(record.args, tuple) and len(record.args) == 1 else None
    if not isinstance(content, bytes):
        raise PickleError("a tensor in it has no storage")
    inner = read_pickles(BytesIO(content), len(content), most_steps=MOST_STEPS_WITHIN)
    if isinstance(inner, Reference) and isinstance(inner.to, Storage | Unread):
        return inner.to
    raise PickleError("a tensor in it has no storage")


def raw_of(value: object) -> bytes | str | None:
    """Bytes as a pickle holds them: as they are, or as text of Python 2, which has as many letters; or None."""
    match value:
        case bytes() | str():
            return value
        case Record(name="builtins.bytes" | "__builtin__.bytes", args=()):
            return b""
        case Record(name="builtins.bytearray" | "__builtin__.bytearray", args=((bytes() | str()) as inner, *_)):
            return inner
    return None


class InMemory:
    """Bytes that were in a pickle."""

    def __init__(self, content: bytes | str, *, big_endian: bool = False) -> None:
        self.content = content
        self.big_endian = big_endian

    def size(self, key: str) -> int:
        """Of them."""
        return len(self.content)

    def read(self, key: str) -> bytearray:
        """A copy: tensors may be written to."""
        return bytearray(self.content.encode("latin-1") if isinstance(self.content, str) else self.content)


def _of_numpy(record: Record) -> Leaf | None:
    """An array of NumPy's; None for one of objects or text."""
    match record:
        case Record(state=(_, size, kind, by_columns, content)):
            pass
        case Record(args=(content, kind, size, "C" | "F" as order)):
            by_columns = order == "F"
        case _:
            return None
    if (found := numpy_type(kind)) is None:
        return None
    dtype, big_endian = found
    values, shape = raw_of(content), _sizes(size)
    if values is None or len(values) != prod(shape) * dtype.itemsize:
        raise PickleError("an array in it has another size than it says")
    strides = [1] * len(shape)
    order = range(1, len(shape)) if by_columns is True else range(len(shape) - 2, -1, -1)
    for side in order:
        before = side - 1 if by_columns is True else side + 1
        strides[side] = strides[before] * shape[before]
    storage = Storage(InMemory(values, big_endian=big_endian), "", dtype, 0, prod(shape))
    return _checked(storage, dtype, 0, shape, tuple(strides))


def numpy_type(value: object) -> tuple[torch.dtype, bool] | None:
    """The type that a record of numpy.dtype says, and whether it is big-endian; None for others than numbers."""
    match value:
        case Record(name="numpy.dtype", args=(str() as code, *_), state=state):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
            dtype = NUMPY.get(code)
            return (dtype, order == ">") if dtype else None
    return None


def read_pickles(file: BinaryIO, size: int, *, most_steps: int | None = None) -> object:
    """The value in a file that begins with a pickle, from where it is: PyTorch's form before 1.6, or a bare pickle."""
    start = file.tell()
    pickles = Pickles(file, size, most_steps=most_steps)
    first = pickles.load()
    if not isinstance(first, int) or first != MAGIC:
        for reference in pickles.references:
            reference.to = Unread("a tensor whose numbers are not in the file")
        return first
    protocol, _system = pickles.load(), pickles.load()
    if protocol != 1001:
        raise PickleError("its version of PyTorch's form is unknown")
    pickles.references.clear()
    value = pickles.load()
    references, keys = list(pickles.references), pickles.load()
    if not isinstance(keys, list):
        raise PickleError("it does not name its storages")
    blobs = Sequential(file)
    types: dict[str, torch.dtype] = {}
    for reference in references:
        _bind(reference, blobs)
        if isinstance(reference.to, Storage):
            types[reference.to.key] = reference.to.dtype
        elif isinstance(reference.to, Unread):
            raise PickleError(f"it has {reference.to.what}, so that nothing behind it is found")
    at = start + size - pickles.left
    for key in keys:
        at = blobs.note(str(key) if isinstance(key, str | int) else "", at, start + size, types)
    for reference in references:
        _must_be_there(reference)
    return value


class Sequential:
    """Storages one after another, each behind the number of its elements."""

    big_endian = False
    """Whatever the machine that wrote them was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._read: dict[str, bytearray] = {}

    def note(self, key: str, at: int, end: int, types: Mapping[str, torch.dtype]) -> int:
        """Where a storage is, whose count is at `at`; returns where it ends."""
        if key not in types or key in self._places or at + 8 > end:
            raise PickleError("it is broken off" if at + 8 > end else "it has numbers of no tensor")
        self._file.seek(at)
        (count,) = struct.unpack("<q", self._file.read(8))
        size = count * types[key].itemsize
        if count < 0 or at + 8 + size > end:
            raise PickleError("it is broken off")
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
    """Storages that are files in an archive, `data/<key>`."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, bytearray] = {}
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.NameToInfo else b"little"
        if order not in (b"little", b"big"):
            raise PickleError("its order of bytes is unknown")
        self.big_endian = order == b"big"

    def size(self, key: str) -> int:
        return self._archive.NameToInfo[f"{self._folder}data/{key}"].file_size

    def read(self, key: str) -> bytearray:
        if key not in self._read:
            content = bytearray(self.size(key))
            with self._archive.open(f"{self._folder}data/{key}") as file:
                _fill(file, content)
                if file.read(1):  # past the end, so that the checksum is compared
                    raise PickleError("a storage in it is longer than it says")
            self._read[key] = content
        return self._read[key]


def _fill(file: Any, content: bytearray) -> None:
    view, done = memoryview(content), 0
    while done < len(content):
        count = file.readinto(view[done:])
        if not count:
            raise PickleError("it is broken off")
        done += count


def _must_be_there(reference: Reference) -> None:
    if isinstance(reference.to, Storage):
        storage = reference.to
        try:
            there = storage.blobs.size(storage.key)
        except KeyError:
            raise PickleError(f"its storage {storage.key[:40]!r} is missing") from None
        if there < (storage.start + storage.count) * storage.dtype.itemsize:
            raise PickleError(f"its storage {storage.key[:40]!r} is shorter than it says")


def read_zip(archive: zipfile.ZipFile) -> object:
    """The value in PyTorch's archive, also in TorchScript's, of which only the tensors' names are read."""
    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(names) != 1:
        raise PickleError(f"it has {len(names)} files data.pkl, and PyTorch would read one")
    folder = names[0].removesuffix("data.pkl")
    with archive.open(names[0]) as file:
        pickles = Pickles(BytesIO(file.read()), archive.getinfo(names[0]).file_size)
    value = pickles.load()
    blobs = Zipped(archive, folder)
    for reference in pickles.references:
        _bind(reference, blobs)
        _must_be_there(reference)
    return value


def read_tar(file: BinaryIO, size: int) -> object:
    """The value in PyTorch's form before 0.1.10: storages, then tensors, then what refers to them by number."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        parts: dict[str, tuple[IO[bytes], int]] = {}
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and not member.sparse else None
            if content is not None and member.name in ("storages", "tensors", "pickle") and member.size <= size:
                parts[member.name] = (content, member.size)
        if len(parts) != 3:
            raise PickleError("it is a tar archive, but none of PyTorch's")
        storages = _tar_storages(*parts["storages"])
        tensors = _tar_tensors(*parts["tensors"], storages)
        # All of it is in memory now, as it may be: such files are small.
        pickles = Pickles(*parts["pickle"])
        value = pickles.load()
        for reference in pickles.references:
            to = reference.to
            if isinstance(to, str | int):
                found = tensors.get(str(to))
                reference.to = found if found is not None else storages.get(str(to))
        return value


def _tar_storages(file: IO[bytes], size: int) -> dict[str, Storage]:
    storages: dict[str, Storage] = {}
    pickles = Pickles(file, size)
    for _ in range(_count(pickles.load())):
        key, _device, kind = _three(pickles.load())
        dtype = _storage_type(kind) if isinstance(kind, Name) else None
        if dtype is None:
            raise PickleError("a storage in it is of an unknown kind")
        (count,) = struct.unpack("<q", pickles.read(8))
        storages[str(key)] = Storage(InMemory(pickles.read(count * dtype.itemsize)), "", dtype, 0, count)
    views = pickles.load()
    for view in views if isinstance(views, list) else []:
        key, root, start, count = _numbers(view, 4)
        whole = storages.get(str(root))
        if whole is None or start + count > whole.count:
            raise PickleError("a storage in it reaches beyond another that it is a part of")
        storages[str(key)] = replace(whole, start=start, count=count)
    return storages


def _tar_tensors(file: IO[bytes], size: int, storages: Mapping[str, Storage]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    pickles = Pickles(file, size)
    for _ in range(_count(pickles.load())):
        key, storage, _kind = _three(pickles.load())
        (dimensions,) = struct.unpack("<q", pickles.read(8)[:4] + bytes(4))
        shape, strides = (struct.unpack(f"<{dimensions}q", pickles.read(8 * dimensions)) for _ in range(2))
        (offset,) = struct.unpack("<q", pickles.read(8))
        if (found := storages.get(str(storage))) is None:
            raise PickleError("a tensor in it has no storage")
        tensors[str(key)] = _checked(found, found.dtype, offset, shape, strides)
    return tensors


def _count(value: object) -> int:
    if not isinstance(value, int):
        raise PickleError("it does not say how many tensors it has")
    return value


def _three(value: object) -> Sequence[object]:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise PickleError("a storage in it is not what PyTorch writes")
    return value
