"""The worst mistakes of an evaluation as pictures, with the evidence for the class in question (Grad-CAM)."""

import base64
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.samples import Samples
from resnetkit.display import printable
from resnetkit.errors import DataError
from resnetkit.evaluation.explanation import Explanation
from resnetkit.evaluation.gradcam import explain_opened
from resnetkit.evaluation.multilabel import MultiLabelEvaluation
from resnetkit.evaluation.records import Records
from resnetkit.modelfile import Model

MOST = 12
"""Mistakes on a page."""
SIDE = 160
"""Pixels of a thumbnail's longer side."""

logger = logging.getLogger("resnetkit")


@dataclass(frozen=True)
class Mistake:
    """A picture whose answer is not its label."""

    place: str
    """Its path, or its index if it is in memory."""
    said: str
    """What is wrong, as HTML."""
    picture: bytes
    """The picture as a small JPEG file."""
    evidence: bytes
    """The same with the evidence for the class in question in colour."""


def worst_mistakes(model: Model, samples: Samples, records: Records, *, most: int = MOST) -> Iterator[Mistake]:
    """Yield the mistakes whose labels are most improbable, the worst first. Unreadable pictures are left out.

    `samples` are the pictures of `records`, with the model's classes. The evidence is that for the predicted class.
    """
    classes = model.header.classes
    wrong = np.flatnonzero(~records.right)
    for row in wrong[np.argsort(records.label_probabilities[wrong], kind="stable")][:most].tolist():
        predicted = int(records.classes[row, 0])
        said = (
            f"labelled <b>{escape(classes[records.labels[row]])}</b>, predicted <b>{escape(classes[predicted])}</b> "
            f"with {100 * float(records.probabilities[row, 0]):.1f} %"
        )
        yield from _pictured(model, samples, int(records.indices[row]), label=predicted, said=said)


def worst_labels(
    model: Model, samples: Samples, evaluated: MultiLabelEvaluation, *, most: int = MOST
) -> Iterator[Mistake]:
    """Yield the pictures with the most improbable wrong answer for one class, the worst first, each picture once.

    A label that is there is as improbable as 1 minus its probability. `samples` are the pictures of `evaluated`, with
    the model's classes. The evidence is that for the class in question. Unreadable pictures are left out.
    """
    surprise = np.abs(evaluated.labels - evaluated.probabilities)
    surprise[evaluated.answers == evaluated.labels] = 0
    worst = surprise.max(axis=1)
    for row in np.argsort(-worst, kind="stable")[: min(most, int((worst > 0).sum()))].tolist():
        label = int(surprise[row].argmax())
        probability = 100 * float(evaluated.probabilities[row, label])
        fault = (
            f"is labelled, and has {probability:.1f} %"
            if evaluated.labels[row, label]
            else f"is answered with {probability:.1f} %, and not labelled"
        )
        there = [name for name, has in zip(evaluated.classes, evaluated.labels[row], strict=True) if has]
        said = f"<b>{escape(evaluated.classes[label])}</b> {fault}<br>labels: {escape(', '.join(there) or 'none')}"
        yield from _pictured(model, samples, int(evaluated.indices[row]), label=label, said=said)


def mistakes_section(mistakes: Sequence[Mistake], what: str) -> list[str]:
    """Return HTML of the mistakes side by side, below a heading; nothing without mistakes.

    `what` names the class for which the evidence is, such as "the predicted class".
    """
    if not mistakes:
        return []
    figures = [
        f'<figure><div class="pair"><img alt="" src="{_embedded(one.picture)}">'
        f'<img alt="evidence" src="{_embedded(one.evidence)}"></div>'
        f'<figcaption>{one.said}<div class="faint" title="{escape(printable(one.place))}">'
        f"{escape(_short(one.place))}</div></figcaption></figure>"
        for one in mistakes
    ]
    return [
        f"<h2>Worst mistakes</h2><p>Beside each picture: where the evidence for {what} is (Grad-CAM). "
        "A mistake with a high probability is often a wrong label.</p>",
        f'<div class="pictures">{"".join(figures)}</div>',
    ]


def _pictured(model: Model, samples: Samples, index: int, *, label: int, said: str) -> Iterator[Mistake]:
    """Yield a mistake with its picture and the evidence for the class `label`; nothing if it can't be read."""
    preprocess = model.header.preprocess
    try:
        whole = open_picture(samples.source(index))
        inputs = preprocess(
            whole if preprocess.mode == "RGB" else open_picture(samples.source(index), mode=preprocess.mode)
        )
        shown = _shown(explain_opened(model, whole, inputs, label=label))
    except DataError as error:
        logger.warning("%s is not on the report: %s", samples.place(index), error)
        return
    yield Mistake(samples.place(index), said, _jpeg(shown.picture), _jpeg(shown.overlay()))


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


def _embedded(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _short(place: str) -> str:
    """Return the last two parts of a path, which name the picture and mostly its class."""
    return printable("/".join(Path(place).parts[-2:]))
