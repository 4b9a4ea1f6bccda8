"""Find the network that has given tensors, by their names and shapes, and its text as `model` accepts it."""

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from resnetkit.convert.naming.layouts import Tensors
from resnetkit.errors import UsageError
from resnetkit.models.empty import empty_network
from resnetkit.models.geometry import ShortcutName, StridedKernel
from resnetkit.models.spec import FIELDS, SPECS, ModelSpec
from resnetkit.models.tensors import COUNTER, Misfit, compare, without_counters

HEAD = ("fc.weight", "fc.bias")
"""Our names of the last layer's tensors."""
TRUNK = re.compile(r"(conv1|bn1|layer\d+|norm)\..+")
"""Our names of all other tensors."""
STEMS = {7: "imagenet", 3: "cifar"}
"""Size of the kernel -> name of the stem, for stems with one convolution."""


def networks_like(tensors: Tensors, facts: Mapping[str, Any]) -> list[str]:
    """Return the networks with these tensors and with the fields in `facts`; the number of classes is ignored.

    Each is a row of SPECS, or the nearest row with changes after commas. There are several if the tensors do not
    distinguish them: v1 and v1.5; zero-padded shortcuts and plain networks; networks with and without blur. The list is
    empty if no network has these tensors.
    """
    if (base := spec_of(tensors)) is None:
        return []
    kernels: tuple[StridedKernel, ...] = ("3x3", "1x1") if base.block == "bottleneck" else ("3x3",)
    shortcuts: tuple[ShortcutName, ...] = ("A", "none") if base.shortcut == "A" else (base.shortcut,)
    specs: list[ModelSpec] = []
    for shortcut, kernel in product(shortcuts, kernels):
        try:
            specs.append(replace(base, shortcut=shortcut, downsample_in=kernel))
        except UsageError:  # there are no plain networks with pre-activation
            continue
    blurred = [replace(row, classes=1) for row in SPECS.values() if row.blur]
    specs += [row for row in blurred if replace(row, blur=0) in specs]
    if facts.get("blur"):
        specs = [replace(spec, blur=facts["blur"]) for spec in specs if spec.downsample_in == "3x3"]
    return list(dict.fromkeys(name_of(spec) for spec in specs if not contradicted(spec, facts)))


def contradicted(spec: ModelSpec, facts: Mapping[str, Any]) -> list[str]:
    """Return the fields of `spec` that contradict `facts`; `downsample_in` is ignored for basic blocks."""
    basic = spec.block == "basic"
    return [
        name
        for name, value in facts.items()
        if getattr(spec, name) != value and not (basic and name == "downsample_in")
    ]


def spec_of(tensors: Tensors) -> ModelSpec | None:
    """Return the network, with one class, that has exactly these tensors under our names; None if there is none.

    Fields that tensors do not determine have the usual values: stride in the 3×3 convolution, no blur, no dilation, and
    zero-padded shortcuts in blocks without a projection.
    """
    return next((spec for spec in _specs(tensors) if has_tensors_of(spec, tensors)), None)


def nearest_network(tensors: Tensors) -> tuple[str, Misfit] | None:
    """Return the network whose tensors differ least from these, with the differences.

    None if more than a quarter of the network's tensors differ.
    """
    found = {name: tensor for name, tensor in without_counters(tensors).items() if name not in HEAD}
    ways: list[tuple[int, ModelSpec, Misfit]] = []
    for spec in _specs(tensors):
        expected = without_counters(empty_network(spec).state_dict())
        misfit = compare({name: tensor for name, tensor in expected.items() if name not in HEAD}, found)
        ways.append((len({*misfit.missing, *misfit.unexpected, *misfit.misshaped}), spec, misfit))
    wrong, spec, misfit = min(ways, key=lambda way: way[0], default=(0, None, None))
    return (name_of(spec), misfit) if spec and misfit and wrong <= len(misfit.expected) // 4 else None


def _specs(tensors: Tensors) -> list[ModelSpec]:
    """Return networks, with one class, that may have these tensors, by the first layers and the numbers of blocks."""
    blocks = {
        (int(found[1]), int(found[2])) for name in tensors if (found := re.match(r"layer(\d{1,5})\.(\d{1,5})\.", name))
    }
    counted = Counter(stage for stage, _ in blocks)
    depths = tuple(counted[stage] for stage in sorted(counted))
    whole = {(stage, block) for stage, depth in enumerate(depths, 1) for block in range(depth)}
    deep = "conv1.0.weight" in tensors
    first = tensors.get("conv1.0.weight" if deep else "conv1.weight")
    last = tensors.get("conv1.6.weight" if deep else "conv1.weight")
    if not blocks or blocks != whole or first is None or last is None or first.ndim != 4 or last.ndim != 4:
        return []
    width, kernel = len(last), first.shape[-1]
    if not width or (stem := "deep" if deep else STEMS.get(kernel)) is None:
        return []
    grouped = tensors.get("layer1.0.conv2.weight")
    bottleneck = "layer1.0.conv3.weight" in tensors
    if grouped is None or grouped.ndim != 4 or not min(grouped.shape):
        return []
    inner = len(grouped)
    groups = inner // grouped.shape[1] if bottleneck else 1
    fields: dict[str, Any] = {
        "block": "bottleneck" if bottleneck else "basic",
        "depths": depths,
        "stem": stem,
        "width": width,
        "groups": groups,
        "order": "pre" if "norm.weight" in tensors else "post",
        "norm": "batch" if any(name.endswith("running_var") for name in tensors) else "group",
        "attention": "se" if "layer1.0.se.fc1.weight" in tensors else "none",
        "pooled_shortcut": any(name.endswith("downsample.1.weight") and t.ndim == 4 for name, t in tensors.items()),
        "classes": 1,
        "in_channels": first.shape[1],
    }
    if bottleneck and groups:  # the inverse of geometry.bottleneck_width
        fields["width_per_group"] = -(-inner // groups * 64 // width)
    specs: list[ModelSpec] = []
    for shortcut in ("B", "C", "A"):
        with suppress(UsageError):
            specs.append(ModelSpec(shortcut=shortcut, **fields))
    return specs


def has_tensors_of(spec: ModelSpec, tensors: Tensors) -> bool:
    """Whether the network has these tensors; the last layer and batch counters are ignored."""
    buffers = ("running_mean", "running_var", COUNTER)
    trunk = sum(t.numel() for name, t in tensors.items() if name not in HEAD and not name.endswith(buffers))
    if replace(spec, classes=1).parameters - (spec.channels[-1] + 1) != trunk:
        return False  # this costs less than building the network
    return _trunk_shapes(tensors) == _trunk_shapes(empty_network(spec).state_dict())


def _trunk_shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in tensors.items() if name not in HEAD and not name.endswith(COUNTER)}


def name_of(spec: ModelSpec) -> str:
    """Return the row of SPECS that equals `spec` except in its classes; else the nearest, with changes after commas."""

    def changes(name: str) -> list[str]:
        row = SPECS[name]
        return [field for field in FIELDS if field != "classes" and getattr(row, field) != getattr(spec, field)]

    nearest = min(SPECS, key=lambda name: len(changes(name)))
    return ",".join([nearest, *(f"{field}={_text(getattr(spec, field))}" for field in changes(nearest))])


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
