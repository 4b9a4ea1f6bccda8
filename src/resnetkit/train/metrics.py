"""What is counted when a network is evaluated: loss, top-1 and top-5 error, each class, the confusion of classes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Evaluation:
    """Counts over labelled pictures, every one once; errors are percentages of the pictures that could be read."""

    classes: tuple[str, ...]
    loss_sum: float = 0.0
    """Cross-entropy in nats, summed over the pictures."""
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """Shape (classes, classes): row the label, column the prediction."""
    top5_right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Shape (classes,): pictures of each class with the label among the five most probable."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Files that were passed over, with the reason."""

    def __post_init__(self) -> None:
        if not self.confusion.size:
            self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
            self.top5_right = np.zeros(len(self.classes), np.int64)

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: log-probabilities float32 (n, classes) and labels int64 (n,)."""
        losses = F.nll_loss(log_probabilities, labels, reduction="none")
        self.loss_sum += float(losses.double().sum())
        best = log_probabilities.topk(min(5, len(self.classes)), dim=1).indices
        truth = labels.numpy(force=True)
        np.add.at(self.confusion, (truth, log_probabilities.argmax(dim=1).numpy(force=True)), 1)
        np.add.at(self.top5_right, truth, (best == labels[:, None]).any(dim=1).numpy(force=True))

    @property
    def images(self) -> int:
        """Pictures counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / max(self.images, 1)

    @property
    def top1_error_percent(self) -> float:
        """Share of pictures whose most probable class is wrong."""
        return _error_percent(int(self.confusion.trace()), self.images)

    @property
    def top5_error_percent(self) -> float:
        """Share of pictures whose label is not among the five most probable classes."""
        return _error_percent(int(self.top5_right.sum()), self.images)

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Pictures and errors of each class that occurs, by name."""
        totals = self.confusion.sum(axis=1)
        return {
            name: {
                "images": int(totals[i]),
                "top1_error_percent": _error_percent(int(self.confusion[i, i]), int(totals[i])),
                "top5_error_percent": _error_percent(int(self.top5_right[i]), int(totals[i])),
            }
            for i, name in enumerate(self.classes)
            if totals[i]
        }

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, rounded to what does not depend on how the pictures were batched."""
        result: dict[str, Any] = {
            "images": self.images,
            "top1_error_percent": self.top1_error_percent,
            "top5_error_percent": self.top5_error_percent,
            "loss": round(self.loss, 4),
            "per_class": self.per_class,
        }
        if self.unreadable:
            result["unreadable"] = {str(path): reason for path, reason in self.unreadable.items()}
        return result


def _error_percent(right: int, total: int) -> float:
    return round(100 * (1 - right / total), 4) if total else 0.0


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Average the probabilities of several views: logits (views, n, classes) to log-probabilities (n, classes)."""
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - torch.log(torch.tensor(float(len(logits))))
