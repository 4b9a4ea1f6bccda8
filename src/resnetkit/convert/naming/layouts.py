"""Convert names and layouts of tensors in other projects to ours: the functions in the rows of PROJECTS."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from resnetkit.models.spec import ModelSpec

Tensors = Mapping[str, Tensor]

KERAS_EPSILON = 1.001e-5
"""ε of the batch normalisation in Keras' residual networks."""
EPSILON = 1e-5
"""ε of the batch normalisation in PyTorch and in our networks."""
KERAS_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def from_keras(found: re.Match[str]) -> str:
    """`conv3_block2_1_conv/kernel` is layer2.1.conv1.weight; a bias gets a name beside the following normalisation."""
    stage, block, part, layer, variable = found.groups()
    # Keras counts stages from conv2 on and blocks from 1; part 0 is the projection.
    where = f"layer{int(stage) - 1}.{int(block) - 1}." if block else ""
    conv, norm = ("downsample.0", "downsample.1") if part == "0" else (f"conv{part or 1}", f"bn{part or 1}")
    if layer == "bn":
        return f"{where}{norm}.{KERAS_NORM.get(variable, variable)}"
    return f"{where}{conv}.weight" if variable == "kernel" else f"{where}{norm}.conv_{variable}"


def fold_keras(tensors: Tensors) -> dict[str, Tensor]:
    """Fold the biases of convolutions and the ε of Keras' residual networks into batch normalisation, in float64.

    Batch normalisation after a convolution with bias b is γ(x + b - μ)/√(σ² + ε) + β. This is the same without the bias
    and with the running mean μ - b. For another ε, the difference is added to the running variance σ². Kernels are
    transposed from (height, width, inputs, outputs) to (outputs, inputs, height, width). Keras' first convolution
    expects the channels blue, green, red, as Caffe's does: its input channels are reversed. Returns float32 tensors.
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


def from_transformers(found: re.Match[str]) -> str:
    """`encoder.stages.1.layers.0.layer.2.convolution.weight` is layer2.0.conv3.weight; all their numbers begin at 0."""
    stage, block, index, kind, value = found.groups()
    where = f"layer{int(stage) + 1}.{block}"
    if index is None:
        return f"{where}.downsample.{0 if kind == 'convolution' else 1}.{value}"
    return f"{where}.{'conv' if kind == 'convolution' else 'bn'}{int(index) + 1}.{value}"


def from_resnetv2(found: re.Match[str]) -> str:
    """`stages.1.blocks.0.norm2.weight` is layer2.0.bn2.weight."""
    stage, block, part, index, value = found.groups()
    names = {"conv": f"conv{index}", "norm": f"bn{index}", "downsample": "downsample.0"}
    return f"layer{int(stage) + 1}.{block}.{names[part]}.{value}"


def from_deep_stem(found: re.Match[str]) -> str:
    """`stem.norm2.weight` is conv1.4.weight: ours counts convolutions, normalisations and ReLUs together."""
    part, index, value = found.groups()
    return f"conv1.{3 * (int(index) - 1) + (part == 'norm')}.{value}"


def settle_resnetv2(tensors: Tensors) -> dict[str, Tensor]:
    """Make a linear layer of a classifier that is a 1×1 convolution; with a deep stem, shortcuts contain a pooling."""
    ours = dict(tensors)
    if "fc.weight" in ours and ours["fc.weight"].shape[2:] == (1, 1):
        ours["fc.weight"] = ours["fc.weight"].flatten(1)
    if "conv1.0.weight" in ours:
        ours = {name.replace("downsample.0.", "downsample.1."): tensor for name, tensor in ours.items()}
    return ours


def from_symmetric_padding(tensors: Tensors, spec: ModelSpec) -> dict[str, Tensor]:
    """Reorder the channels of each stage: a stage's new channels come after the channels of the stage before.

    akamaster's option A pads with zeros on both sides: half of the new channels come before the old channels, half
    after them. Ours pads only after them. The network computes the same if the channels of a feature map are reordered
    together with the weights that produce and read them.
    """
    ours = dict(tensors)
    order = torch.arange(spec.width)  # of the current feature map: our channel i is their channel order[i]
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


def fold_biases(tensors: Tensors) -> dict[str, Tensor]:
    """Fold the biases of convolutions into the running mean of the following batch normalisation, in float64.

    γ(x + b - μ)/√(σ² + ε) + β is the same without the bias b and with the running mean μ - b. A bias stays if no batch
    normalisation with the same number of channels follows. It does not fit a network then, and an error names it.
    """
    ours = dict(tensors)
    for name, bias in tensors.items():
        place, _, kind = name.rpartition(".")
        if kind != "bias" or (f"{place}.weight" not in tensors) or tensors[f"{place}.weight"].ndim != 4:
            continue
        mean = next((n for norm in _norms_behind(place) if (n := f"{norm}.running_mean") in tensors), None)
        if mean is not None and tensors[mean].shape == bias.shape:
            ours[mean] = (tensors[mean].double() - bias.double()).float()
            del ours[name]
    return ours


def _norms_behind(conv: str) -> tuple[str, ...]:
    """Return the possible names of the normalisation after a convolution, in post-activation networks."""
    parent, _, part = conv.rpartition(".")
    if part.isdecimal():  # in a projection or a deep stem; bn1 follows the last convolution of the stem
        return f"{parent}.{int(part) + 1}", "bn1"
    return (f"{conv.removesuffix(part)}bn{part.removeprefix('conv')}",)


def from_children(found: re.Match[str]) -> str:
    """`4.0.conv1.weight` is layer1.0.conv1.weight: 4 is the index in a Sequential of torchvision's parts."""
    part, rest = int(found[1]), found[2]
    return f"{'conv1' if part == 0 else 'bn1' if part == 1 else f'layer{part - 3}'}.{rest}"


