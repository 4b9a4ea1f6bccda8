"""Tensors in PyTorch's files, and NumPy's arrays in pickles: find their numbers, and read them.

A file contains the names of functions that make tensors. These are never called: REBUILD gives a replacement for each.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod

import numpy as np
import torch
from torch import Tensor

from resnetkit.convert.files.pickles import Name, PickleError, Record, Reference
from resnetkit.convert.files.pytorch import read_pickles
from resnetkit.convert.files.storages import DTYPES, InMemory, Storage, Unread

MOST_DIMENSIONS = 16
"""Largest number of dimensions of a tensor."""
MOST_STEPS_WITHIN = 200
"""Largest number of instructions of a pickle inside a storage, in a plain pickle. It needs about forty."""
NUMPY = {
    dtype.str[1:]: torch.from_numpy(np.zeros(1, dtype)).dtype
    for dtype in map(np.dtype, ("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"))
}
"""NumPy's type code, without the byte order -> torch's dtype."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file that was not read yet."""

    storage: Storage
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as in torch."""
    offset: int
    """Index of the tensor's first element in the storage."""
    quantised: "Quantised | None" = None

    @property
    def nbytes(self) -> int:
        """Number of bytes of the tensor in memory."""
        return prod(self.shape) * (4 if self.quantised else self.dtype.itemsize)

    def read(self) -> Tensor:
        """Return the tensor, which shares the storage's memory if possible. A quantised tensor becomes float32."""
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
    """The quantisation of a tensor: a real number is scale × (whole number - zero)."""

    scales: tuple[float, ...]
    zeros: tuple[float, ...]
    axis: int | None
    """Dimension that has one scale and one zero for each index; None for one pair for the whole tensor."""

    def numbers(self, tensor: Tensor) -> Tensor:
        """Return the real numbers for a tensor of whole numbers, as float32."""
        shape = [-1 if side == self.axis else 1 for side in range(tensor.ndim)] if self.axis is not None else []
        scales, zeros = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in (self.scales, self.zeros))
        return ((tensor.double() - zeros) * scales).float()


Leaf = Stored | Unread


def tensor_of(value: object) -> Leaf | None:
    """Return the tensor that a record or reference describes; None for other values. Raises PickleError if broken."""
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
                    raise PickleError(f"a tensor in it does not have PyTorch's form ({name})") from error
            case _:
                return None
    raise PickleError("a tensor in it is wrapped too often")


def _view(storage: object, offset: object, size: object, stride: object, *rest: object) -> Leaf:
    """Return the tensor of _rebuild_tensor and _rebuild_tensor_v2: a view of a storage."""
    metadata = rest[2] if len(rest) > 2 else None
    if isinstance(metadata, Record) and metadata.entries:
        return Unread("a conjugate or negative view", _sizes(size))
    found = storage_of(storage)
    return found if isinstance(found, Unread) else checked(found, found.dtype, offset, size, stride)


