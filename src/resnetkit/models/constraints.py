"""Checks of a spec's fields. Each fault gives a message that says how to fix it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from resnetkit.models.geometry import BLURS, NORM_GROUPS, STEMS, Normalisation, bottleneck_width, iter_layers

if TYPE_CHECKING:
    from resnetkit.models.spec import ModelSpec

COUNTS = ("width", "groups", "width_per_group", "classes", "in_channels")


def wrong_values(spec: "ModelSpec") -> Iterator[str]:
    """Yield a message for each field with a wrong value. Fields with a fixed set of words are not checked here."""
    if not spec.depths:
        yield "depths is empty; a network has at least one stage"
    for name, count in [("depths", depth) for depth in spec.depths] + [(name, getattr(spec, name)) for name in COUNTS]:
        if type(count) is not int or count < 1:
            yield f"{name} has {count!r}; it takes whole numbers from 1 up"
    if not all(type(dilate) is bool for dilate in spec.dilated):
        yield f"dilated is {list(spec.dilated)}; it takes true or false for each stage after the first"
    if type(spec.pooled_shortcut) is not bool:
        yield f"pooled_shortcut is {spec.pooled_shortcut!r}; it takes true or false"
    if type(spec.blur) is not int or spec.blur not in BLURS:
        yield f"blur is {spec.blur!r}; it takes {', '.join(map(str, BLURS[:-1]))} or {BLURS[-1]}"
    if type(spec.drop_path) not in (int, float) or not 0 <= spec.drop_path < 1:
        yield f"drop_path is {spec.drop_path!r}; it takes a number from 0 to less than 1"


def contradictions(spec: "ModelSpec") -> Iterator[str]:
    """Yield contradictions between fields, each of which has a possible value."""
    if spec.dilated and len(spec.dilated) != len(spec.depths) - 1:
        yield (
            f"dilated has {len(spec.dilated)} values for {len(spec.depths)} stages; "
            f"give {len(spec.depths) - 1}, one for each stage after the first"
        )
    if spec.block == "basic" and (spec.groups, spec.width_per_group, spec.downsample_in) != (1, 64, "3x3"):
        yield "basic blocks have no groups, width_per_group or downsample_in; use block=bottleneck, or change width"
    if bottleneck_width(spec.width, 1, spec.width_per_group) < 1:
        yield (
            f"width={spec.width} with width_per_group={spec.width_per_group} leaves no channel for a group; "
            f"width × width_per_group must be at least 64"
        )
    if min(STEMS[spec.stem].widths(spec.width)) < 1:
        yield f"stem={spec.stem} halves the width, which is {spec.width}; it needs width=2 or more"
    if spec.shortcut == "none" and spec.order == "pre":
        yield "order=pre needs shortcuts; use shortcut=A, B or C, or order=post"
    if spec.shortcut == "none" and spec.drop_path:
        yield "drop_path needs shortcuts; with shortcut=none, a block without its residual would return only zeros"
    if spec.pooled_shortcut and spec.shortcut not in ("B", "C"):
        yield f"pooled_shortcut needs projections: shortcut=B or C, not {spec.shortcut}"
    if spec.blur and spec.downsample_in == "1x1":
        yield "blur replaces the stride of the 3x3; use downsample_in=3x3, or blur=0"
    if spec.norm == "group":
        for part in iter_layers(spec):
            if isinstance(part, Normalisation) and part.channels % NORM_GROUPS:
                yield (
                    f"norm=group makes {NORM_GROUPS} groups of channels, but a convolution has {part.channels}; "
                    f"use widths that {NORM_GROUPS} divides, or norm=batch"
                )