def from_residual_function(found: re.Match[str]) -> str:
    """`conv3_x.0.residual_function.4.weight` is layer2.0.bn2.weight: 4 is the index in a Sequential."""
    stage, block, index, value = found.groups()
    kind = "conv" if int(index) % 3 == 0 else "bn"
    return f"layer{int(stage) - 1}.{block}.{kind}{int(index) // 3 + 1}.{value}"


def from_detectron2(found: re.Match[str]) -> str:
    """`res2.0.conv1.norm.weight` is layer1.0.bn1.weight: a normalisation is a submodule of its convolution."""
    stage, block, part, norm, value = found.groups()
    where = f"layer{int(stage) - 1}.{block}."
    if part == "shortcut":
        return f"{where}downsample.{1 if norm else 0}.{value}"
    return f"{where}{'bn' if norm else 'conv'}{part.removeprefix('conv')}.{value}"


CAFFE2_VALUES = {"w": "weight", "bn_s": "weight", "bn_b": "bias", "bn_rm": "running_mean", "bn_riv": "running_var"}


def from_caffe2(found: re.Match[str]) -> str:
    """`res2_0_branch2a_bn_s` is layer1.0.bn1.weight; `branch1` is the projection."""
    stage, block, branch, value = found.groups()
    norm = value != "w"
    where = f"layer{int(stage) - 1}.{int(block)}."
    part = f"downsample.{int(norm)}" if branch == "1" else f"{'bn' if norm else 'conv'}{'abc'.index(branch[1]) + 1}"
    return f"{where}{part}.{CAFFE2_VALUES[value]}"


def turn_channels(tensors: Tensors) -> dict[str, Tensor]:
    """Reverse the input channels of the first convolution, from blue, green, red to red, green, blue."""
    ours = dict(tensors)
    first = tensors.get("conv1.weight")
    if first is not None and first.ndim == 4 and first.shape[1] == 3:
        ours["conv1.weight"] = first.flip(1)
    return ours


def settle_caffe2(tensors: Tensors) -> dict[str, Tensor]:
    """Reverse the input channels, and add neutral statistics to normalisations that have only scale and offset."""
    ours = turn_channels(tensors)
    for name, scale in tensors.items():
        norm, _, kind = name.rpartition(".")
        if kind == "weight" and scale.ndim == 1 and f"{norm}.running_var" not in tensors:
            ours[f"{norm}.running_mean"] = torch.zeros(len(scale))
            ours[f"{norm}.running_var"] = torch.full((len(scale),), 1 - EPSILON)  # plus ε it is 1
    return ours
