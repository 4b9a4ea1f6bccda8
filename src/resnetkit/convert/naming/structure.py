"""Match a file's layers to a network's by their shapes, in the order of the file. This is for unknown names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import prod
from typing import Any, Literal

from resnetkit.convert.naming.layouts import Tensors
from resnetkit.errors import UsageError
from resnetkit.models.empty import empty_network
from resnetkit.models.geometry import OrderName, ShortcutName
from resnetkit.models.spec import ModelSpec
from resnetkit.models.tensors import COUNTER

Kind = Literal["convolution", "normalisation", "linear"]
Place = Literal["first", "last", "before the last convolution"]
PLACES: tuple[Place, ...] = ("last", "first", "before the last convolution")
"""Places in a block where its shortcut may be defined."""
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Layer:
    """One layer: the tensors whose names differ only in their last part."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    """Shape of its weight."""
    values: frozenset[str]
    """For a normalisation: last parts of its tensors' names, except `weight` and counters. Empty for other layers."""

    @property
    def form(self) -> tuple[object, ...]:
        """The properties that must be equal for two layers to be matched."""
        return self.kind, self.shape, self.values


@dataclass(frozen=True)
class Match:
    """A network whose layers have the file's shapes in the file's order."""

    spec: ModelSpec
    """The network, with one class."""
    ours: Mapping[str, str]
    """Name of a layer in the file -> our name."""

    def rename(self, name: str) -> str:
        """Return our name for a tensor of the file; a name outside the trunk stays unchanged."""
        layer, dot, value = name.rpartition(".")
        return f"{self.ours.get(layer, layer)}{dot}{value}"


def keeps_order(tensors: Tensors) -> bool:
    """Whether the tensors may be in the network's order. Some files, such as .safetensors, sort them by name."""
    return list(tensors) != sorted(tensors)


def matches(tensors: Tensors, wanted: ModelSpec | None = None) -> list[Match]:
    """Return every way to match these tensors to a residual network; to `wanted` if given.

    Within a block, the shortcut may be in each of PLACES, and the normalisations may come after each convolution or
    after all convolutions. The list is empty if the tensors are sorted by name.
    """
    layers = layers_of(tensors)
    if layers is None or not keeps_order(tensors):
        return []
    trunk = [layer for layer in layers if layer.kind != "linear"]
    found: dict[tuple[object, ...], Match] = {}
    weights = sum(prod(layer.shape) * (2 if layer.kind == "normalisation" else 1) for layer in trunk)
    for spec in [wanted] if wanted else _specs(trunk):
        if replace(spec, classes=1).parameters - spec.channels[-1] - 1 > weights:
            continue  # this costs less than building the network
        own = layers_of(empty_network(spec).state_dict()) or []
        for place, apart in product(PLACES, (False, True)):
            expected = _arranged(own[:-1], place, norms_apart=apart)
            pairs = list(zip(trunk, expected, strict=False))
            rest = trunk[len(expected) :]  # a head, which may contain normalisations but no convolutions
            if len(trunk) < len(expected) or any(layer.kind == "convolution" for layer in rest):
                continue
            if all(theirs.form == ours.form for theirs, ours in pairs):
                names = {theirs.name: ours.name for theirs, ours in pairs}
                found[(spec, *names.values())] = Match(spec, names)
    return list(found.values())


def layers_of(tensors: Tensors) -> list[Layer] | None:
    """Return the layers in their order; None if there is a layer that residual networks don't have."""
    layers: list[Layer] = []
    for name, group in groupby(tensors, key=lambda name: name.rpartition(".")[0]):
        values = {name.rpartition(".")[2]: tensors[name] for name in group}
        values.pop(COUNTER, None)
        weight = values.pop("weight", None)
        if weight is None or not values.keys() <= {"bias", *STATISTICS}:
            return None
        kinds: dict[int, Kind] = {4: "convolution", 2: "linear", 1: "normalisation"}
        kind = kinds.get(weight.ndim)
        if kind is None or (kind != "normalisation" and values.keys() - {"bias"}):
            return None
        if any(value.shape != weight.shape[:1] for value in values.values()):
            return None
        kept = frozenset(values) if kind == "normalisation" else frozenset[str]()
        layers.append(Layer(name, kind, tuple(weight.shape), kept))
    return layers if len({layer.name for layer in layers}) == len(layers) else None


def _arranged(layers: list[Layer], place: Place, *, norms_apart: bool) -> list[Layer]:
    """Return our layers in another order: with a block's shortcut at `place`, and with `norms_apart` its norms last."""
    arranged: list[Layer] = []
    for _, group in groupby(layers, key=lambda layer: _block(layer.name)):
        block = list(group)
        if not block[0].name.startswith("layer"):
            arranged += block
            continue
        shortcut = [layer for layer in block if ".downsample." in layer.name]
        residual = [layer for layer in block if ".downsample." not in layer.name]
        if norms_apart:
            residual.sort(key=lambda layer: layer.kind == "normalisation")
        convs = [index for index, layer in enumerate(residual) if layer.kind == "convolution"]
        before = {"first": 0, "last": len(residual), "before the last convolution": convs[-1]}[place]
        arranged += residual[:before] + shortcut + residual[before:]
    return arranged


def _block(name: str) -> tuple[str, ...]:
    """Return the block of a layer: ("layer1", "0") for `layer1.0.bn1`. A layer outside blocks is a block of its own."""
    parts = tuple(name.split("."))
    return parts[:2] if name.startswith("layer") else parts


def _specs(layers: list[Layer]) -> Iterator[ModelSpec]:
    """Yield networks, with one class, that may have these layers. The caller checks which of them fit."""
    convs = [layer.shape for layer in layers if layer.kind == "convolution"]
    statistics = any("running_var" in layer.values for layer in layers)
    for stem, count, kernel in (("imagenet", 1, 7), ("cifar", 1, 3), ("deep", 3, 3)):
        body = convs[count:]
        squares = [conv for conv in body if conv[-1] == 3]
        points = [conv for conv in body if conv[-1] == 1]
        if not squares or convs[0][-1] != kernel or len(squares) + len(points) != len(body):
            continue
        width = convs[count - 1][0]
        bottleneck = len(points) >= 2 * len(squares)
        widths = [conv[0] for conv in (squares if bottleneck else squares[::2])]
        fields: dict[str, Any] = {
            "block": "bottleneck" if bottleneck else "basic",
            "depths": tuple(len(list(group)) for _, group in groupby(widths)),
            "stem": stem,
            "width": width,
            "norm": "batch" if statistics else "group",
            "in_channels": convs[0][1],
            "classes": 1,
        }
        if bottleneck and min(squares[0]):
            fields["groups"] = groups = squares[0][0] // squares[0][1]
            fields["width_per_group"] = -(-squares[0][0] // max(1, groups) * 64 // max(1, width))
        orders: tuple[OrderName, ...] = ("post", "pre")
        shortcuts: tuple[ShortcutName, ...] = ("B", "C", "A", "none")
        for order, shortcut in product(orders, shortcuts):
            try:
                yield ModelSpec(order=order, shortcut=shortcut, **fields)
            except UsageError:
                continue
