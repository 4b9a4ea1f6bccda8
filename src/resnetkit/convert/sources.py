"""Whose names are they? A source is a row: how to know its files, what its names are in ours, and what else it implies.

Our names are torchvision's, and timm's for what torchvision has not.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resnetkit.models.spec import ModelSpec

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A project that publishes residual networks."""

    name: str
    known_by: Mapping[str, tuple[int | None, ...]]
    """Patterns of names that its files have, with the tensors' shapes: None fits any side, () any shape."""
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    """Patterns of its names, and what each is in ours; the first that fits a whole name holds."""
    prepare: Callable[[Tensors], dict[str, Tensor]] = dict
    """Values, under our names, in its layout to values in ours; whatever the network."""
    reorder: Callable[[Tensors, ModelSpec], dict[str, Tensor]] = lambda tensors, _: dict(tensors)
    """The same for what depends on the network; only called with every tensor of the network in place."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a spec that hold for all of its networks."""
    published: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """Number of classes -> the names, in presets, of preprocessing and classes of the weights that it publishes."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names -> which of its networks have them, that begin alike and can't be read."""
    registered: bool = False
    """Whether some files with its names are known by their hash."""

    def rename(self, name: str) -> str:
        """Our name for one of its names; one that follows no rule stays what it is."""
        for pattern, ours in self.rules:
            if found := re.fullmatch(pattern, name):
                return found.expand(ours) if isinstance(ours, str) else ours(found)
        return name


def recognise(tensors: Tensors) -> Source | None:
    """The first row of SOURCES whose tensors are there, or None."""
    return next((source for source in SOURCES if _has_all(source, tensors)), None)


