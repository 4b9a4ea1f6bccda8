"""Show where in a picture of any type the evidence for a class is: Grad-CAM, by a graph also without torch."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation.explanation import (
    DIMMED,
    Explanation,
    drawing_path,
    find_class,
    find_stage,
    seen,
    stage_names,
)
from resnetkit.infer.backends.backend import Pixels, Values
from resnetkit.infer.decoding import Picture, at_rest, opened
from resnetkit.modelfile import Header, Model

__all__ = ["DIMMED", "Explanation", "drawing_path", "explain", "explain_by_map", "find_class", "find_stage", "seen"]

MapAndLogits: TypeAlias = Callable[[Pixels], tuple[Values, Values]]
"""Computes the last feature map (n, channels, height, width) and the logits (n, classes) of pixels."""


def explain(
    model: Model, picture: Picture, *, label: str | int | None = None, stage: str | int = -1, device: str = "cpu"
) -> Explanation:
    """Show where in `picture` the evidence for a class is; see `gradcam.explain_opened`. Imports torch.

    Raises UsageError for a class or a stage that the network does not have, DataError for an unreadable picture.
    """
    from resnetkit.evaluation.gradcam import explain_opened

    preprocess = model.header.preprocess
    find_class(label, model.header.classes)
    find_stage(stage, len(model.header.spec.depths))
    picture = at_rest(picture)
    whole = opened(picture, "RGB")
    inputs = preprocess(whole if preprocess.mode == "RGB" else opened(picture, preprocess.mode))
    return explain_opened(model, whole, inputs, label=label, stage=stage, device=device)


def explain_by_map(
    header: Header,
    picture: Picture,
    *,
    label: str | int | None,
    compute: MapAndLogits,
    weights: NDArray[np.float32],
    probabilities: Callable[[Values], Values],
) -> Explanation:
    """Show where in `picture` the evidence for a class is, by the map of the last stage, without gradients.

    The logit of a class is the mean of this map over its positions times the class's row of `weights`, float32
    (classes, channels), plus a bias. So its gradient is this row divided by the number of positions, at each position,
    and the result is Grad-CAM's to rounding. `probabilities` are those of logits.

    Raises UsageError for a class that the network does not have, DataError for an unreadable picture.
    """
    preprocess = header.preprocess
    index = find_class(label, header.classes)
    picture = at_rest(picture)
    whole = opened(picture, "RGB")
    pixels = preprocess.pixels(whole if preprocess.mode == "RGB" else opened(picture, preprocess.mode))
    maps, logits = compute(pixels[None])
    (shares,) = probabilities(logits)
    index = int(shares.argmax()) if index is None else index
    evidence = np.maximum(np.tensordot(weights[index], maps[0], 1) / maps[0, 0].size, 0)
    return Explanation(
        label=header.classes[index],
        index=index,
        probability=float(shares[index]),
        stage=stage_names(len(header.spec.depths))[-1],
        evidence=evidence.astype(np.float32),
        picture=whole,
        crop=seen(whole.size, preprocess),
    )
