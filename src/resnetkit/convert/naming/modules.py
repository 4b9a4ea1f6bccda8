"""What only the modules of a network that was saved whole tell: strides, pooling, activations, ε."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from resnetkit.convert.naming.layouts import EPSILON, Tensors
from resnetkit.errors import ModelFileError

Modules = Mapping[str, Mapping[str, object]]
"""A module's name -> its class and its plain attributes."""
OTHER_ACTIVATIONS = (
    *("LeakyReLU", "ReLU6", "PReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Swish", "Mish", "Hardswish"),
    *("Softplus", "Tanh", "FReLU"),
)


def facts_of(modules: Modules, ours: Callable[[str], str], *, where: str) -> dict[str, Any]:
    """Fields of a spec that the modules settle; empty where there are none.

    `ours` gives our name for one of theirs. Raises ModelFileError for what no network here has: another activation,
    another stride of the first convolution, pooling behind a 3×3, dilation.
    """
    kinds = {name: str(module.get("class", "")).rpartition(".")[2] for name, module in modules.items()}
    if others := [name for name, kind in kinds.items() if kind in OTHER_ACTIVATIONS and not _in_head(name)]:
        raise ModelFileError(f"{where} has {kinds[others[0]]} at {others[0]}; networks here have ReLU everywhere")
    convs = {
        ours(f"{name}.weight").removesuffix(".weight"): modules[name]
        for name, kind in kinds.items()
        if kind.endswith("Conv2d")
    }
    facts: dict[str, Any] = {}
    for name, conv in convs.items():
        if _side(conv.get("dilation"), 1) > 1:
            raise ModelFileError(
                f"{where} has a dilation of {_side(conv['dilation'], 1)} at {name}; save its state dict, and convert "
                "that with `model` NAME,output_stride=N"
            )
        found = re.fullmatch(r"layer\d+\.\d+\.conv([12])", name)
        if found and _side(conv.get("stride"), 1) == 2:
            facts["blur"] = 0  # which would have taken the stride over
            if name.replace(f"conv{found[1]}", "conv3") in convs:
                facts["downsample_in"] = "1x1" if found[1] == "1" else "3x3"
    first = convs.get("conv1")
    if first and (kernel := _side(first.get("kernel_size"), 0)) in (3, 7):
        pools = [modules[name] for name, kind in kinds.items() if kind == "MaxPool2d"]
        usual = [_pooling(pool) == (3, 2, 1, False) for pool in pools]
        stride = _side(first.get("stride"), 1)
        if (stride, usual) != ((2, [True]) if kernel == 7 else (1, [])):
            pooling = "with" if pools else "without"
            raise ModelFileError(
                f"{where} begins with a {kernel}×{kernel} of stride {stride}, {pooling} max pooling; networks here "
                "begin with a 7×7 of stride 2 and pooling of 3×3 with a border of 1, or a 3×3 of stride 1 and none"
            )
    return facts


def with_our_epsilon(tensors: Tensors, modules: Modules, ours: Callable[[str], str]) -> Tensors:
    """The tensors with running variances that make up for an ε other than ours; computed in float64."""
    changed = dict(tensors)
    for name, module in modules.items():
        epsilon = module.get("eps")
        variance = ours(f"{name}.running_var")
        if isinstance(epsilon, float) and epsilon != EPSILON and variance in tensors:
            changed[variance] = (tensors[variance].double() + (epsilon - EPSILON)).float()
    return changed


def _pooling(pool: Mapping[str, object]) -> tuple[int, int, int, bool]:
    sides = (_side(pool.get(name), default) for name, default in (("kernel_size", 0), ("stride", 0), ("padding", 0)))
    return (*sides, bool(pool.get("ceil_mode")))  # pyrefly: ignore


def _side(value: object, default: int) -> int:
    """The size of a kernel, stride or dilation, which is one number or one for each side."""
    if isinstance(value, list | tuple):  # pyrefly: ignore
        value = next(iter(value), default)
    return value if isinstance(value, int) else default


def _in_head(name: str) -> bool:
    return not re.search(
        r"(layer|conv|stage|block|bn|stem|relu|act|features|backbone|body|\d+)", name.partition(".")[0]
    )
