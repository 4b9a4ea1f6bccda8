"""Files of weights to tensors by name. They are data, whatever they are called: no code in them is ever run.

What a file is shows in its first bytes; its suffix is never asked. Everything that is wrong with one is a
ModelFileError that names it, and memory stays in proportion to its size: a header can claim anything.
"""

import io
import json
import math
import re
import struct
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.weights import wrong_values

NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where training scripts keep the state dict in a checkpoint, in the order in which they are looked for."""
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where they keep its moving average: read where nothing else is there."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers put before every name: DataParallel, torch.compile, Lightning."""
MOST_EXPANSION = 100
"""How many times its size on the disk a file may become in memory. Weights hardly compress; a bomb does by 1000."""


@dataclass(frozen=True)
class Weights:
    """What a file holds."""

    tensors: Mapping[str, Tensor]
    """By the names that their project gave them, less the wrappers' prefixes."""
    beside: tuple[str, ...] = ()
    """Other entries of a checkpoint, which are left out."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text in a .safetensors header."""
    objects: Mapping[str, object] = field(default_factory=dict)
    """What else lies beside the tensors, as plain values: None, bool, int, float, str, list and dict of these.

    By nested name: `args`, or `model.classes` where it lies beside a state dict in `model`. An object of a class is
    {"class": "argparse.Namespace", ...} with its attributes by name; tensors and long lists are left out.
    """
    part: str = ""
    """Where in the file the tensors were: `state_dict`, `learner.model`; empty where nothing is around them."""


def read_weights(path: Path) -> Weights:
    """Read a .pth, .pt, .th, .bin, .safetensors, .h5, .keras or .npz file, whatever its suffix.

    Raises ModelFileError where it is none of them, broken off, hostile, or holds values that aren't finite.
    """
    try:
        if path.is_dir():
            raise ModelFileError(
                f"{path} is a folder; give the file of weights in it, such as {path}/model.safetensors"
            )
        with path.open("rb") as file:
            reader = _reader(path, file)
            weights = _unwrapped(path, *reader(path, file))
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror or error}") from error
    _check(path, weights.tensors)
    return weights


Contents = tuple[Mapping[str, Any], Mapping[str, str]]
Reader = Callable[[Path, BinaryIO], Contents]


def _reader(path: Path, file: BinaryIO) -> Reader:
    """Tell what the file is by its first bytes."""
    start = file.read(1024)
    file.seek(0)
    if not start:
        raise ModelFileError(f"{path} is empty; get it anew")
    for signature, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(signature):
            raise ModelFileError(f"{path} is {what}")
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5
    if start[8:9] == b"{":  # after the header's length, eight bytes
        return _read_safetensors
    if start.startswith(b"\x80") or start[257:262] == b"ustar":  # a pickle, or PyTorch's form before version 0.1.10
        return _read_torch
    raise ModelFileError(f"{path} is no file of weights that is known here: PyTorch, safetensors, HDF5, Keras or .npz")


NO_WEIGHTS = {
    b"<": "a web page, not weights: the download went wrong; get it anew",
    b"version https://git-lfs": "a pointer of Git LFS, not the weights; run git lfs pull, or download the file itself",
    b"{": "JSON, not weights; give the file of weights beside it",
}


def _read_safetensors(path: Path, file: BinaryIO) -> Contents:
    from safetensors import SafetensorError, safe_open

    (length,) = struct.unpack("<Q", file.read(8))
    if length + 8 > path.stat().st_size:
        raise ModelFileError(f"{path} is broken off, or its header lies about its length; get it anew")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}, tensors.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise _broken(path, "safetensors", error) from error


class NumPyValue:
    """What stands for a number or an array of NumPy beside the weights: nothing of NumPy's is called to make it."""

    def __init__(self, *_: object) -> None:
        """Take what NumPy's would, and leave it."""

    def __setstate__(self, state: object) -> None:
        """The same."""


HARMLESS: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    Namespace,  # a script's arguments
    *(
        (NumPyValue, f"numpy{name}")
        for core in (".core.multiarray", "._core.multiarray")
        for name in (f"{core}.scalar", f"{core}._reconstruct")
    ),
    (NumPyValue, "numpy.dtype"),
    (NumPyValue, "numpy.ndarray"),
]
"""What a checkpoint may hold beside tensors: making one runs no code of the file's, nor any that it could misuse."""


def _read_torch(path: Path, file: BinaryIO) -> Contents:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle can make anything of it
        if "Weights only load failed" in str(error):
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise ModelFileError(
                f"{path} holds {found[1] if found else 'more than tensors'}; files with Python objects can run code: "
                'it is not read. If you made it, save its tensors alone: torch.save(net.state_dict(), "weights.pth")'
            ) from error
        raise _broken(path, "PyTorch", error) from error
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds {type(content).__name__}, not tensors by name; save net.state_dict()")
    return content, {}


