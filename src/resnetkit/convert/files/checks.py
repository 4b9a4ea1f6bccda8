"""Check any file of weights: its unpacked size, its JSON, and the dtypes and values of its tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit.convert.files.storages import Unread
from resnetkit.convert.files.values import AnyTensor
from resnetkit.errors import ModelFileError
from resnetkit.models.tensors import wrong_values

MOST_EXPANSION = 100
"""Largest ratio of a file's size in memory to its size on disk. Weights compress little; a zip bomb by 1000."""


def check_expansion(path: Path, claimed_bytes: int) -> None:
    """Raise ModelFileError if the unpacked size, `claimed_bytes`, is far above the file's size. Nothing is read."""
    if claimed_bytes > MOST_EXPANSION * path.stat().st_size:
        raise ModelFileError(
            f"{path} has {path.stat().st_size:,} bytes but claims {claimed_bytes:,} when unpacked, as a zip bomb does; "
            "get the file from a source you trust"
        )


def check_kinds(path: Path, tensors: Mapping[str, AnyTensor]) -> None:
    """Raise ModelFileError for tensors that are not dense and real, or far bigger than the file. Nothing is read."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Unread):
            raise ModelFileError(
                f"{path}: {name} is not a plain tensor of real numbers, but {tensor.what}; save dense tensors"
            )
        if tensor.dtype.is_complex:
            raise ModelFileError(
                f"{path}: {name} is not a plain tensor of real numbers, but complex; save float tensors"
            )
    check_expansion(path, sum(tensor.nbytes for tensor in tensors.values()))


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelFileError for values that no network can have, such as NaN and negative variances."""
    broken = {name: wrong for name, tensor in tensors.items() if (wrong := _not_finite(tensor))}
    if broken:
        first = next(iter(broken))
        raise ModelFileError(
            f"{path}: {first} has {broken[first]:,} values that are not finite"
            f"{f', as have {len(broken) - 1} other tensors' if len(broken) > 1 else ''}; "
            "the training diverged or the file is damaged: get another file"
        )
    for name, tensor in tensors.items():
        if wrong := wrong_values(name, tensor):
            raise ModelFileError(f"{path}: {name} contains {wrong}; the file is damaged or quantised: get another file")


def _not_finite(tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        return 0
    return tensor.numel() - int(torch.isfinite(tensor.float()).sum())


def parse_json(path: Path, what: str, text: bytes | str) -> Any:
    """Parse JSON from the file `path`. Raises ModelFileError, which calls the text `what`, if it is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} has a broken {what} ({error}); get the file again") from error
