"""Read PyTorch's files as inert values. Their tensors are read later, one by one. Code in a file is never run.

There are two forms: zip archives (since version 1.6, and for TorchScript), and pickles whose tensors' numbers come
after them (since 0.1.10) or are inside them. Older files are read by `tar`.
"""

import zipfile
from io import BytesIO
from typing import BinaryIO

import torch

from resnetkit.convert.files.pickles import PickleError, Pickles
from resnetkit.convert.files.storages import Sequential, Storage, Unread, Zipped, bind, check_size

MAGIC = 0x1950A86A20F9469CFC6C
"""Number in the first pickle of a file from PyTorch 0.1.10 to 1.5."""


def read_zip(archive: zipfile.ZipFile) -> object:
    """Return the value in a zip archive of PyTorch or TorchScript, without TorchScript's code. Raises PickleError."""
    names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(names) != 1:
        raise PickleError(f"it contains {len(names)} files data.pkl instead of one")
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
    """Return the value in a file of PyTorch before 1.6, or in a plain pickle, from the current position on.

    `size` is the number of bytes to read. `most_steps` limits the number of instructions; None is MOST_STEPS of
    `pickles`. Raises PickleError.
    """
    start = file.tell()
    pickles = Pickles(file, size, most_steps=most_steps)
    first = pickles.load()
    if not isinstance(first, int) or first != MAGIC:
        for reference in pickles.references:
            reference.to = Unread("a tensor whose numbers are not in the file")
        return first
    protocol, _system = pickles.load(), pickles.load()
    if protocol != 1001:
        raise PickleError("its version of PyTorch's file format is unknown")
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
            raise PickleError(f"it contains {reference.to.what}, and the place of the tensors after it is unknown")
    at = start + size - pickles.left
    for key in keys:
        at = blobs.note(str(key) if isinstance(key, str | int) else "", at, start + size, types)
    for reference in references:
        check_size(reference)
    return value
