"""PyTorch's files to inert values, whose tensors are read when they are asked for; nothing of a file is ever run.

Two forms: a zip archive (since version 1.6, and TorchScript's), and pickles with the numbers behind them (since 0.1.10)
or in them. `tar` reads what was before.
"""

import zipfile
from io import BytesIO
from typing import BinaryIO

import torch

from resnetkit.convert.files.pickles import PickleError, Pickles
from resnetkit.convert.files.storages import Sequential, Storage, Unread, Zipped, bind, check_size

MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a file from PyTorch 0.1.10 to 1.5."""


def read_zip(archive: zipfile.ZipFile) -> object:
    """The value in a zip archive of PyTorch or TorchScript; of TorchScript, only tensors and their names are read."""
    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(names) != 1:
        raise PickleError(f"it has {len(names)} files data.pkl, and PyTorch would read one")
    folder = names[0].removesuffix("data.pkl")
    with archive.open(names[0]) as file:
        pickles = Pickles(BytesIO(file.read()), archive.getinfo(names[0]).file_size)
    value = pickles.load()
    blobs = Zipped(archive, folder)
    for reference in pickles.references:
        bind(reference, blobs)
        check_size(reference)
    return value


def read_pickles(file: BinaryIO, size: int, *, most_steps: int | None = None) -> object:
    """The value in a file that begins with a pickle, from the current position: of PyTorch before 1.6, or bare."""
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
        bind(reference, blobs)
        if isinstance(reference.to, Storage):
            types[reference.to.key] = reference.to.dtype
        elif isinstance(reference.to, Unread):
            raise PickleError(f"it has {reference.to.what}, so that nothing behind it is found")
    at = start + size - pickles.left
    for key in keys:
        at = blobs.note(str(key) if isinstance(key, str | int) else "", at, start + size, types)
    for reference in references:
        check_size(reference)
    return value
