"""Read files of weights as tensors by name. Code in a file is never run.

The first bytes of a file determine its format; its suffix has no effect. Every fault of a file is a ModelFileError with
the file's name. The memory that is used is limited by the file's size, because a header can claim any size.
"""

import io
import lzma
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from resnetkit.convert.files.checks import check_expansion, check_kinds, check_values
from resnetkit.convert.files.parts import Choice, NoTensorsError, around, choose, groups
from resnetkit.convert.files.pickles import PickleError, Record
from resnetkit.convert.files.pytorch import read_pickles, read_zip
from resnetkit.convert.files.tar import read_tar
from resnetkit.convert.files.tensors import Stored
from resnetkit.convert.files.values import children, kind_of, text_of
from resnetkit.display import shell
from resnetkit.errors import ModelFileError, ResnetkitError, UsageError
from resnetkit.files import expanded


@dataclass(frozen=True)
class Weights:
    """The network's tensors in a file, and the file's other values."""

    tensors: Mapping[str, Tensor]
    """Tensors by their names in the project, without prefixes of wrappers."""
    other_entries: tuple[str, ...] = ()
    """Names of the file's other entries, which are left out."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text entries in a .safetensors header."""
    objects: Mapping[str, object] = field(default_factory=dict)
    """The other values in the file, as plain values: None, bool, int, float, str, list and dict of these.

    The keys are nested names: `args`, or `model.classes` for a value beside a state dict in `model`. An object of a
    class is {"class": "argparse.Namespace", ...} with its attributes by name. Tensors and long lists are left out.
    """
    part: str = ""
    """The tensors' place in the file: `state_dict`, `model.encoder_q`; empty at the top level."""
    others: tuple[str, ...] = ()
    """Other parts that contain a network, as `part` accepts them: averaged weights, a teacher."""
    modules: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """If the file contains a whole network: name of a module ("" for the network itself) -> its plain attributes.

    {"layer2.0.conv1": {"class": "torch.nn.modules.conv.Conv2d", "stride": [2, 2], ...}}.
    """


@dataclass(frozen=True)
class Contents:
    """The whole content of a file, before the network is chosen."""

    root: object
    """A dictionary or a record. It contains tensors, or records and references of tensors that are read later."""
    form: str
    """Name of the file's format, for people."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text entries in a .safetensors header."""


def weights_file(file: str | Path) -> Path:
    """Return the path of a file, with ~ expanded. Raises ModelFileError if it does not exist."""
    path = expanded(file)
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give a file of weights")
    return path


def read_weights(path: Path, *, part: str | None = None) -> Weights:
    """Read a .pth, .pt, .th, .bin, .pkl, .safetensors, .h5, .keras or .npz file. The suffix has no effect.

    The network's tensors are those in `part`; without it, the rules of `parts` choose them. Raises ModelFileError for a
    file in another format, a truncated or hostile file, and for values that aren't finite; UsageError if the file has
    no such part.
    """
    with opened(path) as contents:
        chosen = choice(path, contents, part)
        names, objects = around(contents.root, chosen.group)
        check_kinds(path, chosen.tensors)
        tensors = {
            name: tensor.read() if isinstance(tensor, Stored) else tensor for name, tensor in chosen.tensors.items()
        }
    tensors = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    check_values(path, tensors)
    return Weights(
        tensors,
        other_entries=(*names, *chosen.left),
        metadata=contents.metadata,
        objects=objects,
        part=chosen.part,
        others=tuple(chosen.others),
        modules=chosen.modules,
    )


@contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """Return the content of a file of weights. Its tensors can only be read inside the with block."""
    form = ""
    try:
        if path.is_dir():
            raise ModelFileError(
                f"{path} is a folder; give the file of weights in it, such as {path}/model.safetensors"
            )
        with path.open("rb") as file:
            form, reader = _reader(path, file)
            contents = reader(path, file)
            form = contents.form
            yield contents
    except ResnetkitError:
        raise
    except PickleError as error:
        raise _broken(path, "PyTorch", error) from error
    except BROKEN as error:
        raise _broken(path, form, error) from error
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror or error}") from error


BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tarfile.TarError, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
"""Errors that damaged or hostile files raise. RuntimeError comes from PyTorch, and from zip files with a password."""


def choice(path: Path, contents: Contents, part: str | None = None) -> Choice:
    """Return the network's tensors. Raises ModelFileError if there are none, UsageError if there is no such part."""
    try:
        return choose(groups(contents.root), part)
    except NoTensorsError as error:
        shown = f"resnetkit convert --list {shell(path)} shows its content"
        if part is not None:
            raise UsageError(f"{path}: {error}") from error
        if str(error):
            raise ModelFileError(f"{path}: {error}; save net.state_dict(). {shown}") from error
        raise ModelFileError(
            f"{path} contains {held(contents.root)}; save net.state_dict() from its project. {shown}"
        ) from error


