"""What a model answers for logits: the most probable of its classes, or each class that reaches its threshold."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import Calibration, scaled, sigmoid, thresholds_of
from resnetkit.infer.backends.backend import most_probable, softmax
from resnetkit.modelfile import Header

TOP = 5
"""Classes in an answer of a model that gives one class, if their number is not given."""


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str
    index: int
    """Index of the class in the network's output."""
    probability: float
    """0 to 1. Over all classes they sum to 1, except in a multi-label model, where each stands for itself."""


@dataclass(frozen=True)
class Answer:
    """How logits, float32 (n, classes), are answered."""

    classes: tuple[str, ...]
    calibration: Calibration | None
    multilabel: bool
    """Whether a picture may have several of the classes, or none."""

    @classmethod
    def of(cls, header: Header) -> "Answer":
        """Return how a model with this header answers."""
        return cls(header.classes, header.calibration, header.multilabel)

    @property
    def thresholds(self) -> NDArray[np.float32] | None:
        """The probability from which each class is answered, float32 (classes,); None for a model with one answer."""
        return thresholds_of(self.calibration, len(self.classes)) if self.multilabel else None

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities, float32 (n, classes), at the model's temperature: a softmax, or sigmoids."""
        return (sigmoid if self.multilabel else softmax)(scaled(logits, self.calibration))

    def named(self, logits: NDArray[np.float32], *, top: int | None) -> list[list[Prediction]]:
        """Return the `top` most probable classes of each picture, the best first, whatever their thresholds.

        For None, they are TOP; of a multi-label model, all that reach their thresholds, which may be none.
        """
        probabilities = self.probabilities(logits)
        best = most_probable(probabilities, len(self.classes) if self.multilabel and top is None else top or TOP)
        values = probabilities[np.arange(len(best))[:, None], best]
        answered = np.ones(best.shape, bool)
        if top is None and self.thresholds is not None:
            answered = values >= self.thresholds[best]
        return [
            [Prediction(self.classes[i], i, value) for i, value, yes in zip(*row, strict=True) if yes]
            for row in zip(best.tolist(), values.tolist(), answered.tolist(), strict=True)
        ]