def _read_zip(path: Path, file: BinaryIO) -> Contents:
    """PyTorch's form since 1.6, Keras' since 2.12 and NumPy's are all archives."""
    try:
        with zipfile.ZipFile(file) as archive:
            check_expansion(path, sum(info.file_size for info in archive.infolist()))
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise ModelFileError(f"{path} has two parts of one name; get it from a source you trust")
            if "model.weights.h5" in names:  # nothing is unpacked: other names in the archive mean nothing
                from resnetkit.convert.hdf5 import read_keras

                config = archive.read("config.json") if "config.json" in names else b"{}"
                return read_keras(path, io.BytesIO(archive.read("model.weights.h5")), config), {}
            if names and all(name.endswith(".npy") for name in names):
                return {name[:-4]: _array(path, name, archive.read(name)) for name in names}, {}
    except UsageError:  # which is a ValueError
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        raise _broken(path, "zip", error) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ModelFileError(f"{path} is an archive without weights in it; give a .pth, .keras or .npz file")
    file.seek(0)
    return _read_torch(path, file)


def _read_hdf5(path: Path, file: BinaryIO) -> Contents:
    from resnetkit.convert.hdf5 import read_hdf5

    return read_hdf5(path, file), {}


def _array(path: Path, name: str, content: bytes) -> Tensor:
    """One array of an .npz file: numbers only, and as many as its header says."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
    except Exception as error:  # the header is a Python literal, and parsing a hostile one can fail in many ways
        raise _broken(path, "npz", error) from error
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ModelFileError(
            f"{path}: {name} holds {dtype}, not numbers; an .npz file of weights has arrays of numbers"
        )
    values = content[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(values) or any(side < 0 for side in shape):
        raise ModelFileError(
            f"{path}: {name} should be {shape} {dtype}, but has {len(values)} bytes; get the file anew"
        )
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))


def check_expansion(path: Path, claimed_bytes: int) -> None:
    """Refuse what would take far more memory than its size suggests; before any of it is read."""
    if claimed_bytes > MOST_EXPANSION * path.stat().st_size:
        raise ModelFileError(
            f"{path} has {path.stat().st_size:,} bytes but claims {claimed_bytes:,} when unpacked, as a zip bomb does; "
            "get it from a source you trust"
        )


def _broken(path: Path, kind: str, error: Exception) -> ModelFileError:
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    return ModelFileError(f"{path} is not a whole {kind} file ({said[:200]}); get it anew")


def _unwrapped(path: Path, content: Mapping[str, Any], metadata: Mapping[str, str]) -> Weights:
    """Out of a checkpoint's nests and from under wrappers' prefixes: tensors by name, and nothing else."""
    beside: list[str] = []
    objects: dict[str, object] = {}
    part = ""
    while not any(isinstance(value, Tensor) for value in content.values()):
        nest = next((n for n in (*NESTS, *AVERAGES) if isinstance(content.get(n), Mapping) and content[n]), None)
        if nest is None:
            held = ", ".join(map(str, list(content)[:5])) or "nothing"
            raise ModelFileError(f"{path} holds no tensors by name, but {held}; save net.state_dict() from its project")
        beside += [str(name) for name in content if name != nest]
        objects |= {f"{part}{name}": _plain(value) for name, value in content.items() if name != nest}
        content = content[nest]
        part += f"{nest}."
    if others := [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        kinds = type(content[others[0]]).__name__
        raise ModelFileError(
            f"{path}: {others[0]!r} is {kinds}, not a tensor with a name ({len(others)} such); save net.state_dict()"
        )
    names = list(content)
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return Weights(dict(zip(names, content.values(), strict=True)), tuple(beside), metadata, objects, part.rstrip("."))


def _plain(value: object) -> object:
    """`value` as plain values; a tensor is only its type."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case Namespace():
            return {"class": "argparse.Namespace"} | {name: _plain(item) for name, item in vars(value).items()}
        case _:
            return {"class": f"{type(value).__module__}.{type(value).__qualname__}"}


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no plain numbers, bigger than the file, or with values that no network can have."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ModelFileError(f"{path}: {name} is no plain tensor of real numbers; save dense float tensors")
    check_expansion(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    broken = {name: wrong for name, tensor in tensors.items() if (wrong := _not_finite(tensor))}
    if broken:
        first = next(iter(broken))
        raise ModelFileError(
            f"{path}: {first} has {broken[first]:,} values that are not finite"
            f"{f', and so have {len(broken) - 1} other tensors' if len(broken) > 1 else ''}; "
            "the training diverged or the file is damaged: get another"
        )
    for name, tensor in tensors.items():
        if wrong := wrong_values(name, tensor):
            raise ModelFileError(f"{path}: {name} holds {wrong}; the file is damaged or quantised: get another")


def _not_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    return tensor.numel() - int(torch.isfinite(tensor.float()).sum())


def parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """Read JSON out of a file of weights."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} has a broken {what} ({error}); get it anew") from error
