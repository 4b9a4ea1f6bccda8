"""The result of an evaluation: loss, top-1 and top-5 error, for all pictures and for each class; merging of results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from resnetkit.calibration import Calibration
from resnetkit.display import MOST_ROWS, line, table
from resnetkit.errors import UsageError
from resnetkit.evaluation.calibration import Reliability
from resnetkit.evaluation.intervals import error_interval, smallest_difference
from resnetkit.evaluation.records import Records, joined
from resnetkit.evaluation.sums import ExactSum

MOST_DENSE = 1000
"""Largest number of classes whose confusions are stored cell by cell; of more, only the cells that are not 0."""


@dataclass
class Evaluation:
    """Counts over labelled pictures. Errors are percentages of the pictures that could be read."""

    classes: tuple[str, ...]
    loss_sum: ExactSum = field(default_factory=ExactSum)
    """Sum of the pictures' cross-entropies, in nats."""
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """Shape (classes, classes): number of pictures by label (row) and predicted class (column)."""
    top5_right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Shape (classes,): number of pictures of each class whose label is among the five most probable classes."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Files that could not be read and are not counted, with the reasons."""
    part: str = ""
    """Name of the part of the data: train, val, test or all; empty if the pictures were given as Samples."""
    of: str = ""
    """Name of the data."""
    why: str = ""
    """Reason for the choice of this part, as a phrase."""
    trained_on: int = 0
    """Number of the pictures that are known to have trained the model."""
    records: Records | None = None
    """The most probable classes of each picture; None if `records` was 0."""
    calibration: Calibration | None = None
    """The calibration of the model, which the probabilities in `records` have; None for the network's own."""

    def __post_init__(self) -> None:
        if not self.confusion.size:
            self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
            self.top5_right = np.zeros(len(self.classes), np.int64)

    def __repr__(self) -> str:
        words = ("all", f"{self.images:,}") if self.part == "all" else (f"{self.images:,}", self.part)
        pictures = " ".join([*filter(None, words), "pictures"])
        trained = f"{self.trained_on:,} of them trained the model" if self.trained_on else ""
        error, loss = f"top-1 error {self.top1_error_percent:.2f} %", f"loss {self.loss:.4f}"
        return line(type(self), pictures, error, loss, trained)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        head, rows = self.table()
        return f"<p>{escape(repr(self))}</p>{notes}{table(head, rows[:MOST_ROWS])}"

    def table(self, *, worst_first: bool = True) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a table, head and rows, of the pictures and errors of each class that occurs.

        The class with the largest error is first, or the order is that of `classes`.
        """
        columns = {"top-1 error": "top1_error_percent"}
        if self.has_top5:
            columns["top-5 error"] = "top5_error_percent"
        rows = list(self.per_class.items())
        if worst_first:
            rows.sort(key=lambda item: -item[1]["top1_error_percent"])
        return ("class", "pictures", *columns), [
            (name, f"{row['images']:,}", *(f"{row[key]:.2f} %" for key in columns.values())) for name, row in rows
        ]

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons to trust the errors less, one phrase each."""
        notes: list[str] = []
        if self.trained_on:
            few = f"{self.trained_on:,} of these {self.images:,}" if self.trained_on < self.images else "these"
            notes.append(f"{few} pictures trained the model: on new pictures, the error may be much larger")
        totals = self.confusion.sum(axis=1)
        there, lacking, lonely = (np.flatnonzero(found) for found in (totals > 0, totals == 0, totals == 1))
        if len(there) == 1:
            name = self.classes[there[0]]
            notes.append(f"all pictures are of one class, {name}: an error over one class has little meaning")
        elif 0 < len(lacking) <= len(there):
            notes.append(
                f"no picture of {len(lacking):,} of the {len(self.classes):,} classes ({self._some(lacking)}): "
                "their errors are not measured"
            )
        elif len(there) and len(lacking):
            notes.append(f"there are pictures of only {len(there):,} of the model's {len(self.classes):,} classes")
        if len(lonely):
            notes.append(f"only one picture of {self._some(lonely)}: the error of such a class can only be 0 or 100 %")
        return tuple(notes)

    def _some(self, places: NDArray[np.int64]) -> str:
        more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
        return ", ".join(self.classes[place] for place in places[:3]) + more

    @property
    def has_top5(self) -> bool:
        """Whether the top-5 error has a meaning: with five classes or fewer it is always 0."""
        return len(self.classes) > 5

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch: log-probabilities float32 (n, classes) and labels int64 (n,)."""
        losses = F.nll_loss(log_probabilities, labels, reduction="none")
        self.loss_sum += ExactSum.of(losses.float().tolist())
        best = log_probabilities.topk(min(5, len(self.classes)), dim=1).indices
        truth = labels.numpy(force=True)
        np.add.at(self.confusion, (truth, log_probabilities.argmax(dim=1).numpy(force=True)), 1)
        np.add.at(self.top5_right, truth, (best == labels[:, None]).any(dim=1).numpy(force=True))

    @classmethod
    def merge(cls, parts: Iterable["Evaluation"]) -> "Evaluation":
        """Return one evaluation of all the pictures in `parts`. The parts are not changed.

        Each picture must be in one part only. Counts, errors and loss equal, to the bit, those of one evaluation of the
        same log-probabilities, for any order and any division into parts. (A network's outputs may differ in their last
        bits between batches of different sizes.)

        `trained_on` is the sum. `part`, `of` and `why` are kept if they are equal in all parts, else they are empty.
        Unreadable files are sorted by path, records by index.

        Raises UsageError if there are no parts, if they have different classes, if only some parts have records, and
        for records that can't be joined (see `records.joined`).
        """
        parts = list(parts)
        if not parts:
            raise UsageError("there is nothing to merge: `parts` is empty")
        classes = parts[0].classes
        if any(part.classes != classes for part in parts):
            raise UsageError(
                "evaluations with different classes can't be merged; evaluate one model on each of `parts`"
            )
        records = [part.records for part in parts if part.records is not None]
        if records and any(part.images and part.records is None for part in parts):
            raise UsageError("some of `parts` have records and others have none; evaluate all with the same `records`")
        return cls(
            classes,
            loss_sum=sum((part.loss_sum for part in parts), ExactSum()),
            confusion=np.sum([part.confusion for part in parts], axis=0),
            top5_right=np.sum([part.top5_right for part in parts], axis=0),
            unreadable=dict(sorted(item for part in parts for item in part.unreadable.items())),
            part=common(part.part for part in parts),
            of=common(part.of for part in parts),
            why=common(part.why for part in parts),
            trained_on=sum(part.trained_on for part in parts),
            records=joined(records) if records else None,
            calibration=parts[0].calibration
            if all(part.calibration == parts[0].calibration for part in parts)
            else None,
        )

    @property
    def images(self) -> int:
        """Number of pictures counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum.over(max(self.images, 1))

    @property
    def top1_error_percent(self) -> float:
        """Percentage of the pictures whose most probable class is not the label."""
        return _error_percent(int(self.confusion.trace()), self.images)

    @property
    def top5_error_percent(self) -> float:
        """Percentage of the pictures whose label is not among the five most probable classes."""
        return _error_percent(int(self.top5_right.sum()), self.images)

    @property
    def wrong(self) -> int:
        """Number of pictures whose most probable class is not the label."""
        return self.images - int(self.confusion.trace())

    @property
    def interval_percent(self) -> tuple[float, float]:
        """The 95 % interval of the top-1 error for other pictures like these; see `intervals.error_interval`."""
        low, high = error_interval(self.wrong, self.images)
        return round(100 * low, 4), round(100 * high, 4)

    @property
    def smallest_difference_percent(self) -> float:
        """The smallest difference to another model's error, in percentage points, that so many pictures can show."""
        return round(100 * smallest_difference(self.wrong, self.images), 4)

    @property
    def reliability(self) -> Reliability | None:
        """How well the probabilities agree with the share of right predictions; None without records."""
        kept = self.records
        return None if kept is None else Reliability.of(kept.probabilities[:, 0], kept.right)

    @property
    def uncalibrated(self) -> Reliability | None:
        """The same at temperature 1."""
        return None if self.records is None else Reliability.of(self.records.uncalibrated, self.records.right)

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """For each class that occurs, by name: images (the number of pictures), both errors, recall and precision.

        They are in percent. The recall is 100 minus the top-1 error. The precision is the share of right ones among the
        pictures that were predicted as this class, and None if there are none.
        """
        totals, predicted = self.confusion.sum(axis=1), self.confusion.sum(axis=0)
        return {
            name: {
                "images": int(totals[i]),
                "top1_error_percent": _error_percent(int(self.confusion[i, i]), int(totals[i])),
                "top5_error_percent": _error_percent(int(self.top5_right[i]), int(totals[i])),
                "recall_percent": round(100 * int(self.confusion[i, i]) / int(totals[i]), 4),
                "precision_percent": round(100 * int(self.confusion[i, i]) / int(predicted[i]), 4)
                if predicted[i]
                else None,
            }
            for i, name in enumerate(self.classes)
            if totals[i]
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON, rounded so that it does not depend on the batch size."""
        result: dict[str, Any] = {
            "images": self.images,
            "top1_error_percent": self.top1_error_percent,
            "top5_error_percent": self.top5_error_percent,
            "loss": round(self.loss, 4),
            "per_class": self.per_class,
        }
        if self.part:
            result |= {"part": self.part, "of": self.of, "why": self.why, "trained_on": self.trained_on}
        result |= {
            "interval_percent": list(self.interval_percent),
            "smallest_difference_percent": self.smallest_difference_percent,
        }
        after, before, calibration = self.reliability, self.uncalibrated, self.calibration
        if after is not None and before is not None:
            result["calibration"] = {
                "ece_percent": round(after.ece_percent, 2),
                "ece_percent_before": round(before.ece_percent, 2),
                "interval_percent": [round(end, 2) for end in after.interval_percent],
                "temperature": 1.0 if calibration is None else calibration.temperature,
            }
            result["reject"] = self.rejected
        if self.notes:
            result["notes"] = list(self.notes)
        if self.unreadable:
            result["unreadable"] = {str(path): reason for path, reason in self.unreadable.items()}
        return result

    @property
    def rejected(self) -> dict[str, float] | None:
        """The threshold of `predict --reject`, and the percentage of these pictures below it; None if there is none."""
        if self.calibration is None or self.records is None:
            return None
        threshold = self.calibration.threshold()
        share = float((self.records.probabilities[:, 0] < np.float32(threshold)).mean())
        return {"threshold": threshold, "rejected_known_percent": round(100 * share, 4)}

    def to_state(self) -> dict[str, Any]:
        """Return all fields as tensors and plain values, for torch.save and `from_state`."""
        return {
            "classes": list(self.classes),
            "loss_sum": self.loss_sum.over(1),
            "loss_units": self.loss_sum.units,
            "confusion": _cells(self.confusion),
            "top5_right": torch.tensor(self.top5_right),
            "unreadable": {str(path): reason for path, reason in self.unreadable.items()},
            "part": self.part,
            "of": self.of,
            "why": self.why,
            "trained_on": self.trained_on,
            "records": None if self.records is None else self.records.to_state(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Evaluation":
        """Return the evaluation from the result of `to_state`, with the same loss to the bit.

        States of earlier versions contain the loss as a rounded sum, and no fields after the unreadable files.
        """
        loss_sum = ExactSum.of([state["loss_sum"]])
        records, calibration = state.get("records"), state.get("calibration")
        return cls(
            tuple(state["classes"]),
            loss_sum=ExactSum(state.get("loss_units", loss_sum.units), loss_sum.not_finite),
            confusion=_confusion(state["confusion"], len(state["classes"])),
            top5_right=state["top5_right"].numpy(),
            unreadable={Path(path): reason for path, reason in state["unreadable"].items()},
            part=state.get("part", ""),
            of=state.get("of", ""),
            why=state.get("why", ""),
            trained_on=state.get("trained_on", 0),
            records=None if records is None else Records.from_state(records),
            calibration=None if calibration is None else Calibration.from_dict(calibration),
        )


def common(texts: Iterable[str]) -> str:
    """Return the text if all texts are equal, else an empty text."""
    found = set(texts)
    return found.pop() if len(found) == 1 else ""


def _error_percent(right: int, total: int) -> float:
    return round(100 * (1 - right / total), 4) if total else 0.0


def mean_log_probabilities(logits: Tensor) -> Tensor:
    """Average the probabilities of several views: logits (views, n, classes) to log-probabilities (n, classes)."""
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - torch.log(torch.tensor(float(len(logits))))


def _cells(confusion: NDArray[np.int64]) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return confusions for `to_state`: whole, or as the places and values of the cells that are not 0."""
    if len(confusion) <= MOST_DENSE:
        return torch.tensor(confusion)
    places = np.flatnonzero(confusion)
    return {"places": torch.from_numpy(places), "counts": torch.from_numpy(confusion.ravel()[places])}


def _confusion(cells: torch.Tensor | dict[str, torch.Tensor], classes: int) -> NDArray[np.int64]:
    """Return the confusions, int64 (classes, classes), from the result of `_cells`."""
    if isinstance(cells, torch.Tensor):
        return cells.numpy()
    confusion = np.zeros(classes * classes, np.int64)
    confusion[cells["places"].numpy()] = cells["counts"].numpy()
    return confusion.reshape(classes, classes)
