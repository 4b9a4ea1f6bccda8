"""Find the last layer under any name. It is used if it is the only linear layer after the trunk."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from resnetkit.convert.naming.layouts import Tensors
from resnetkit.convert.naming.networks import HEAD, TRUNK
from resnetkit.errors import ModelFileError

MOST_LISTED = 4
"""Largest number of layers of a head that an error lists."""


@dataclass(frozen=True)
class Headed:
    """A file's tensors, with the last layer as fc.weight and fc.bias."""

    tensors: dict[str, Tensor]
    """Under our names: the trunk, the last layer if there is one, and other tensors."""
    notes: tuple[str, ...] = ()
    """Assumptions about the last layer."""
    left_out: tuple[str, ...] = ()
    """Names of layers that a new last layer replaces."""
    tensors_left_out: int = 0
    """Number of tensors of these layers."""
    one_output: bool = False
    """Whether one output of the file became two classes."""


def settle_head(tensors: Tensors, *, new_head: bool, where: str) -> Headed:
    """Find the last layer among the tensors outside the trunk, and return it as fc.weight and fc.bias.

    It may be after dropout (`fc.1`), have another name, be a 1×1 convolution, have no bias, or have one output, which
    becomes two classes. Raises ModelFileError, which names the file `where`, for several layers in a row; with
    `new_head` they are left out instead.
    """
    ours = dict(tensors)
    notes: list[str] = []
    if HEAD[0] not in ours:
        linear = _linear_layers(ours)
        parts = {name.partition(".")[0] for name in linear}
        around = [name for name in ours if name.partition(".")[0] in parts and not TRUNK.fullmatch(name)]
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in around))
        if len(layers) == 1 and len(linear) == 1 and _width(ours[f"{layers[0]}.weight"]) == _channels(ours):
            if not new_head:
                notes.append(f"{layers[0]} is its last layer, with only dropout or similar layers before it")
            for value in ("weight", "bias"):
                if (name := f"{layers[0]}.{value}") in ours:
                    ours[f"fc.{value}"] = ours.pop(name)
        elif around and new_head:
            kept = {name: t for name, t in ours.items() if name not in around}
            return Headed(kept, left_out=tuple(layers), tensors_left_out=len(around))
        elif around:
            shapes = [f"{name} {'×'.join(map(str, ours[f'{name}.weight'].shape))}" for name in linear]
            raise ModelFileError(
                f"{where} does not end in one linear layer after the average pooling, but in {_listed(shapes)}"
                f"{_with_norms(layers, linear)}: networks here have only one, and the tensors do not tell which layers "
                "without weights are between them. `new_head` N uses the trunk with a new last layer for N classes"
            )
    if HEAD[0] not in ours or new_head:
        return Headed(ours, tuple(notes))
    weight = ours[HEAD[0]]
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = weight.flatten(1)
    bias = ours.get(HEAD[1])
    if weight.ndim == 2 and bias is None:
        bias = weight.new_zeros(len(weight))
    one_output = weight.ndim == 2 and len(weight) == 1 and bias is not None and bias.shape == (1,)
    if one_output and bias is not None:
        notes.append("its one output is the input of a sigmoid, so it has two classes: an output above 0 is the second")
        weight, bias = (torch.cat([torch.zeros_like(values), values]) for values in (weight, bias))
    ours |= {HEAD[0]: weight} | ({} if bias is None else {HEAD[1]: bias})
    return Headed(ours, tuple(notes), one_output=one_output)


def _linear_layers(tensors: Tensors) -> list[str]:
    """Return the names of the layers outside the trunk whose weight is a matrix or a 1×1 convolution."""
    return [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and not TRUNK.fullmatch(name) and (tensor.ndim == 2 or tensor.shape[2:] == (1, 1))
    ]


def _width(weight: Tensor) -> int:
    return weight.shape[1]


def _channels(tensors: Tensors) -> int:
    """Return the number of output channels of the last convolution of the last block; 0 if there is none."""
    convs = [name for name, t in tensors.items() if name.startswith("layer") and ".conv" in name and t.ndim == 4]
    return len(tensors[max(convs, key=_place)]) if convs else 0


def _place(name: str) -> tuple[int, ...]:
    """`layer4.10.conv2.weight` is (4, 10, 2)."""
    return tuple(int("".join(c for c in part if c in "0123456789")[:9] or 0) for part in name.split(".")[:3])


def _with_norms(layers: list[str], linear: list[str]) -> str:
    others = [name for name in layers if name not in linear]
    return f" with {_listed(others)}" if others else ""


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    )