def held(root: object) -> str:
    """Describe the content of a file without tensors by name, for people."""
    if not isinstance(root, (Record, Mapping)):
        return f"{kind_of(root)}, not tensors by name"
    if isinstance(root, Record) and root.name.startswith("__torch__."):
        return "a frozen TorchScript network, whose weights have no names"
    names = [text_of(key)[:100] for key, _ in children(root)[:5]]
    return f"no named tensors (found: {', '.join(names) or 'nothing'})"


Reader = Callable[[Path, BinaryIO], Contents]


def _reader(path: Path, file: BinaryIO) -> tuple[str, Reader]:
    """Return the name of the file's format, and the function that reads it, by the file's first bytes."""
    start = file.read(1024)
    file.seek(0)
    if not start:
        raise ModelFileError(f"{path} is empty; get the file again")
    for signature, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(signature):
            raise ModelFileError(f"{path} is {what}")
    if start.startswith(b"PK\x03\x04"):
        return "zip", _read_zip
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5", _read_hdf5
    if start[8:9] == b"{":  # after the header's length, eight bytes
        return "safetensors", _read_safetensors
    if start[257:262] == b"ustar" or start.startswith(b"\x80"):  # PyTorch's form before version 0.1.10, or a pickle
        return "PyTorch", _read_torch
    raise ModelFileError(f"{path} is in no known format of weights: PyTorch, safetensors, HDF5, Keras or .npz")


NO_WEIGHTS = {
    b"<": "a web page, not weights: the download failed; get the file again",
    b"version https://git-lfs": "a pointer of Git LFS, not the weights; run git lfs pull, or download the file itself",
    b"{": "JSON, not weights; give the file of weights beside it",
}
"""First bytes of files that often replace weights by mistake -> the description, and the way to get the weights."""


def _read_safetensors(path: Path, file: BinaryIO) -> Contents:
    from safetensors import SafetensorError, safe_open

    (length,) = struct.unpack("<Q", file.read(8))
    if length + 8 > path.stat().st_size:
        raise ModelFileError(f"{path} is truncated, or its header has a wrong length; get the file again")
    try:
        with safe_open(path, framework="pt") as tensors:
            held = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
            return Contents(held, "safetensors", tensors.metadata() or {})
    except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise _broken(path, "safetensors", error) from error


def _read_torch(path: Path, file: BinaryIO) -> Contents:
    size = path.stat().st_size
    tar = file.read(262)[257:] == b"ustar"
    file.seek(0)
    return _torch(read_tar(file, size) if tar else read_pickles(file, size), "PyTorch")


def _torch(root: object, form: str) -> Contents:
    if not isinstance(root, (Record, list, tuple)):
        raise PickleError(f"it contains {type(root).__name__}, not tensors by name")
    return Contents(root, form)


def _read_zip(path: Path, file: BinaryIO) -> Contents:
    """Read a zip archive: a file of PyTorch since 1.6, TorchScript, Keras since 2.12, or NumPy."""
    archive = zipfile.ZipFile(file)  # stays open as long as the file
    check_expansion(path, sum(info.file_size for info in archive.infolist()))
    if not any(info.CRC for info in archive.infolist()):  # PyTorch can omit all checksums: then they are not compared
        for info in archive.infolist():
            del info.CRC
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ModelFileError(f"{path} has two parts with the same name; get the file from a source you trust")
    if "model.weights.h5" in names:  # the archive is not unpacked, so its other names have no effect
        from resnetkit.convert.files.hdf5 import read_keras

        config = archive.read("config.json") if "config.json" in names else b"{}"
        return Contents(read_keras(path, io.BytesIO(archive.read("model.weights.h5")), config), "Keras")
    if names and all(name.endswith(".npy") for name in names):
        return Contents({name[:-4]: _array(path, name, archive.read(name)) for name in names}, ".npz")
    if not any(name.endswith("data.pkl") for name in names):
        exported = any(name.endswith("archive_format") for name in names)
        what = "an exported program of PyTorch (.pt2)" if exported else "an archive without weights in it"
        raise ModelFileError(f"{path} is {what}; give a .pth, .keras or .npz file")
    script = any(name.endswith("/constants.pkl") for name in names)
    return _torch(read_zip(archive), "TorchScript" if script else "PyTorch")


def _read_hdf5(path: Path, file: BinaryIO) -> Contents:
    from resnetkit.convert.files.hdf5 import read_hdf5

    return Contents(read_hdf5(path, file), "HDF5")


def _array(path: Path, name: str, content: bytes) -> Tensor:
    """Return one array of an .npz file. Raises ModelFileError for other values than numbers, and for a wrong size."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
    except Exception as error:  # the header is a Python literal, and parsing a hostile one can fail in many ways
        raise _broken(path, "npz", error) from error
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ModelFileError(
            f"{path}: {name} contains {dtype}, not numbers; an .npz file of weights must contain arrays of numbers"
        )
    values = content[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(values) or any(side < 0 for side in shape):
        raise ModelFileError(
            f"{path}: {name} should be {shape} {dtype}, but has {len(values)} bytes; get the file again"
        )
    array = np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")
    return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))


def _broken(path: Path, kind: str, error: Exception) -> ModelFileError:
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    return ModelFileError(f"{path} is not a complete {kind} file ({said[:200]}); get the file again")
