"""Write a model file as a state dict that torchvision or timm loads with strict=True, if they have this network."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit.convert.conversion import free_target
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import expanded, write_whole
from resnetkit.modelfile import load
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
from resnetkit.models.timm import ARCHITECTURES, PRE_ACTIVATED

FORMATS = (".pth", ".pt", ".safetensors")
EXPRESSIBLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "torchvision": {
        "stem": ("imagenet",),
        "width": (64,),
        "shortcut": ("B",),
        "downsample_in": ("3x3",),
        "order": ("post",),
        "norm": ("batch", "frozen"),
        "attention": ("none",),
        "pooled_shortcut": (False,),
        "blur": (0,),
        "in_channels": (3,),
    },
    "timm": {
        "dilated": ((), (False, False, True), (False, True, True)),  # output_stride=16 and 8
        "stem": ("imagenet", "deep"),
        "width": (64,),
        "shortcut": ("B",),
        "downsample_in": ("3x3",),
        "blur": (0, 3),
    },
}
"""Project -> field of the spec -> the values that the project's networks can have. Other fields may have any value.

With another value the tensors might load into the project's network, but it would compute something else.
"""
DILATED: dict[str, dict[str, tuple[Any, ...]]] = {
    "torchvision": {"block": ("bottleneck",)},
    "timm": {"pooled_shortcut": (False,), "blur": (0,)},
}
"""Additional conditions for dilated networks.

