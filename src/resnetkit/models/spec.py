"""Residual networks as data, without torch: `ModelSpec`, the table `SPECS` of all variants, and their text form."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, get_args

from resnetkit.errors import UsageError
from resnetkit.models.constraints import contradictions, wrong_values
from resnetkit.models.geometry import (
    CONVOLUTIONS,
    STEMS,
    AttentionName,
    BlockName,
    BlockSpec,
    NormName,
    OrderName,
    ShortcutName,
    StemName,
    StridedKernel,
    iter_layers,
    least_size,
    stages,
)


@dataclass(frozen=True)
class ModelSpec:
    """A residual network as data; sizes and costs are computed from it.

    Raises UsageError for a network that can't be built.
    """

    block: BlockName
    """basic: two 3×3 convolutions; bottleneck: 1×1, 3×3, 1×1 (Fig. 5)."""
    depths: tuple[int, ...]
    """Blocks in each stage."""
    stem: StemName = "imagenet"
    """imagenet: 7×7/2 convolution and 3×3/2 max pooling; cifar: one 3×3 convolution; deep: as imagenet, with three 3×3
    convolutions instead of the 7×7 (ResNet-C, arXiv:1812.01187)."""
    width: int = 64
    """Channels of the stem and of the first stage; each stage after it doubles them."""
    shortcut: ShortcutName = "B"
    """Shortcut where dimensions change: A zero-padded identity, B projection; C: projections everywhere; none: no
    shortcuts, a plain net."""
    downsample_in: StridedKernel = "3x3"
    """Which convolution of a bottleneck has the stride: 1x1 in the paper (v1), 3x3 in torchvision (v1.5)."""
    groups: int = 1
    """Groups of a bottleneck's 3×3 convolution (ResNeXt's cardinality)."""
    width_per_group: int = 64
    """Channels of each group in a stage of 64 planes; 128 makes a wide ResNet."""
    dilated: tuple[bool, ...] = ()
    """For each stage after the first, whether dilation replaces its stride; empty: in no stage."""
    order: OrderName = "post"
    """post: normalisation and ReLU after each convolution; pre: before it (arXiv:1603.05027)."""
    norm: NormName = "batch"
    """batch; group, in 32 groups (arXiv:1803.08494); frozen: batch normalisation as a fixed affine layer."""
    attention: AttentionName = "none"
    """se: squeeze-and-excitation at the end of every residual (arXiv:1709.01507)."""
    pooled_shortcut: bool = False
    """Whether projections average 2×2 positions instead of a stride (ResNet-D, arXiv:1812.01187)."""
    blur: int = 0
    """Size of the blur filter that has the strides, against aliasing (arXiv:1904.11486): 0 for none, 3, 5 or 7."""
    drop_path: float = 0.0
    """Probability to leave out the last block's residual in training; it rises linearly from 0 in the first block
    (arXiv:1603.09382)."""
    classes: int = 1000
    """Number of classes, and of outputs of the last layer."""
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
        for message in wrong_values(self):
            raise UsageError(message)
        if not any(self.dilated):
            object.__setattr__(self, "dilated", ())  # equal networks must have equal specs
        object.__setattr__(self, "drop_path", float(self.drop_path))
        for message in contradictions(self):
            raise UsageError(message)

    @property
    def layers(self) -> int:
        """The paper's depth: the layers with weights on the longest path, without projections."""
        return 2 + CONVOLUTIONS[self.block] * sum(self.depths)

    @property
    def input_size(self) -> int:
        """Side in pixels of the pictures that the network was designed for; any size from `least_size` up works."""
        return STEMS[self.stem].input_size

    @property
    def least_size(self) -> int:
        """Smallest side in pixels of a picture that the network accepts."""
        return least_size(self)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map that `features` returns."""
        return tuple(stage[-1].outputs for stage in self.stages)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the picture from one position to the next, for each map that `features` returns."""
        return tuple(stage[-1].reduction for stage in self.stages)

    @property
    def output_stride(self) -> int:
        """Stride of the last map, in pixels of the picture. Given as a change to `parse_spec`, it sets `dilated`."""
        return self.strides[-1]

    @property
    def stages(self) -> tuple[tuple[BlockSpec, ...], ...]:
        """The blocks of each stage, in order."""
        return stages(self)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, including gains and offsets of normalisations that are not frozen."""
        return sum(part.parameters for part in iter_layers(self)) + (self.channels[-1] + 1) * self.classes

    def macs(self, size: int | None = None) -> int:
        """Return the multiply-adds of convolutions and classifier for one picture; the paper calls them FLOPs.

        The picture has `size` × `size` pixels (default: input_size).
        """
        side = self.input_size if size is None else size
        return sum(part.macs(side) for part in iter_layers(self)) + self.channels[-1] * self.classes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for `from_dict`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Return the spec with these fields, as JSON values.

        Raises UsageError for unknown or missing fields and for values that are not valid.
        """
        for name in values:
            if name not in FIELDS:
                raise _unknown("field", name, FIELDS)
        missing = [name for name in ("block", "depths") if name not in values]
        if missing:
            raise UsageError(
                f"a network needs {' and '.join(missing)}, but only {', '.join(values) or 'nothing'} is given"
            )
        return cls(**values)

    def __repr__(self) -> str:
        return f"parse_spec({text_of(self)!r})"


