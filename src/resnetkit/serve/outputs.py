"""The outputs of the Open Inference Protocol for what was found in the pictures of a request."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from resnetkit.data.prefetch import Failure
from resnetkit.display import printable
from resnetkit.infer.backends.backend import most_probable
from resnetkit.infer.predictor import Predictor
from resnetkit.serve import protocol
from resnetkit.serve.answers import RequestError, reason
from resnetkit.serve.classifier import Logits, OpenedClassifier
from resnetkit.serve.detector import Found, OpenedDetector
from resnetkit.serve.opened import Opened

if TYPE_CHECKING:
    from resnetkit.detect.predict import DetectorPredictor

Outputs: TypeAlias = list[tuple[protocol.Requested, protocol.Tensor]]
NO_CLASS = -1
"""The label of a row that is no detection."""


def outputs(opened: Opened, given: protocol.InferRequest, found: Sequence[Any]) -> Outputs:
    """Return the values of the outputs that were asked for.

    The protocol has no place for the error of one picture. So a request with a picture that can't be read fails, unless
    it asks for the output `errors`; then the values of such a picture are zeros.

    Raises RequestError for such a picture, and for wishes that the model can't fulfil.
    """
    failures = {place: one for place, one in enumerate(found) if isinstance(one, Failure)}
    if failures and all(one.name != protocol.ERRORS for one in given.outputs):
        place, failure = next(iter(failures.items()))
        raise RequestError(400, f"picture {place} can't be read: {reason(failure)}")
    errors = [reason(failures[place]) if place in failures else "" for place in range(len(found))]
    values: Mapping[str, protocol.Tensor]
    if isinstance(opened, OpenedDetector):
        values = _boxes(opened.finder, found, given.threshold)
    elif isinstance(opened, OpenedClassifier):
        values = _logits(opened.predictor, found)
    else:
        raise TypeError(f"{type(opened).__name__} has no outputs of the protocol")
    values = {**values, protocol.ERRORS: errors}
    if any(one.name not in values for one in given.outputs):
        raise _replaced()
    return [(one, _classified(opened, one, values) if one.classes else values[one.name]) for one in given.outputs]


def _classified(
    opened: Opened, requested: protocol.Requested, values: Mapping[str, protocol.Tensor]
) -> list[list[str]]:
    """Return the classes with the highest values of an output, as Triton writes them."""
    if not isinstance(opened, OpenedClassifier):
        raise _replaced()
    numbers, probabilities = np.asarray(values[requested.name]), np.asarray(values["probabilities"])
    best = most_probable(probabilities, len(opened.predictor.classes))[:, : requested.classes]
    return protocol.classified(numbers, best, [printable(label) for label in opened.predictor.classes])


def _logits(predictor: Predictor, found: Sequence[Logits | Failure]) -> dict[str, protocol.Tensor]:
    bad = [isinstance(one, Failure) for one in found]
    empty = np.zeros(len(predictor.classes), np.float32)
    logits = np.stack([empty if isinstance(one, Failure) else one for one in found])
    probabilities = predictor.answer.probabilities(logits)
    probabilities[bad] = 0
    return {"logits": logits, "probabilities": probabilities}


def _boxes(
    finder: "DetectorPredictor", found: Sequence[Found | Failure], threshold: float | None
) -> dict[str, protocol.Tensor]:
    """Return boxes, labels, scores and names with a row for each detection of the picture with the most.

    Rows beyond the `counts` of a picture are 0, the label NO_CLASS, the name empty.
    """
    kept = [None if isinstance(one, Failure) else finder.kept(one.detections, threshold) for one in found]
    counts = np.array([0 if one is None else len(one) for one in kept], np.int64)
    rows = (len(kept), int(counts.max(initial=0)))
    boxes, scores = np.zeros((*rows, 4), np.float32), np.zeros(rows, np.float32)
    labels = np.full(rows, NO_CLASS, np.int64)
    for place, one in enumerate(kept):
        if one is not None:
            boxes[place, : len(one)], labels[place, : len(one)], scores[place, : len(one)] = (
                one.boxes,
                one.labels,
                one.scores,
            )
    known = [*map(printable, finder.classes), ""]  # NO_CLASS is the last place
    names = [[known[label] for label in row] for row in labels.tolist()]
    return {"boxes": boxes, "labels": labels, "scores": scores, "counts": counts, "names": names}


def _replaced() -> RequestError:
    return RequestError(503, "the model was just replaced by one of another kind; ask for its metadata again")
