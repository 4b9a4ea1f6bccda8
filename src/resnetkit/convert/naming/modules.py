"""Facts from the modules of a network that was saved as a whole: strides, pooling, activations, ε."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from resnetkit.convert.naming.layouts import EPSILON, Tensors
from resnetkit.errors import ModelFileError

Modules = Mapping[str, Mapping[str, object]]
"""Name of a module -> its class (under "class") and its plain attributes."""
OTHER_ACTIVATIONS = (
    *("LeakyReLU", "ReLU6", "PReLU", "RReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Swish", "Mish", "Hardswish"),
    *("Softplus", "Tanh", "FReLU"),
)
"""Classes of activations that networks here do not have."""


def facts_of(modules: Modules, ours: Callable[[str], str], *, where: str) -> dict[str, Any]:
    """Return the fields of a spec that the modules determine; empty without modules.

    `ours` returns our name for a tensor name of the file. Raises ModelFileError, which names the file `where`, for
    modules that no network here has: another activation, dilation, another stride of the first convolution, and other
    pooling after it.
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
                "the new file with `model` NAME,output_stride=N"
            )
        found = re.fullmatch(r"layer\d+\.\d+\.conv([12])", name)
        if found and _side(conv.get("stride"), 1) == 2:
            facts["blur"] = 0  # with a blur, the convolution would have no stride
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
                f"{where} begins with a {kernel}×{kernel} convolution of stride {stride}, {pooling} max pooling; "
                "networks here begin with a 7×7 convolution of stride 2 and 3×3 max pooling of stride 2 and padding 1, "
                "or with a 3×3 convolution of stride 1 and no pooling"
            )
    return facts


def with_our_epsilon(tensors: Tensors, modules: Modules, ours: Callable[[str], str]) -> Tensors:
    """Return the tensors with changed running variances, so that our ε gives the same results; computed in float64."""
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
    """Return the size of a kernel, stride or dilation, which is one number or a list; of a list, the first number."""
    if isinstance(value, list | tuple):  # pyrefly: ignore
        value = next(iter(value), default)
    return value if isinstance(value, int) else default


def _in_head(name: str) -> bool:
    return not re.search(
        r"(layer|conv|stage|block|bn|stem|relu|act|features|backbone|body|\d+)", name.partition(".")[0]
    )