FIELDS = tuple(field.name for field in fields(ModelSpec))
MOST_LISTED = 12  # an error lists all known names if they are fewer than this
CHANGES = (*FIELDS, "output_stride")
CHOICES = {
    "block": get_args(BlockName),
    "stem": get_args(StemName),
    "shortcut": get_args(ShortcutName),
    "downsample_in": get_args(StridedKernel),
    "order": get_args(OrderName),
    "norm": get_args(NormName),
    "attention": get_args(AttentionName),
}

RESNET18 = ModelSpec("basic", (2, 2, 2, 2))
RESNET34 = ModelSpec("basic", (3, 4, 6, 3))
RESNET50 = ModelSpec("bottleneck", (3, 4, 6, 3))
RESNET101 = ModelSpec("bottleneck", (3, 4, 23, 3))
RESNET152 = ModelSpec("bottleneck", (3, 8, 36, 3))
IMAGENET = {18: RESNET18, 34: RESNET34, 50: RESNET50, 101: RESNET101, 152: RESNET152}
# Sec. 4.2: three stages of 2n convolutions, 6n + 2 layers, option A everywhere.
CIFAR = {
    6 * n + 2: ModelSpec("basic", (n, n, n), stem="cifar", width=16, shortcut="A", classes=10)
    for n in (3, 5, 7, 9, 18, 200)
}
# 2016b, Sec. 5: 9n + 2 layers of bottlenecks; in the authors' code with projections, and the stride in the first 1×1.
PREACT_CIFAR = {
    9 * n + 2: ModelSpec("bottleneck", (n, n, n), stem="cifar", width=16, downsample_in="1x1", order="pre", classes=10)
    for n in (18, 111)
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
    **{f"resnet{layers}d": replace(spec, stem="deep", pooled_shortcut=True) for layers, spec in IMAGENET.items()},
    "seresnet50": replace(RESNET50, attention="se"),
    "resnetblur50": replace(RESNET50, blur=3),
    "resnet50_gn": replace(RESNET50, norm="group"),
    **{f"preact_resnet{layers}": replace(spec, order="pre") for layers, spec in IMAGENET.items()},
    "preact_resnet110": replace(CIFAR[110], order="pre"),
    **{f"preact_resnet{layers}": spec for layers, spec in PREACT_CIFAR.items()},
}