def _view_of_type(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> Leaf:
    """Return the tensor of _rebuild_tensor_v3: a view of a storage of bytes, with its own dtype."""
    found = storage_of(storage)
    if isinstance(found, Unread):
        return found
    kind = DTYPES.get(dtype.text) if isinstance(dtype, Name) else None
    if kind is None:
        return Unread(f"a tensor of {dtype.text}" if isinstance(dtype, Name) else "a tensor of no type", _sizes(size))
    bytes_there = found.count * found.dtype.itemsize
    of_type = replace(found, dtype=kind, start=found.start * found.dtype.itemsize // kind.itemsize)
    return checked(replace(of_type, count=bytes_there // kind.itemsize), kind, offset, size, stride)


def checked(storage: Storage, dtype: torch.dtype, offset: object, size: object, stride: object) -> Stored:
    """Return a view of a storage. Raises PickleError for invalid arguments, and for a view that leaves the storage."""
    shape, strides = _sizes(size), _sizes(stride)
    if not isinstance(offset, int) or offset < 0 or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise PickleError("a tensor in it has an invalid shape")
    last = offset + sum((side - 1) * step for side, step in zip(shape, strides, strict=True))
    if prod(shape) and last >= storage.count:
        raise PickleError(f"a tensor of {'×'.join(map(str, shape)) or 'one number'} ends after its storage")
    return Stored(storage, dtype, shape, strides, offset)


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, Record) and value.name == "torch.Size" and isinstance(value.args, tuple):
        (value,) = value.args
    if not isinstance(value, (tuple, list)):
        raise PickleError("a tensor in it has an invalid shape")
    sizes = tuple(side for side in value if isinstance(side, int) and 0 <= side < 2**62)
    if len(sizes) != len(value):
        raise PickleError("a tensor in it has an invalid shape")
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
            raise PickleError("a quantised tensor in it does not have one scale for each channel")
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
"""PyTorch's function that makes a tensor -> our function, which makes a Stored from the same arguments."""
UNREAD = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (meta)",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another class",
}
"""PyTorch's function that makes a tensor which can't be read -> the description of the tensor."""
WRAPPERS = {
    *(f"torch._utils._rebuild_{name}" for name in ("parameter", "parameter_with_state", "xla_tensor")),
    *(f"torch._utils._rebuild_device_tensor_from_{kind}" for kind in ("numpy", "cpu_tensor")),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.variable.Variable"),
}
"""PyTorch's functions and classes whose first argument is the tensor."""
DERIVED = {f"{module}._rebuild_from_type{v}" for module in ("torch._tensor", "torch.tensor") for v in ("", "_v2")}
"""PyTorch's functions that make a tensor of a derived class.

Their arguments are a function of REBUILD, the class, and the arguments of the function.
"""
ARRAYS = {
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
}
"""NumPy's functions that make arrays."""
MOST_WRAPPERS = 8
"""Largest number of wrappers around one tensor."""


def storage_of(value: object) -> Storage | Unread:
    """Return the storage of a reference, after `bind`, or of bytes in a plain pickle. Raises PickleError."""
    if isinstance(value, Record) and value.name == "torch.storage._load_from_bytes":
        return _storage_in_bytes(value)
    if isinstance(value, Reference) and isinstance(value.to, Storage | Unread):
        return value.to
    raise PickleError("a tensor in it has no storage")


def _storage_in_bytes(record: Record) -> Storage | Unread:
    """Return a storage that is inside a plain pickle, as the bytes of another PyTorch file."""
    content = record.args[0] if isinstance(record.args, tuple) and len(record.args) == 1 else None
    if not isinstance(content, bytes):
        raise PickleError("a tensor in it has no storage")
    inner = read_pickles(BytesIO(content), len(content), most_steps=MOST_STEPS_WITHIN)
    if isinstance(inner, Reference) and isinstance(inner.to, Storage | Unread):
        return inner.to
    raise PickleError("a tensor in it has no storage")


def raw_of(value: object) -> bytes | str | None:
    """Return bytes in a pickle, which Python 2 writes as text with one character per byte; None for other values."""
    match value:
        case bytes() | str():
            return value
        case Record(name="builtins.bytes" | "__builtin__.bytes", args=()):
            return b""
        case Record(name="builtins.bytearray" | "__builtin__.bytearray", args=((bytes() | str()) as inner, *_)):
            return inner
    return None


def _of_numpy(record: Record) -> Leaf | None:
    """Return a NumPy array as a tensor; None for an array of objects or text."""
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
        raise PickleError("an array in it has a wrong number of bytes")
    strides = [1] * len(shape)
    order = range(1, len(shape)) if by_columns is True else range(len(shape) - 2, -1, -1)
    for side in order:
        before = side - 1 if by_columns is True else side + 1
        strides[side] = strides[before] * shape[before]
    storage = Storage(InMemory(values, big_endian=big_endian), "", dtype, 0, prod(shape))
    return checked(storage, dtype, 0, shape, tuple(strides))


def numpy_type(value: object) -> tuple[torch.dtype, bool] | None:
    """Return (dtype, whether it is big-endian) from a record of numpy.dtype; None for other types than numbers."""
    match value:
        case Record(name="numpy.dtype", args=(str() as code, *_), state=state):
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
            dtype = NUMPY.get(code)
            return (dtype, order == ">") if dtype else None
    return None
