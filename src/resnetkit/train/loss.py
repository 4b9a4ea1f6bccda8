"""The loss of a batch of labelled pictures: cross-entropy with one label, binary cross-entropies with several."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnetkit.data.transforms.mixing import Mix

MOST_WEIGHT = 50.0
"""Largest factor of a rare label's loss."""


class Loss(Protocol):
    """The mean loss over the pictures of a batch, in nats."""

    def __call__(self, logits: Tensor, labels: Tensor, mix: Mix | None = None) -> Tensor:
        """Return the loss, a scalar, of logits (n, classes), float32; with `mix`, the pictures are mixed."""
        ...


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


@dataclass(frozen=True)
class LabelLoss:
    """For pictures with several labels: the mean binary cross-entropy, over the pictures and the classes.

    With the sum over the classes, steps would be longer the more classes there are: the last stage of a ResNet-18,
    begun with a fitted head of ten classes, diverged at the rates that suit one label.
    """

    weights: tuple[Tensor, Tensor] | None = None
    """float32 (classes,) each: the factors of a class's loss where a picture has the label, and where it has not."""

    def __call__(self, logits: Tensor, labels: Tensor, mix: Mix | None = None) -> Tensor:
        """Return the loss, a scalar, of logits (n, classes), float32, for labels (n, classes), 0 or 1.

        With `mix`, the pictures are mixed with their neighbours, and so are their losses.
        """
        own = self._mean(logits, labels)
        if mix is None:
            return own
        return mix.share * own + (1 - mix.share) * self._mean(logits, mix.neighbours(labels))

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        if self.weights is not None:
            losses = losses * torch.where(labels > 0, *self.weights)
        return losses.mean()


def label_weights(labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return n / (2 · pictures with the label) and n / (2 · pictures without it), float32 (classes,) each.

    `labels` is (n, classes). With these factors, the pictures with and without a label have the same weight in its
    loss, and their mean weight is 1. No factor is over MOST_WEIGHT; both are 1 for a label that all or none have.
    """
    total, having = len(labels), labels.sum(axis=0)
    both = (having > 0) & (having < total)
    factors = [
        np.where(both, np.minimum(total / (2 * np.maximum(count, 1)), MOST_WEIGHT), 1.0).astype(np.float32)
        for count in (having, total - having)
    ]
    return torch.from_numpy(factors[0]), torch.from_numpy(factors[1])


def prior_logits(labels: NDArray[np.int64]) -> Tensor:
    """Return the log-odds of each label, float32 (classes,), with one more picture with it and one more without.

    A last layer that starts with them states how frequent the labels are (Lin et al. 2017, arXiv:1708.02002, Sec. 3.3).
    """
    having = labels.sum(axis=0)
    return torch.from_numpy(np.log((having + 1) / (len(labels) - having + 1)).astype(np.float32))
