"""A classifier that is served: classes, explanations, drift."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure
from resnetkit.data.transforms.resampling import prepare
from resnetkit.infer.choice import Choice
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.signature import Signature
from resnetkit.modelfile import Header
from resnetkit.serve.card import card_of
from resnetkit.serve.drift import Moments, Scores
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.opened import Pixels

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

Logits: TypeAlias = NDArray[np.float32]
"""The output for one picture, (classes,)."""


class OpenedClassifier:
    """A model that tells classes apart; see `Opened`. What it finds in a picture are logits, float32 (classes,)."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.batch_size = predictor.batch_size
        self.streams = max(1, predictor.choice.streams)
        known = predictor.calibration
        self._scores = Scores(known.confidences) if known and predictor.can_reject else None
        comparable = known and len(known.logit_means) == len(predictor.classes)
        self._moments = Moments(known.logit_means, known.logit_deviations) if known and comparable else None

    @property
    def choice(self) -> Choice:
        """How it is computed."""
        return self.predictor.choice

    @property
    def signature(self) -> Signature:
        """The names, types and shapes of its inputs and outputs."""
        return self.predictor.signature

    def warm_up(self) -> None:
        """Compute once in each stream, and read what explanations need."""
        size, channels = self.predictor.preprocess.size, self.predictor.preprocess.channels
        # The first computation of a stream takes longest. The first of a larger batch takes a fifth longer, too, but
        # computing one now would cost more time until the server is ready than it saves.
        with ThreadPoolExecutor(self.streams) as pool:
            list(pool.map(self.predictor.compute, [np.zeros((1, size, size, channels), np.uint8)] * self.streams))
        prepare()  # compiles or loads the kernel that resizes
        self.predictor.keep_for_explanations()

    def decode(self, picture: bytes) -> Pixels | Failure:
        """Return a picture, uint8 (size, size, channels), or why it can't be read."""
        return self.predictor.decode(picture)

    def compute(self, pictures: Sequence[Pixels]) -> Sequence[Logits]:
        """Return the logits of each picture."""
        return list(self.predictor.compute(np.stack(pictures)))

    def answer(self, logits: Logits, *, top: int | None, reject: bool) -> dict[str, Any]:
        """Return the answer for a picture: {"predictions": [{"label", "index", "probability"}], "rejected": ...}."""
        (best,) = self.predictor.name(logits[None], top=top)
        answer: dict[str, Any] = {"predictions": [one._asdict() for one in best]}
        if reject and self.predictor.can_reject:
            answer["rejected"] = bool(self.predictor.reject(logits[None])[0])
        return answer

    def explain(self, picture: bytes, *, label: str | int | None) -> "Explanation":
        """Return where the evidence for a class is: see `Predictor.explain`."""
        return self.predictor.explain(picture, label=label)

    def note(self, found: Sequence[Logits], metrics: Metrics, name: str) -> None:
        """Take the logits of answered pictures into the measures of drift, and count rejected pictures."""
        if self._scores is None and self._moments is None:
            return
        logits = np.stack(found)
        if self._moments is not None:
            self._moments.add(logits)
        if self._scores is not None:
            self._scores.add(self.predictor.answer.probabilities(logits).max(axis=1))
            metrics.rejected.labels(name).inc(int(self.predictor.reject(logits).sum()))

    def note_drift(self, metrics: Metrics, name: str) -> None:
        """Set the metrics of drift; a model without the values of its validation has none."""
        scores = None if self._scores is None else self._scores.distance()
        found = None if self._moments is None else self._moments.distance()
        for gauge, value in (
            (metrics.drift, scores),
            (metrics.drift_shift, found.shift if found else None),
            (metrics.drift_frechet, found.frechet if found else None),
            (metrics.drift_pictures, found.pictures if found else None),
        ):
            if value is not None:
                gauge.labels(name).set(value)
            else:
                with suppress(KeyError):  # the model of before may have had one
                    gauge.remove(name)

    def card(self, name: str) -> dict[str, Any]:
        """Return the card of the model: classes, network, preprocessing, measured errors, calibration, licence."""
        predictor, thresholds = self.predictor, self.predictor.answer.thresholds
        shared = card_of(name, predictor.header, choice=predictor.choice, fingerprint=predictor.fingerprint)
        return shared | {
            "multilabel": predictor.answer.multilabel,
            "thresholds": None if thresholds is None else thresholds.tolist(),
            "can_reject": predictor.can_reject,
            "can_explain": predictor.can_explain,
            "parameters": predictor.header.spec.parameters,
            "pictures": f"{predictor.preprocess.geometry}; {_color(predictor.header)}",
            "calibration": self._calibration(),
        }

    def _calibration(self) -> dict[str, Any] | None:
        if (found := self.predictor.calibration) is None:
            return None
        about: dict[str, Any] = {"temperature": found.temperature, "pictures": found.pictures}
        return about | ({"reject_below": found.threshold()} if self.predictor.can_reject else {})


def _color(header: Header) -> str:
    return "colour" if header.preprocess.mode == "RGB" else "grey"
