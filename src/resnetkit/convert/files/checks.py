"""What is checked of any file of weights: its size once unpacked, its JSON, the kinds and values of its tensors."""

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
"""How many times its size on the disk a file may become in memory. Weights hardly compress; a bomb does by 1000."""


def check_expansion(path: Path, claimed_bytes: int) -> None:
    """Refuse what would take far more memory than its size suggests; before any of it is read."""
    if claimed_bytes > MOST_EXPANSION * path.stat().st_size:
        raise ModelFileError(
            f"{path} has {path.stat().st_size:,} bytes but claims {claimed_bytes:,} when unpacked, as a zip bomb does; "
            "get it from a source you trust"
        )


def check_kinds(path: Path, tensors: Mapping[str, AnyTensor]) -> None:
    """Refuse tensors that are no plain numbers or are bigger than the file; before any is read."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Unread):
            raise ModelFileError(
                f"{path}: {name} is no plain tensor of real numbers, but {tensor.what}; save dense ones"
            )
        if tensor.dtype.is_complex:
            raise ModelFileError(f"{path}: {name} is no plain tensor of real numbers, but complex; save float tensors")
    check_expansion(path, sum(tensor.nbytes for tensor in tensors.values()))


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse values that no network can have."""
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
            raise ModelFileError(f"{path}: {name} contains {wrong}; the file is damaged or quantised: get another")


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
