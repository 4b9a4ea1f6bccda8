"""Weights of torchvision's detectors, from their state dict to a detector and back."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.files import DetectorModel, empty_detector, header_of
from resnetkit.detect.model import Detector
from resnetkit.detect.spec import DETECTORS
from resnetkit.errors import ModelFileError
from resnetkit.models.empty import empty_network
from resnetkit.models.spec import SPECS, ModelSpec
from resnetkit.models.tensors import COUNTER, compare, fill, without_counters

BODY = "backbone.body."
USUAL_SIZE = 800
TRUNKS = (
    *("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Trunks that torchvision's detectors can have, by their names in SPECS."""


def from_torchvision(
    tensors: Mapping[str, Tensor],
    classes: tuple[str, ...],
    *,
    size: int = USUAL_SIZE,
    norm_eps: float = 1e-5,
    source: str = "the state dict",
) -> DetectorModel:
    """Return the detector of a state dict of `fasterrcnn_resnet50_fpn` or `fasterrcnn_resnet50_fpn_v2`.

    Trunks other than ResNet-50 are recognised, too. `classes` are the names without the background, which is
    torchvision's class 0. `size` is the shorter side of resized pictures (`min_size`). `norm_eps` is 0 for the weights
    COCO_V1 of the first network, and 1e-5 for all others.

    Raises ModelFileError, which names `source`, for tensors of another network or another number of classes.
    """
    version2 = "rpn.head.conv.1.0.weight" in tensors
    spec = replace(DETECTORS["fpn-v2" if version2 else "fpn"], antialias=False, norm_eps=norm_eps)
    trunk = _trunk_of({name.removeprefix(BODY): one for name, one in tensors.items() if name.startswith(BODY)}, source)
    trunk = replace(trunk, norm="frozen", classes=len(classes))
    with torch.device("meta"):
        header = header_of(Detector(trunk, spec, Preprocess(size), classes=len(classes)), classes)
    net = empty_detector(header, source=source)
    own = net.state_dict()
    if misfit := compare(without_counters(own), without_counters(tensors)):
        raise ModelFileError(f"{source} does not contain a detector with {len(classes)} classes: {misfit}")
    counters = {name: torch.tensor(0) for name in own if name.endswith(COUNTER)}
    fill(net, {**counters, **without_counters(tensors)}, source=source)
    return DetectorModel(net.to(memory_format=torch.channels_last).eval(), header)


def to_torchvision(net: Detector, *, counters: bool = False) -> dict[str, Tensor]:
    """Return the state dict for torchvision's network of the same structure.

    `counters` adds the counters of batches, which `BatchNorm2d` has and `FrozenBatchNorm2d` has not.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    return state if counters else without_counters(state)


def _trunk_of(tensors: Mapping[str, Tensor], source: str) -> ModelSpec:
    """Return the row of SPECS whose network has these tensors, apart from its classifier."""
    for name in TRUNKS:
        expected = empty_network(SPECS[name]).state_dict()
        body = {key: value for key, value in expected.items() if not key.startswith("fc.")}
        if not compare(without_counters(body), without_counters(tensors)):
            return SPECS[name]
    raise ModelFileError(f"{source} does not contain a detector of torchvision's on a residual network ({BODY}…)")
