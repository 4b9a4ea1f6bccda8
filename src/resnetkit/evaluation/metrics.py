"""What is counted when a network is evaluated: loss, top-1 and top-5 error, each class, the confusion of classes."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnetkit.display import MOST_ROWS, line, table


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
    part: str = ""
    """Which part of a set was counted: train, val, test or all; empty for pictures that were given as they are."""
    of: str = ""
    """The set's name."""
    why: str = ""
    """Why that part, in words."""
    trained_on: int = 0
    """How many of the pictures are known to have trained the model."""

    def __post_init__(self) -> None:
        if not self.confusion.size:
            self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
            self.top5_right = np.zeros(len(self.classes), np.int64)

    def __repr__(self) -> str:
        pictures = " ".join(word for word in (f"{self.images:,}", self.part, "pictures") if word)
        trained = f"{self.trained_on:,} of them trained the model" if self.trained_on else ""
        error, loss = f"top-1 error {self.top1_error_percent:.2f} %", f"loss {self.loss:.4f}"
        return line(type(self), pictures, error, loss, trained)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        head, rows = self.table()
        return f"<p>{escape(repr(self))}</p>{notes}{table(head, rows[:MOST_ROWS])}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and rows: each class that occurs, its pictures and errors; the worst first."""
        columns = {"top-1 error": "top1_error_percent"}
        if self.has_top5:
            columns["top-5 error"] = "top5_error_percent"
        rows = sorted(self.per_class.items(), key=lambda item: -item[1]["top1_error_percent"])
        return ("class", "pictures", *columns), [
            (name, f"{row['images']:,}", *(f"{row[key]:.2f} %" for key in columns.values())) for name, row in rows
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before the numbers are believed, a sentence each; none where there is nothing."""
        notes: list[str] = []
        if self.trained_on:
            few = f"{self.trained_on:,} of these {self.images:,}" if self.trained_on < self.images else "these"
            notes.append(f"{few} pictures trained the model: the error says little about pictures that are new to it")
        totals = self.confusion.sum(axis=1)
        there, lacking, lonely = (np.flatnonzero(found) for found in (totals > 0, totals == 0, totals == 1))
        if len(there) == 1:
            name = self.classes[there[0]]
            notes.append(f"all pictures are of one class, {name}: an error over one class is no result")
        elif 0 < len(lacking) <= len(there):
            notes.append(
                f"no picture of {len(lacking):,} of the {len(self.classes):,} classes ({self._some(lacking)}): "
                "how well the model knows them is not measured"
            )
        elif len(there) and len(lacking):
            notes.append(f"pictures of {len(there):,} of the model's {len(self.classes):,} classes only")
        if len(lonely):
            notes.append(f"one picture only of {self._some(lonely)}: the error of such a class is 0 or 100 % by chance")
        return tuple(notes)

    def _some(self, places: NDArray[np.int64]) -> str:
        more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
        return ", ".join(self.classes[place] for place in places[:3]) + more

    @property
    def has_top5(self) -> bool:
        """Whether the top-5 error says anything: of five classes the label is always among the first five."""
        return len(self.classes) > 5

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
        if self.part:
            result |= {"part": self.part, "of": self.of, "why": self.why, "trained_on": self.trained_on}
        if self.notes:
            result["notes"] = list(self.notes)
        if self.unreadable:
            result["unreadable"] = {str(path): reason for path, reason in self.unreadable.items()}
        return result


def _error_percent(right: int, total: int) -> float:
    return round(100 * (1 - right / total), 4) if total else 0.0


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Average the probabilities of several views: logits (views, n, classes) to log-probabilities (n, classes)."""
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - torch.log(torch.tensor(float(len(logits))))