def parse_spec(model: str | ModelSpec, **changes: Any) -> ModelSpec:
    """Return a row of SPECS, or the given spec, with changes.

    `model` is a spec, or a name with optional changes: `resnet20,shortcut=B,depths=3-3-3,classes=100`. `changes` are
    fields by name, as values (`depths=(3, 3, 3)`) or in the same text form (`depths="3-3-3"`). The change
    `output_stride` sets `dilated`, so that dilation replaces all strides after this total stride. Raises UsageError for
    an unknown name or a value that is not valid.
    """
    if isinstance(model, str):
        name, *settings = (part.strip() for part in model.split(","))
        if name not in SPECS:
            raise _unknown("model", name, SPECS)
        spec = SPECS[name]
        for setting in settings:
            field, equals, value = (part.strip() for part in setting.partition("="))
            if not equals:
                raise UsageError(f'"{setting}" in "{model}" is not a change; write field=value, such as classes=10')
            if field in changes:
                raise UsageError(f"{field} is given twice for {name}; give it once")
            changes[field] = value
    else:
        spec = model
    for field in changes:
        if field not in CHANGES:
            raise _unknown("field", field, CHANGES)
    values = {field: _value(field, given) for field, given in changes.items()}
    if "output_stride" not in values:
        return replace(spec, **values)
    if "dilated" in values:
        raise UsageError("output_stride and dilated both set the dilation; give one of them")
    wanted = values.pop("output_stride")
    strides = replace(spec, **values | {"dilated": ()}).strides
    if type(wanted) is not int or wanted not in strides:
        raise UsageError(f"output_stride is {wanted!r}; it takes one of {', '.join(map(str, strides))} here")
    return replace(spec, **values | {"dilated": tuple(stride > wanted for stride in strides[1:])})


def text_of(spec: ModelSpec, *, without: Sequence[str] = ()) -> str:
    """Return the shortest text that `parse_spec` reads as `spec`: the name of a row, and the changes to it.

    The text leaves out the fields in `without`.
    """
    said = [name for name in FIELDS if name not in without]

    def changes(row: ModelSpec) -> list[str]:
        return [f"{name}={_text(getattr(spec, name))}" for name in said if getattr(spec, name) != getattr(row, name)]

    return min((",".join([name, *changes(row)]) for name, row in SPECS.items()), key=lambda text: text.count(","))


def _text(value: Any) -> str:
    """Return a field's text form, which `_value` reads."""
    if isinstance(value, tuple):
        return "-".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe(model: str | ModelSpec) -> dict[str, str | int | float]:
    """Return the row of a network in the table of `resnetkit models`, by column."""
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
    """Return the value of a field from its text form; a value that is not text is returned unchanged."""
    if not isinstance(given, str) or field in CHOICES:
        return given
    words = given.split("-") if field in ("depths", "dilated") else [given]
    if field in ("dilated", "pooled_shortcut"):
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if not all(word.lower() in known for word in words):
            form = "true or false"
            if field == "dilated":
                form += " for each stage after the first: false-true-true"
            raise UsageError(f'{field} is "{given}"; write {form}')
        truths = tuple(known[word.lower()] for word in words)
        return truths if field == "dilated" else truths[0]
    if field == "drop_path":
        try:
            return float(given)
        except ValueError:
            raise UsageError(f'drop_path is "{given}"; it takes a number, such as 0.1') from None
    if not all(word.isascii() and word.isdigit() for word in words):
        form = "whole numbers with dashes, such as 3-4-6-3" if field == "depths" else "a whole number, such as 10"
        raise UsageError(f'{field} is "{given}"; it takes {form}')
    numbers = tuple(int(word) for word in words)
    return numbers if field == "depths" else numbers[0]


def nearest_name(given: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `given`, or None.

    Among names that differ only in a number, it is the one with the nearest number: resnet20 for resnet21, and not
    resnet32, which has as many letters in common.
    """
    names = list(known)
    if given not in names and (found := re.fullmatch(r"(\D*)(\d+)(.*)", given)):
        before, number, behind = found.groups()
        alike = {
            name: abs(int(other[1]) - int(number))
            for name in names
            if (other := re.fullmatch(rf"{re.escape(before)}(\d+){re.escape(behind)}", name))
        }
        if alike:
            return min(alike, key=lambda name: alike[name])
    return next(iter(get_close_matches(given, names, n=1)), None)


def _unknown(kind: str, given: object, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown word. It names the nearest known word, and all known words if they are few."""
    by_lower = {word.lower(): word for word in known}
    nearest = nearest_name(str(given).lower(), by_lower)
    hint = f'; did you mean "{by_lower[nearest]}"?' if nearest else "."
    if kind == "model":
        hint += " See resnetkit models"
    elif not nearest or len(by_lower) < MOST_LISTED:
        hint += f" Known: {', '.join(by_lower.values())}"
    return UsageError(f'unknown {kind} "{given}"{hint}')
