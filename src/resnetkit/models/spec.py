"""Residual networks as data, without torch: `ModelSpec`, one row of `SPECS` per variant, and a row's text form."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import chain
from typing import Any, get_args

from resnetkit.errors import UsageError
from resnetkit.models.geometry import (
    CONVOLUTIONS,
    EXPANSION,
    SHORTCUTS,
    STEMS,
    BlockName,
    BlockSpec,
    Convolution,
    ShortcutName,
    StemName,
    StridedKernel,
    bottleneck_width,
)


@dataclass(frozen=True)
class ModelSpec:
    """A residual network as data; everything else about it follows. Raises UsageError for what can't be built."""

    block: BlockName
    """basic: two 3×3 convolutions; bottleneck: 1×1, 3×3, 1×1 (Fig. 5)."""
    depths: tuple[int, ...]
    """Blocks in each stage."""
    stem: StemName = "imagenet"
    """imagenet: 7×7/2 convolution and 3×3/2 max pooling; cifar: one 3×3 convolution."""
    width: int = 64
    """Channels of the stem and of the first stage; each stage after it doubles them."""
    shortcut: ShortcutName = "B"
    """Where dimensions change: A zero-padded identity, B projection; C projects everywhere; none: a plain net."""
    downsample_in: StridedKernel = "3x3"
    """Which convolution of a bottleneck has the stride: 1x1 in the paper (v1), 3x3 in torchvision (v1.5)."""
    groups: int = 1
    """Groups of a bottleneck's 3×3 convolution (ResNeXt's cardinality)."""
    width_per_group: int = 64
    """Channels of each of those groups in a stage of 64 planes; 128 makes a wide ResNet."""
    dilated: tuple[bool, ...] = ()
    """For each stage after the first, whether dilation replaces its stride; empty: nowhere."""
    classes: int = 1000
    """Width of the last layer."""
    in_channels: int = 3
    """Channels of the pictures."""

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise _unknown(name, getattr(self, name), known)
        for name in ("depths", "dilated"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise UsageError(f"{name} is {values!r}; it takes a list with a value for each stage")
            object.__setattr__(self, name, tuple(values))
        if not self.depths:
            raise UsageError("depths is empty; a network has at least one stage")
        single = ("width", "groups", "width_per_group", "classes", "in_channels")
        for name, count in [("depths", depth) for depth in self.depths] + [
            (name, getattr(self, name)) for name in single
        ]:
            if type(count) is not int or count < 1:
                raise UsageError(f"{name} has {count!r}; it takes whole numbers from 1 up")
        if not all(type(dilate) is bool for dilate in self.dilated):
            raise UsageError(f"dilated is {list(self.dilated)}; it takes true or false for each stage after the first")
        if self.dilated and len(self.dilated) != len(self.depths) - 1:
            raise UsageError(
                f"dilated has {len(self.dilated)} values for {len(self.depths)} stages; "
                f"give {len(self.depths) - 1}, one for each stage after the first"
            )
        if not any(self.dilated):
            object.__setattr__(self, "dilated", ())  # one spelling, so that equal networks have equal specs
        if self.block == "basic" and (self.groups, self.width_per_group, self.downsample_in) != (1, 64, "3x3"):
            raise UsageError(
                "basic blocks take no groups, width_per_group or downsample_in; use block=bottleneck, or change width"
            )
        if bottleneck_width(self.width, 1, self.width_per_group) < 1:
            raise UsageError(
                f"width={self.width} with width_per_group={self.width_per_group} leaves no channel for a group; "
                f"width × width_per_group must be at least 64"
            )

    @property
    def layers(self) -> int:
        """The paper's depth: weighted layers on the longest path, so without projections."""
        return 2 + CONVOLUTIONS[self.block] * sum(self.depths)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that the network was designed for; any other works too."""
        return STEMS[self.stem].input_size

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map that `features` returns."""
        return tuple(stage[-1].outputs for stage in self.stages)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the picture from one place to the next, for each map that `features` returns."""
        return tuple(stage[-1].reduction for stage in self.stages)

    @property
    def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks of each stage, from the picture to the classes."""
        stem = STEMS[self.stem]
        inputs, reduction, dilation = self.width, stem.stride * stem.pool_stride, 1
        dilated = (False, *self.dilated) if self.dilated else (False,) * len(self.depths)
        stages: list[tuple[BlockSpec, ...]] = []
        for stage, (depth, dilate) in enumerate(zip(self.depths, dilated, strict=True)):
            planes = self.width * 2**stage
            step = 1 if stage == 0 else 2
            outputs = planes * EXPANSION[self.block]
            stride = 1 if dilate else step
            out_dilation = dilation * step // stride
            reduction *= stride
            same, changed = SHORTCUTS[self.shortcut]
            joins = same if (stride, inputs) == (1, outputs) else changed
            first = BlockSpec(inputs, planes, outputs, stride, dilation, out_dilation, reduction, joins)
            later = BlockSpec(outputs, planes, outputs, 1, out_dilation, out_dilation, reduction, same)
            stages.append((first, *[later] * (depth - 1)))
            inputs, dilation = outputs, out_dilation
        return tuple(stages)

    def convolutions(self) -> Iterator[Convolution]:
        """Every convolution, in the order of the tensors: the one walk that sizes and costs come from."""
        stem = STEMS[self.stem]
        yield Convolution(self.in_channels, self.width, stem.kernel, stem.stride)
        for block in chain.from_iterable(self.stages):
            inputs, planes, outputs, reduction = block.inputs, block.planes, block.outputs, block.reduction
            if self.block == "basic":
                yield Convolution(inputs, planes, 3, reduction)
                yield Convolution(planes, outputs, 3, reduction)
            else:
                inner = bottleneck_width(planes, self.groups, self.width_per_group)
                before = reduction // block.stride if self.downsample_in == "3x3" else reduction
                yield Convolution(inputs, inner, 1, before)
                yield Convolution(inner, inner, 3, reduction, self.groups)
                yield Convolution(inner, outputs, 1, reduction)
            if block.shortcut == "project":
                yield Convolution(inputs, outputs, 1, reduction)

    @property
    def parameters(self) -> int:
        """Trainable numbers, with batch normalisation's two for each channel."""
        classifier = (self.channels[-1] + 1) * self.classes
        return sum(conv.weights + 2 * conv.outputs for conv in self.convolutions()) + classifier

    def macs(self, size: int | None = None) -> int:
        """Multiply-adds of convolutions and classifier for one picture of `size` × `size` pixels (default: input_size).

        The paper calls them FLOPs.
        """
        side = self.input_size if size is None else size
        return sum(conv.macs(side) for conv in self.convolutions()) + self.channels[-1] * self.classes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; `from_dict` is the way back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Make a spec from fields as JSON has them. Raises UsageError for unknown or missing fields or bad values."""
        for name in values:
            if name not in FIELDS:
                raise _unknown("field", name, FIELDS)
        missing = [name for name in ("block", "depths") if name not in values]
        if missing:
            raise UsageError(
                f"a network needs {' and '.join(missing)}, but only {', '.join(values) or 'nothing'} is given"
            )
        return cls(**values)


FIELDS = tuple(field.name for field in fields(ModelSpec))
CHOICES = {
    "block": get_args(BlockName),
    "stem": get_args(StemName),
    "shortcut": get_args(ShortcutName),
    "downsample_in": get_args(StridedKernel),
}

RESNET18 = ModelSpec("basic", (2, 2, 2, 2))
RESNET34 = ModelSpec("basic", (3, 4, 6, 3))
RESNET50 = ModelSpec("bottleneck", (3, 4, 6, 3))
RESNET101 = ModelSpec("bottleneck", (3, 4, 23, 3))
RESNET152 = ModelSpec("bottleneck", (3, 8, 36, 3))
# Sec. 4.2: three stages of 2n convolutions, 6n + 2 layers, option A everywhere.
CIFAR = {
    6 * n + 2: ModelSpec("basic", (n, n, n), stem="cifar", width=16, shortcut="A", classes=10)
    for n in (3, 5, 7, 9, 18, 200)
}

SPECS: dict[str, ModelSpec] = {
    "resnet18": RESNET18,
    "resnet34": RESNET34,
    "resnet50": RESNET50,
    "resnet101": RESNET101,
    "resnet152": RESNET152,
    "resnet50_v1": replace(RESNET50, downsample_in="1x1"),
    "resnet101_v1": replace(RESNET101, downsample_in="1x1"),
    "resnet152_v1": replace(RESNET152, downsample_in="1x1"),
    "resnet18_a": replace(RESNET18, shortcut="A"),
    "resnet34_a": replace(RESNET34, shortcut="A"),
    "resnet34_c": replace(RESNET34, shortcut="C"),
    "plain18": replace(RESNET18, shortcut="none"),
    "plain34": replace(RESNET34, shortcut="none"),
    "resnext50_32x4d": replace(RESNET50, groups=32, width_per_group=4),
    "resnext101_32x8d": replace(RESNET101, groups=32, width_per_group=8),
    "resnext101_64x4d": replace(RESNET101, groups=64, width_per_group=4),
    "wide_resnet50_2": replace(RESNET50, width_per_group=128),
    "wide_resnet101_2": replace(RESNET101, width_per_group=128),
    **{f"resnet{layers}": spec for layers, spec in CIFAR.items()},
    **{f"resnet{layers}_b": replace(spec, shortcut="B") for layers, spec in CIFAR.items()},
    **{f"resnet{layers}_c": replace(spec, shortcut="C") for layers, spec in CIFAR.items()},
    **{f"plain{layers}": replace(spec, shortcut="none") for layers, spec in CIFAR.items() if layers != 1202},
}


def parse_spec(model: str | ModelSpec, **changes: Any) -> ModelSpec:
    """Return a row of SPECS, or a given spec, with changes.

    `model` is a name, and may go on with changes: `resnet20,shortcut=B,depths=3-3-3,classes=100`. `changes` are fields
    by name, as values (`depths=(3, 3, 3)`) or in the same text form (`depths="3-3-3"`). Raises UsageError.
    """
    if isinstance(model, str):
        name, *settings = (part.strip() for part in model.split(","))
        if name not in SPECS:
            raise _unknown("model", name, SPECS)
        spec = SPECS[name]
        for setting in settings:
            field, equals, value = (part.strip() for part in setting.partition("="))
            if not equals:
                raise UsageError(f'"{setting}" in "{model}" is no change; write field=value, such as classes=10')
            if field in changes:
                raise UsageError(f"{field} is given twice for {name}; give it once")
            changes[field] = value
    else:
        spec = model
    for field in changes:
        if field not in FIELDS:
            raise _unknown("field", field, FIELDS)
    return replace(spec, **{field: _value(field, given) for field, given in changes.items()})


def describe(model: str | ModelSpec) -> dict[str, str | int | float]:
    """Return what the table of the family shows of a network: one row, by column."""
    spec = parse_spec(model)
    return {
        "name": model if isinstance(model, str) else "",
        "layers": spec.layers,
        "block": spec.block,
        "depths": "-".join(map(str, spec.depths)),
        "shortcut": spec.shortcut,
        "downsample_in": spec.downsample_in,
        "input_size": spec.input_size,
        "classes": spec.classes,
        "parameters": spec.parameters,
        "gmacs": spec.macs() / 1e9,
    }


def _value(field: str, given: Any) -> Any:
    """Read a field's text form; what is no text is a value already."""
    if not isinstance(given, str) or field in CHOICES:
        return given
    words = given.split("-")
    if field == "dilated":
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if not all(word.lower() in known for word in words):
            raise UsageError(
                f'dilated is "{given}"; write true or false for each stage after the first: false-true-true'
            )
        return tuple(known[word.lower()] for word in words)
    if not all(word.isascii() and word.isdigit() for word in words) or (field != "depths" and len(words) > 1):
        form = "whole numbers with dashes, such as 3-4-6-3" if field == "depths" else "a whole number, such as 10"
        raise UsageError(f'{field} is "{given}"; it takes {form}')
    numbers = tuple(int(word) for word in words)
    return numbers if field == "depths" else numbers[0]


def _unknown(kind: str, given: object, known: Iterable[str]) -> UsageError:
    """Make the error for a word that is not among the known ones; it names the nearest."""
    by_lower = {word.lower(): word for word in known}
    nearest = get_close_matches(str(given).lower(), by_lower, n=1)
    hint = f'; did you mean "{by_lower[nearest[0]]}"?' if nearest else "."
    return UsageError(f'unknown {kind} "{given}"{hint} Known: {", ".join(known)}')
