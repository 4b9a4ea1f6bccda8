"""The worst mistakes of an evaluation as pictures, with the evidence for the class that was predicted (Grad-CAM)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError
from resnetkit.evaluation.explanation import Explanation
from resnetkit.evaluation.gradcam import explain_opened
from resnetkit.evaluation.records import Records
from resnetkit.modelfile import Model

MOST = 12
"""Mistakes on a page."""
SIDE = 160
"""Pixels of a thumbnail's longer side."""

logger = logging.getLogger("resnetkit")


@dataclass(frozen=True)
class Mistake:
    """A picture whose predicted class is not its label."""

    place: str
    """Its path, or its index if it is in memory."""
    label: str
    predicted: str
    probability: float
    """Of the predicted class, 0 to 1."""
    picture: bytes
    """The picture as a small JPEG file."""
    evidence: bytes
    """The same with the evidence for the predicted class in colour."""


def worst_mistakes(model: Model, samples: Samples, records: Records, *, most: int = MOST) -> Iterator[Mistake]:
    """Yield the mistakes whose labels are most improbable, the worst first. Unreadable pictures are left out.

    `samples` are the pictures of `records`, with the model's classes.
    """
    wrong = np.flatnonzero(~records.right)
    for row in wrong[np.argsort(records.label_probabilities[wrong], kind="stable")][:most].tolist():
        index, predicted = int(records.indices[row]), int(records.classes[row, 0])
        preprocess = model.header.preprocess
        try:
            whole = open_picture(samples.source(index))
            inputs = preprocess(
                whole if preprocess.mode == "RGB" else open_picture(samples.source(index), mode=preprocess.mode)
            )
            found = explain_opened(model, whole, inputs, label=predicted)
        except DataError as error:
            logger.warning("%s is not on the report: %s", samples.place(index), error)
            continue
        shown = _shown(found)
        yield Mistake(
            samples.place(index),
            model.header.classes[records.labels[row]],
            model.header.classes[predicted],
            float(records.probabilities[row, 0]),
            _jpeg(shown.picture),
            _jpeg(shown.overlay()),
        )


def _shown(found: Explanation) -> Explanation:
    """Return the explanation of a thumbnail of the picture."""
    factor = SIDE / max(found.picture.size)
    sides = tuple(max(1, round(factor * side)) for side in found.picture.size)
    resampling = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    across, down = sides[0] / found.picture.width, sides[1] / found.picture.height
    left, top, right, bottom = found.crop
    return Explanation(
        found.label,
        found.index,
        found.probability,
        found.stage,
        found.evidence,
        found.picture.resize((sides[0], sides[1]), resampling),
        (left * across, top * down, right * across, bottom * down),
    )


def _jpeg(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "JPEG", quality=80)
    return content.getvalue()
