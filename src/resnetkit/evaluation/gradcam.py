"""Show where in a picture the evidence for a class is: Grad-CAM (arXiv:1610.02391)."""

from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.evaluation.explanation import Explanation, find_class, find_stage, seen, stage_names
from resnetkit.modelfile import Model
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32


def explain_opened(
    model: Model,
    whole: Image.Image,
    inputs: NDArray[np.float32],
    *,
    label: str | int | None = None,
    stage: str | int = -1,
    device: str = "cpu",
) -> Explanation:
    """Show where in a picture the evidence for a class is (Grad-CAM, Eqs. 1 and 2).

    `whole` is the picture, upright, RGB, and `inputs` what `model.header.preprocess` makes of it, float32 (channels,
    size, size). Each channel of the stage's last feature map is multiplied by the mean of the logit's gradient over the
    channel's positions. The channels are added up. Negative sums, which are evidence against the class, become 0.

    `label` is the name of a class or its index; None is the most probable class. `stage` is c2, c3, ... as in
    `ResNet.features`, or the stage's number from 0, or a negative number from the end. Earlier stages show smaller
    details. The network computes in float32 on `device`; `model` is not changed.

    Raises UsageError for a class or a stage that the network does not have.
    """
    header = model.header
    index = find_class(label, header.classes)
    number = find_stage(stage, len(header.spec.depths))
    with torch.inference_mode(False), torch.enable_grad(), exact_float32():
        net = _ready(model.net, device)
        parts = list(net.parts)  # the stages come after the stem
        with torch.no_grad():
            maps = net.run(torch.from_numpy(inputs)[None].to(device), last=parts[number + 1])
        maps = maps.detach().requires_grad_()
        logits = net.run(maps, first=parts[number + 2])
        scores = logits[0].detach() / header.temperature
        probabilities = scores.sigmoid() if header.multilabel else scores.softmax(dim=0)
        index = int(probabilities.argmax()) if index is None else index
        (gradients,) = torch.autograd.grad(logits[0, index], maps)
        weights = gradients.mean((2, 3), keepdim=True)  # Eq. 1
        evidence = (weights * maps.detach()).sum(1).relu()  # Eq. 2
    return Explanation(
        label=header.classes[index],
        index=index,
        probability=float(probabilities[index]),
        stage=stage_names(len(header.spec.depths))[number],
        evidence=evidence[0].cpu().numpy(),
        picture=whole,
        crop=seen(whole.size, header.preprocess),
    )


def _ready(net: ResNet, device: str) -> ResNet:
    """Return the network in evaluation mode on `device`: `net` itself if it is so already, else a copy."""
    there = next(net.parameters()).device.type == torch.device(device).type
    return net if there and not any(module.training for module in net.modules()) else deepcopy(net).eval().to(device)