torchvision's basic blocks have no dilation. timm's dilated networks pool shortcuts and blur in other places.
"""
RESNETV2: dict[str, tuple[Any, ...]] = {
    "norm": ("batch", "frozen"),
    "attention": ("none",),
    "blur": (0,),
    "groups": (1,),
    "width_per_group": (64,),
}
"""Additional conditions for pre-activation networks of timm."""


def write_state_dict(model: str | Path, *, to: str, out: str | Path | None = None, force: bool = False) -> Path:
    """Write the tensors of a model under the names of `to`, torchvision or timm; return the path of the file.

    `out` ends in .pth, .pt or .safetensors; the default is `<stem of model>-<to>.pth` in the working folder. Raises
    UsageError if the project does not have this network, ModelFileError if the file can't be written.
    """
    if to not in EXPRESSIBLE:
        raise UsageError(f"`to` is {to!r}; it must be {' or '.join(EXPRESSIBLE)}")
    source = expanded(model)
    stem = source.resolve().name if source.is_dir() else source.name.removesuffix(".safetensors").replace(":", "-")
    target = free_target(source, out or f"{stem}-{to}.pth", force=force)
    if target.suffix not in FORMATS:
        raise UsageError(f"`out` {target} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    loaded = load(model)
    refuse_inexpressible(loaded.header.spec, to)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in as_named_by(to, loaded.header.spec, loaded.net.state_dict()).items()
    }
    try:
        write_whole(target, _to_bytes(target, tensors))
    except OSError as error:
        raise ModelFileError(f"{target} could not be written: {error.strerror}") from error
    return target


def refuse_inexpressible(spec: ModelSpec, project: str) -> None:
    """Raise UsageError, with the names of the fields, if `project` does not have this network."""
    stages = len(spec.depths)
    wrong = [f"{stages} stages"] if stages != 4 else []
    rows = EXPRESSIBLE[project] | (RESNETV2 if spec.order == "pre" else {})
    wrong += [f"{name}={getattr(spec, name)}" for name, values in rows.items() if getattr(spec, name) not in values]
    if spec.dilated and not wrong:
        rows = DILATED[project]
        wrong = [f"{name}={getattr(spec, name)}" for name, values in rows.items() if getattr(spec, name) not in values]
        wrong += [f"dilated={'-'.join(map(str, spec.dilated)).lower()}"] if wrong else []
    if wrong:
        raise UsageError(
            f"{project} has no network with {', '.join(wrong)}: the tensors might load there, "
            "but the network would compute something else. Use the model file itself"
        )


def constructor(spec: ModelSpec, project: str) -> str:
    """Return the Python call that makes this network in `project`; call `refuse_inexpressible` before."""
    classes = {"num_classes": spec.classes}
    if project == "torchvision":
        near = next((name for name, row in SPECS.items() if row == ModelSpec(spec.block, spec.depths)), None)
        block = "Bottleneck" if spec.block == "bottleneck" else "BasicBlock"
        made = f"torchvision.models.resnet.ResNet(torchvision.models.resnet.{block}, {list(spec.depths)}, "
        dilated = {"replace_stride_with_dilation": list(spec.dilated)} if spec.dilated else {}
        shape = _changed(spec, "groups", "groups") | _changed(spec, "width_per_group", "width_per_group")
        return f"{f'torchvision.models.{near}(' if near else made}{_listed(shape | dilated | classes)})"
    same = replace(spec, dilated=(), classes=1000, in_channels=3, drop_path=0.0)
    same = replace(same, norm="batch") if same.norm == "frozen" else same
    theirs = next((name for name, row in (ARCHITECTURES | PRE_ACTIVATED).items() if parse_spec(row) == same), None)
    arguments: dict[str, object] = {}
    if theirs is None:
        layers = 18 if spec.block == "basic" else 50
        theirs = f"resnetv2_{layers}" if spec.order == "pre" else f"resnet{layers}"
        arguments = {"layers": list(spec.depths)} | TIMM_STEMS[spec.order, spec.stem]
        arguments |= {"avg_down": True} if spec.pooled_shortcut else {}
        arguments |= _changed(spec, "groups", "cardinality") | _changed(spec, "width_per_group", "base_width")
        arguments |= {"norm_layer": '"groupnorm"'} if spec.norm == "group" else {}
        arguments |= {"block_args": '{"attn_layer": "se"}'} if spec.attention == "se" else {}
        arguments |= {"aa_layer": "timm.layers.BlurPool2d"} if spec.blur else {}
    arguments |= {"output_stride": spec.output_stride} if spec.dilated else {}
    arguments |= _changed(spec, "in_channels", "in_chans")
    return f'timm.create_model("{theirs}", {_listed(arguments | classes)})'


TIMM_STEMS: dict[tuple[str, str], dict[str, object]] = {
    ("post", "imagenet"): {},
    ("pre", "imagenet"): {},
    ("post", "deep"): {"stem_width": 32, "stem_type": '"deep"'},
    ("pre", "deep"): {"stem_type": '"deep"'},
}


def _changed(spec: ModelSpec, field: str, theirs: str) -> dict[str, object]:
    """Return {theirs: value of the field}, or {} for the default value, which is the same in all projects."""
    value = getattr(spec, field)
    return {} if value == getattr(ModelSpec, field) else {theirs: value}


def _listed(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def as_named_by(project: str, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our state dict under a project's names. They differ from ours only in timm's pre-activation networks."""
    if project != "timm" or spec.order != "pre":
        return dict(tensors)
    theirs = {_to_resnetv2(name): tensor for name, tensor in tensors.items()}
    theirs["head.fc.weight"] = theirs["head.fc.weight"][:, :, None, None]  # timm has a 1×1 convolution
    return theirs


def _to_resnetv2(name: str) -> str:
    """`layer2.0.bn1.weight` is stages.1.blocks.0.norm1.weight: the inverse of layouts.from_resnetv2."""
    if found := re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.\d)\.(.+)", name):
        stage, block, part, index, value = found.groups()
        inner = f"{'conv' if part == 'conv' else 'norm'}{index}" if part else "downsample.conv"
        return f"stages.{int(stage) - 1}.blocks.{block}.{inner}.{value}"
    if found := re.fullmatch(r"conv1\.(\d)\.(.+)", name):
        place, part = divmod(int(found[1]), 3)
        return f"stem.{'norm' if part else 'conv'}{place + 1}.{found[2]}"
    for ours, theirs in (("conv1.", "stem.conv."), ("fc.", "head.fc.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _to_bytes(target: Path, tensors: Mapping[str, Tensor]) -> bytes:
    if target.suffix == ".safetensors":
        from safetensors.torch import save

        return save(dict(tensors), {"format": "pt"})
    stream = io.BytesIO()
    torch.save(dict(tensors), stream)
    return stream.getvalue()
