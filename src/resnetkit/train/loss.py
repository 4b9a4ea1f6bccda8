"""The loss of a batch of labelled pictures: cross-entropy with smoothed labels, mixed pictures, weights of classes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnetkit.data.transforms.mixing import Mix


@dataclass(frozen=True)
class ClassLoss:
    """The mean loss over the pictures of a batch, in nats."""

    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    weights: Tensor | None = None
    """float32 (classes,): factor of the loss of a picture with this label; None is 1 for all."""

    def __call__(self, logits: Tensor, labels: Tensor, mix: Mix | None = None) -> Tensor:
        """Return the loss, a scalar, of logits (n, classes), float32, for labels (n,), int64.

        With `mix`, the pictures are mixed with their neighbours, and so are their losses. The weighted losses are
        divided by the number of pictures, not by the sum of the weights, so that a batch with rare classes counts more.
        """
        own = self._mean(logits, labels)
        if mix is None:
            return own
        return mix.share * own + (1 - mix.share) * self._mean(logits, mix.neighbours(labels))

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="none")
        return (losses * self.weights[labels]).mean()


def balanced_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Return pictures / (classes with pictures · pictures of the class), float32 (classes,); 1 for an empty class.

    All classes then have the same weight in the loss, and the mean weight of the pictures is 1 (King and Zeng 2001).
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts, len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 1.0)
    return torch.from_numpy(weights.astype(np.float32))
