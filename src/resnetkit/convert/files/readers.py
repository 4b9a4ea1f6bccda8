"""Files of weights to tensors by name. They are data, whatever they are called: no code in them is ever run.

What a file is shows in its first bytes; its suffix is never asked. Everything that is wrong with one is a
ModelFileError that names it, and memory stays in proportion to its size: a header can claim anything.
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
    """What a file holds."""

    tensors: Mapping[str, Tensor]
    """By the names that their project gives them, without the prefixes of wrappers."""
    other_entries: tuple[str, ...] = ()
    """Other entries of a checkpoint, which are left out."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text in a .safetensors header."""
    objects: Mapping[str, object] = field(default_factory=dict)
    """What else lies beside the tensors, as plain values: None, bool, int, float, str, list and dict of these.

    By nested name: `args`, or `model.classes` where it lies beside a state dict in `model`. An object of a class is
    {"class": "argparse.Namespace", ...} with its attributes by name; tensors and long lists are left out.
    """
    part: str = ""
    """Where in the file the tensors were: `state_dict`, `model.encoder_q`; empty at the top level."""
    others: tuple[str, ...] = ()
    """Other parts that hold a network, as `part` takes them: averaged weights, a teacher."""
    modules: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Of a file that holds a whole network, its modules' plain attributes by the module's name, "" for the network.

    {"layer2.0.conv1": {"class": "torch.nn.modules.conv.Conv2d", "stride": [2, 2], ...}}.
    """


@dataclass(frozen=True)
class Contents:
    """All that a file holds, before the network is chosen."""

    root: object
    """A dictionary or a record. It has tensors in it, or what stands for them until they are read."""
    form: str
    """Name of the file's format, for people."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text in a .safetensors header."""


def weights_file(file: str | Path) -> Path:
    """The file that a person named. Raises ModelFileError where there is none."""
    path = expanded(file)
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give a file of weights")
    return path


def read_weights(path: Path, *, part: str | None = None) -> Weights:
    """Read a .pth, .pt, .th, .bin, .pkl, .safetensors, .h5, .keras or .npz file, whatever its suffix.

    The network's tensors are chosen by the rules of `parts`, unless `part` says where they are. Raises ModelFileError
    where the file is none of these, broken off, hostile, or holds values that aren't finite; UsageError where it has no
    such part.
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
    """What is in a file of weights; its tensors can be read as long as it is open."""
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
"""Errors of reading a damaged or hostile file. RuntimeError comes from PyTorch, and from a zip file with a password."""


def choice(path: Path, contents: Contents, part: str | None = None) -> Choice:
    """The network's tensors in a file. Raises ModelFileError where there are none, UsageError without such a part."""
    try:
        return choose(groups(contents.root), part)
    except NoTensorsError as error:
        shown = f"resnetkit convert --list {shell(path)} shows what is in it"
        if part is not None:
            raise UsageError(f"{path}: {error}") from error
        if str(error):
            raise ModelFileError(f"{path}: {error}; save net.state_dict(). {shown}") from error
        raise ModelFileError(
            f"{path} holds {held(contents.root)}; save net.state_dict() from its project. {shown}"
        ) from error


def held(root: object) -> str:
    """What a file without tensors by name holds, for people."""
    if not isinstance(root, (Record, Mapping)):
        return f"{kind_of(root)}, not tensors by name"
    if isinstance(root, Record) and root.name.startswith("__torch__."):
        return "a frozen TorchScript network, whose weights have no names"
    names = [text_of(key)[:100] for key, _ in children(root)[:5]]
    return f"no named tensors (found: {', '.join(names) or 'nothing'})"


Reader = Callable[[Path, BinaryIO], Contents]


def _reader(path: Path, file: BinaryIO) -> tuple[str, Reader]:
    """Tell what the file is by its first bytes."""
    start = file.read(1024)
    file.seek(0)
    if not start:
        raise ModelFileError(f"{path} is empty; get it anew")
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
        raise PickleError(f"it holds {type(root).__name__}")
    return Contents(root, form)


def _read_zip(path: Path, file: BinaryIO) -> Contents:
    """PyTorch's form since 1.6, TorchScript's, Keras' since 2.12 and NumPy's are all archives."""
    archive = zipfile.ZipFile(file)  # stays open as long as the file
    check_expansion(path, sum(info.file_size for info in archive.infolist()))
    if not any(info.CRC for info in archive.infolist()):  # PyTorch can leave all checksums out: then none is compared
        for info in archive.infolist():
            del info.CRC
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ModelFileError(f"{path} has two parts of one name; get it from a source you trust")
    if "model.weights.h5" in names:  # nothing is unpacked: other names in the archive mean nothing
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


def _broken(path: Path, kind: str, error: Exception) -> ModelFileError:
    said = (str(error) or type(error).__name__).strip().splitlines()[0]
    return ModelFileError(f"{path} is not a whole {kind} file ({said[:200]}); get it anew")
