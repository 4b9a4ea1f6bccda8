"""Show where in a picture of any type the evidence for a class is (Grad-CAM)."""

from resnetkit.evaluation.gradcam import (
    DIMMED,
    Explanation,
    drawing_path,
    explain_opened,
    find_class,
    find_stage,
    seen,
)
from resnetkit.infer.decoding import Picture, at_rest, opened
from resnetkit.modelfile import Model

__all__ = ["DIMMED", "Explanation", "drawing_path", "explain", "find_class", "find_stage", "seen"]


def explain(
    model: Model, picture: Picture, *, label: str | int | None = None, stage: str | int = -1, device: str = "cpu"
) -> Explanation:
    """Show where in `picture` the evidence for a class is; see `gradcam.explain_opened`.

    Raises UsageError for a class or a stage that the network does not have, DataError for an unreadable picture.
    """
    preprocess = model.header.preprocess
    find_class(label, model.header.classes)
    find_stage(stage, len(model.header.spec.depths))
    picture = at_rest(picture)
    whole = opened(picture, "RGB")
    inputs = preprocess(whole if preprocess.mode == "RGB" else opened(picture, preprocess.mode))
    return explain_opened(model, whole, inputs, label=label, stage=stage, device=device)
