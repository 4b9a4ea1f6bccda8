"""A model file to a state dict that torchvision or timm loads with strict=True, where they have such a network."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetkit.convert.conversion import free_target
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import write_whole
from resnetkit.modelfile import load
from resnetkit.models.spec import ModelSpec

FORMATS = (".pth", ".pt", ".safetensors")
# What a network must be for a project to have it; a field that isn't here may be anything. With anything else the
# tensors might well load, and compute something else.
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
        "stem": ("imagenet", "deep"),
        "width": (64,),
        "shortcut": ("B",),
        "downsample_in": ("3x3",),
        "blur": (0, 3),
    },
}
RESNETV2: dict[str, tuple[Any, ...]] = {  # timm's pre-activation networks, beyond that
    "norm": ("batch", "frozen"),
    "attention": ("none",),
    "blur": (0,),
    "groups": (1,),
    "width_per_group": (64,),
}


def export(model: str | Path, *, to: str, out: str | Path | None = None, force: bool = False) -> Path:
    """Write the tensors of a model as `to`, torchvision or timm, names them; return the file, .pth or .safetensors.

    `out` is `<stem of model>-<to>.pth` in the working folder by default. Raises UsageError where that project has no
    such network: tensors that load are not enough.
    """
    if to not in EXPRESSIBLE:
        raise UsageError(f"--to is {to!r}; it takes {' or '.join(EXPRESSIBLE)}")
    source = Path(model)
    stem = source.resolve().name if source.is_dir() else source.name.removesuffix(".safetensors").replace(":", "-")
    target = free_target(source, out or f"{stem}-{to}.pth", force=force)
    if target.suffix not in FORMATS:
        raise UsageError(f"--out {target} ends in {target.suffix or 'nothing'}; it takes {', '.join(FORMATS)}")
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
    """Raise UsageError where `project` has no network like this, naming the field."""
    stages = len(spec.depths)
    wrong = [f"{stages} stages"] if stages != 4 else []
    for name, values in (EXPRESSIBLE[project] | (RESNETV2 if spec.order == "pre" else {})).items():
        if getattr(spec, name) not in values:
            wrong.append(f"{name}={getattr(spec, name)}")
    if wrong:
        raise UsageError(
            f"{project} has no network with {', '.join(wrong)}: its tensors might load there "
            "and compute something else. Keep the model file"
        )


def as_named_by(project: str, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with a project's names; only timm's pre-activation networks have others."""
    if project != "timm" or spec.order != "pre":
        return dict(tensors)
    theirs = {_to_resnetv2(name): tensor for name, tensor in tensors.items()}
    theirs["head.fc.weight"] = theirs["head.fc.weight"][:, :, None, None]  # a 1×1 convolution there
    return theirs


def _to_resnetv2(name: str) -> str:
    """`layer2.0.bn1.weight` is stages.1.blocks.0.norm1.weight: the inverse of a row in sources."""
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