def _has_all(source: Source, tensors: Tensors) -> bool:
    return all(
        any(re.fullmatch(pattern, name) and _fits(tensors[name].shape, shape) for name in tensors)
        for pattern, shape in source.known_by.items()
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    sides = zip(shape, wanted, strict=False)
    return not wanted or (len(shape) == len(wanted) and all(want in (None, side) for side, want in sides))


KERAS_EPSILON = 1.001e-5
"""What Keras' residual networks add to a variance; PyTorch's batch normalisation adds EPSILON."""
EPSILON = 1e-5
KERAS_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def _from_keras(found: re.Match[str]) -> str:
    """`conv3_block2_1_conv/kernel` is layer2.1.conv1.weight; a bias stays beside the normalisation that takes it."""
    stage, block, part, layer, variable = found.groups()
    # Keras counts stages from conv2 on and blocks from 1; part 0 is the projection.
    where = f"layer{int(stage) - 1}.{int(block) - 1}." if block else ""
    conv, norm = ("downsample.0", "downsample.1") if part == "0" else (f"conv{part or 1}", f"bn{part or 1}")
    if layer == "bn":
        return f"{where}{norm}.{KERAS_NORM.get(variable, variable)}"
    return f"{where}{conv}.weight" if variable == "kernel" else f"{where}{norm}.conv_{variable}"


def fold_keras(tensors: Tensors) -> dict[str, Tensor]:
    """Fold what Keras' residual networks have and ours have not into batch normalisation, in double precision.

    A convolution's bias b only shifts what the normalisation then centres: γ(x + b - μ)/√(σ² + ε) + β is the same with
    the running mean μ - b and no bias, and with another ε where the running variance grows by the difference. Kernels
    go from (height, width, inputs, outputs) to (outputs, inputs, height, width). The first takes blue, green and red,
    in which order Caffe had them: here its channels are turned round.
    """
    ours = dict(tensors)
    for name, tensor in tensors.items():
        value = tensor.double()
        if value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
            value = value.flip(1) if name == "conv1.weight" else value
        elif name == "fc.weight" and value.ndim == 2:
            value = value.T
        elif name.endswith(".running_var"):
            value = value + (KERAS_EPSILON - EPSILON)
        elif name.endswith(".running_mean"):
            bias = tensors.get(bias_name := name.replace("running_mean", "conv_bias"))
            if bias is not None and bias.shape == value.shape:
                value = value - bias.double()
                del ours[bias_name]
        if name in ours:
            ours[name] = value.float().contiguous()
    return ours


def _from_transformers(found: re.Match[str]) -> str:
    """`encoder.stages.1.layers.0.layer.2.convolution.weight` is layer2.0.conv3.weight; everything counts from 0."""
    stage, block, index, kind, value = found.groups()
    where = f"layer{int(stage) + 1}.{block}"
    if index is None:
        return f"{where}.downsample.{0 if kind == 'convolution' else 1}.{value}"
    return f"{where}.{'conv' if kind == 'convolution' else 'bn'}{int(index) + 1}.{value}"


def _from_resnetv2(found: re.Match[str]) -> str:
    """`stages.1.blocks.0.norm2.weight` is layer2.0.bn2.weight."""
    stage, block, part, index, value = found.groups()
    names = {"conv": f"conv{index}", "norm": f"bn{index}", "downsample": "downsample.0"}
    return f"layer{int(stage) + 1}.{block}.{names[part]}.{value}"


def _from_deep_stem(found: re.Match[str]) -> str:
    """`stem.norm2.weight` is conv1.4.weight: convolutions, normalisations and ReLUs have one count here."""
    part, index, value = found.groups()
    return f"conv1.{3 * (int(index) - 1) + (part == 'norm')}.{value}"


def settle_resnetv2(tensors: Tensors) -> dict[str, Tensor]:
    """A classifier that is a 1×1 convolution becomes a linear layer; deep stems come with shortcuts that pool first."""
    ours = dict(tensors)
    if "fc.weight" in ours and ours["fc.weight"].shape[2:] == (1, 1):
        ours["fc.weight"] = ours["fc.weight"].flatten(1)
    if "conv1.0.weight" in ours:
        ours = {name.replace("downsample.0.", "downsample.1."): tensor for name, tensor in ours.items()}
    return ours


def from_symmetric_padding(tensors: Tensors, spec: ModelSpec) -> dict[str, Tensor]:
    """Put the channels of each stage in our order: those that are new in a stage behind those from before it.

    akamaster's option A pads the channels on both sides, half of the new ones before the old ones and half after; ours
    pads after them. The order of a map's channels is only a matter of naming: put those of every map in a stage in
    another order, the weights that make it and those that read it with them, and the network computes the same.
    """
    ours = dict(tensors)
    order = torch.arange(spec.width)  # of the channels of the map so far: ours[i] is theirs[order[i]]
    for stage, blocks in enumerate(spec.stages, 1):
        for number, block in enumerate(blocks):
            here = f"layer{stage}.{number}"
            ours[f"{here}.conv1.weight"] = tensors[f"{here}.conv1.weight"][:, order]
            if block.shortcut == "pad":
                before = (block.outputs - block.inputs) // 2
                new = [*range(before), *range(before + block.inputs, block.outputs)]
                order = torch.cat([before + order, torch.tensor(new)])
            ours[f"{here}.conv2.weight"] = tensors[f"{here}.conv2.weight"][order]
            for value in ("weight", "bias", "running_mean", "running_var"):
                ours[f"{here}.bn2.{value}"] = tensors[f"{here}.bn2.{value}"][order]
    ours["fc.weight"] = tensors["fc.weight"][:, order]
    return ours


SOURCES = (
    Source(
        "Keras",
        known_by={"conv1_conv/kernel": (), "conv2_block1_1_conv/kernel": ()},
        rules=(
            (r"conv(\d+)(?:_block(\d+)_(\d))?_(conv|bn)/(\w+)", _from_keras),
            (r"(?:probs|predictions|dense)(?:_\d+)?/kernel", "fc.weight"),
            (r"(?:probs|predictions|dense)(?:_\d+)?/bias", "fc.bias"),
        ),
        prepare=fold_keras,
        implies={"downsample_in": "1x1", "blur": 0},
        published={1000: ("caffe", "imagenet")},
        unread={r"conv2_block1_preact_bn/.+|post_bn/.+": "a ResNet V2 (ResNet50V2, ...)"},
    ),
    Source(
        "transformers",
        known_by={r"(resnet\.)?embedder\.embedder\.convolution\.weight": ()},
        rules=(
            (r"(?:resnet\.)?embedder\.embedder\.convolution\.(.+)", r"conv1.\1"),
            (r"(?:resnet\.)?embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
            (
                r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
                r"(?:shortcut|layer\.(\d+))\.(convolution|normalization)\.(\w+)",
                _from_transformers,
            ),
            (r"classifier\.1\.(.+)", r"fc.\1"),
        ),
        implies={"downsample_in": "3x3", "blur": 0},
        published={1000: ("imagenet-bicubic", "imagenet")},
    ),
    Source(
        "akamaster/pytorch_resnet_cifar10",
        known_by={r"conv1\.weight": (16, 3, 3, 3), r"linear\.weight": (None, 64)},
        rules=((r"linear\.(.+)", r"fc.\1"),),
        reorder=from_symmetric_padding,
        implies={"shortcut": "A", "blur": 0},
        published={10: ("cifar-imagenet", "cifar10")},
    ),
    Source(
        "timm (resnetv2)",
        known_by={r"stages\.\d+\.blocks\.0\.norm1\.weight": ()},
        rules=(
            (r"stem\.conv\.(.+)", r"conv1.\1"),
            (r"stem\.(conv|norm)(\d)\.(.+)", _from_deep_stem),
            (r"stages\.(\d+)\.blocks\.(\d+)\.(conv|norm|downsample)(\d|\.conv)\.(.+)", _from_resnetv2),
            (r"head\.fc\.(.+)", r"fc.\1"),
        ),
        prepare=settle_resnetv2,
        # The same names without running statistics are BiT's, whose convolutions are standardised: other networks.
        implies={"order": "pre", "norm": "batch"},
    ),
    Source("torchvision or timm", known_by={r"layer\d+\.0\.(conv|bn)1\.weight": ()}, registered=True),
)
