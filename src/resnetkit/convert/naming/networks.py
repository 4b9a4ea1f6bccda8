"""Which network has these tensors? The spec that their names and shapes leave, and its text as `model` takes it."""

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
TRUNK = re.compile(r"(conv1|bn1|layer\d+|norm)\..+")
"""Our names of all tensors but the last layer's."""
STEMS = {7: "imagenet", 3: "cifar"}
"""Stems with one convolution, by the size of its kernel."""


def networks_like(tensors: Tensors, facts: Mapping[str, Any]) -> list[str]:
    """The networks that have these tensors, whatever the number of classes, and are what `facts` say.

    Each is a row of SPECS, or the nearest one with changes behind commas. There are several where tensors can't tell:
    v1 or v1.5; zero-padded identities or a plain net; blurs, where a row has them. None where no network has them.
    """
    if (base := spec_of(tensors)) is None:
        return []
    kernels: tuple[StridedKernel, ...] = ("3x3", "1x1") if base.block == "bottleneck" else ("3x3",)
    shortcuts: tuple[ShortcutName, ...] = ("A", "none") if base.shortcut == "A" else (base.shortcut,)
    specs: list[ModelSpec] = []
    for shortcut, kernel in product(shortcuts, kernels):
        try:
            specs.append(replace(base, shortcut=shortcut, downsample_in=kernel))
        except UsageError:  # a plain net that normalises first is none
            continue
    blurred = [replace(row, classes=1) for row in SPECS.values() if row.blur]
    specs += [row for row in blurred if replace(row, blur=0) in specs]
    if facts.get("blur"):
        specs = [replace(spec, blur=facts["blur"]) for spec in specs if spec.downsample_in == "3x3"]
    return list(dict.fromkeys(name_of(spec) for spec in specs if not contradicted(spec, facts)))


def contradicted(spec: ModelSpec, facts: Mapping[str, Any]) -> list[str]:
    """The fields of `spec` that contradict `facts`. Basic blocks have the stride in one place, so theirs never does."""
    basic = spec.block == "basic"
    return [
        name
        for name, value in facts.items()
        if getattr(spec, name) != value and not (basic and name == "downsample_in")
    ]


def spec_of(tensors: Tensors) -> ModelSpec | None:
    """The network, of one class, that has these tensors under our names; None where none has exactly them.

    What they don't say is as in the first rows: the stride in the 3×3, no blur, no dilation, and zero-padded identities
    where nothing is beside a block.
    """
    return next((spec for spec in _specs(tensors) if has_tensors_of(spec, tensors)), None)


def nearest_network(tensors: Tensors) -> tuple[str, Misfit] | None:
    """The network from which these tensors differ in the fewest, and how; None where they differ in most."""
    found = {name: tensor for name, tensor in without_counters(tensors).items() if name not in HEAD}
    ways: list[tuple[int, ModelSpec, Misfit]] = []
    for spec in _specs(tensors):
        expected = without_counters(empty_network(spec).state_dict())
        misfit = compare({name: tensor for name, tensor in expected.items() if name not in HEAD}, found)
        ways.append((len({*misfit.missing, *misfit.unexpected, *misfit.misshaped}), spec, misfit))
    wrong, spec, misfit = min(ways, key=lambda way: way[0], default=(0, None, None))
    return (name_of(spec), misfit) if spec and misfit and wrong <= len(misfit.expected) // 4 else None


def _specs(tensors: Tensors) -> list[ModelSpec]:
    """The networks, of one class, that these tensors may be of, by their first layers and the numbers of blocks."""
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
    """Whether these are the tensors of a network, whatever its classes and batch counters."""
    buffers = ("running_mean", "running_var", COUNTER)
    trunk = sum(t.numel() for name, t in tensors.items() if name not in HEAD and not name.endswith(buffers))
    if replace(spec, classes=1).parameters - (spec.channels[-1] + 1) != trunk:
        return False  # at less cost than by building it
    return _trunk_shapes(tensors) == _trunk_shapes(empty_network(spec).state_dict())


def _trunk_shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in tensors.items() if name not in HEAD and not name.endswith(COUNTER)}


def name_of(spec: ModelSpec) -> str:
    """The row of SPECS that is `spec` but for its classes, or the nearest one with changes behind commas."""

    def changes(name: str) -> list[str]:
        row = SPECS[name]
        return [field for field in FIELDS if field != "classes" and getattr(row, field) != getattr(spec, field)]

    nearest = min(SPECS, key=lambda name: len(changes(name)))
    return ",".join([nearest, *(f"{field}={_text(getattr(spec, field))}" for field in changes(nearest))])


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
