"""The result of an evaluation where pictures have several labels: average precision, F1, and others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.calibration import Calibration, scaled, sigmoid, thresholds_of
from resnetkit.display import MOST_ROWS, count, line, table
from resnetkit.errors import UsageError
from resnetkit.evaluation.average_precision import average_precisions, interval_of, mean_of, resampled_means
from resnetkit.evaluation.calibration import Reliability
from resnetkit.evaluation.metrics import common
from resnetkit.evaluation.thresholds import LEAST_POSITIVES


@dataclass(frozen=True, eq=False)
class MultiLabelEvaluation:
    """Logits and labels of n pictures, and what follows from them. Percentages are of the pictures that could be read.

    A class is answered for a picture if its probability, sigmoid(logit / temperature), reaches the class's threshold.
    """

    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    """float32 (n, classes), in the order of the indices."""
    labels: NDArray[np.bool_]
    """bool (n, classes)."""
    indices: NDArray[np.int64]
    """int64 (n,): the index of each picture in the samples, ascending."""
    calibration: Calibration | None = None
    """The model's temperature and thresholds; None: 1 and 0.5."""
    unreadable: Mapping[Path, str] = field(default_factory=dict)
    """Files that could not be read and are not counted, with the reasons."""
    part: str = ""
    """Name of the part of the data: train, val, test or all; empty if the pictures were given as Samples."""
    of: str = ""
    """Name of the data."""
    why: str = ""
    """Reason for the choice of this part, as a phrase."""
    trained_on: int = 0
    """Number of the pictures that are known to have trained the model."""

    @classmethod
    def of_batches(
        cls, classes: tuple[str, ...], batches: Sequence[tuple[Tensor, Tensor, Tensor]], **others: Any
    ) -> "MultiLabelEvaluation":
        """Return the evaluation of batches of logits and labels (n, classes) and indices (n,).

        `others` are further fields.
        """
        logits, labels, indices = (
            np.concatenate([one.float().numpy(force=True) for one, _, _ in batches]),
            np.concatenate([one.numpy(force=True) for _, one, _ in batches]) > 0,
            np.concatenate([one.numpy(force=True) for _, _, one in batches]),
        )
        order = np.argsort(indices, kind="stable")
        return cls(classes, logits[order], labels[order], indices[order], **others)

    @classmethod
    def merge(cls, parts: Iterable["MultiLabelEvaluation"]) -> "MultiLabelEvaluation":
        """Return one evaluation of all the pictures in `parts`, each of which is in one part only.

        `trained_on` is the sum. `part`, `of` and `why` are kept if they are equal in all parts, else they are empty.
        Raises UsageError if there are no parts, or if they have different classes, temperatures or thresholds.
        """
        parts = list(parts)
        if not parts:
            raise UsageError("there is nothing to merge: `parts` is empty")
        first = parts[0]
        if any(part.classes != first.classes or part.calibration != first.calibration for part in parts):
            raise UsageError("evaluations by different models can't be merged; evaluate one model on each of `parts`")
        indices = np.concatenate([part.indices for part in parts])
        order = np.argsort(indices, kind="stable")
        return replace(
            first,
            logits=np.concatenate([part.logits for part in parts])[order],
            labels=np.concatenate([part.labels for part in parts])[order],
            indices=indices[order],
            unreadable=dict(sorted(item for part in parts for item in part.unreadable.items())),
            part=common(part.part for part in parts),
            of=common(part.of for part in parts),
            why=common(part.why for part in parts),
            trained_on=sum(part.trained_on for part in parts),
        )

    def __repr__(self) -> str:
        pictures = " ".join(filter(None, (f"{self.images:,}", self.part, "pictures")))
        return line(type(self), pictures, f"mAP {self.map_percent:.2f} %", f"macro F1 {self.macro_f1_percent:.2f} %")

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        head, rows = self.table()
        return f"<p>{escape(repr(self))}</p>{notes}{table(head, rows[:MOST_ROWS])}"

    @property
    def images(self) -> int:
        """Number of pictures counted."""
        return len(self.logits)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """float32 (n, classes), at the model's temperature."""
        return sigmoid(scaled(self.logits, self.calibration))

    @property
    def thresholds(self) -> NDArray[np.float32]:
        """float32 (classes,)."""
        return thresholds_of(self.calibration, len(self.classes))

    @property
    def answers(self) -> NDArray[np.bool_]:
        """Bool (n, classes): the classes that are answered for each picture."""
        return self.probabilities >= self.thresholds

    @cached_property
    def loss(self) -> float:
        """Mean binary cross-entropy over the pictures and the classes, in nats, at temperature 1."""
        logits = self.logits.astype(np.float64)
        losses = np.maximum(logits, 0) - logits * self.labels + np.log1p(np.exp(-np.abs(logits)))
        return float(losses.sum() / max(losses.size, 1))

    @cached_property
    def average_precisions(self) -> list[float | None]:
        """Average precision of each class, 0 to 1; None for a class that no picture has."""
        return average_precisions(self.logits, self.labels)

    @property
    def map_percent(self) -> float:
        """Mean average precision over the classes that occur."""
        return round(100 * (mean_of(self.average_precisions) or 0.0), 4)

    @property
    def error_percent(self) -> float:
        """100 minus the mean average precision: the number by which models are chosen; lower is better."""
        return round(100 - self.map_percent, 4)

    @cached_property
    def interval_percent(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean average precision, over pictures; see `resampled_means`."""
        low, high = interval_of(resampled_means([self.logits], self.labels)[0])
        return round(100 * low, 4), round(100 * high, 4)

    @property
    def micro_f1_percent(self) -> float:
        """F1 over all pairs of picture and class."""
        return _percent(2 * int((self.answers & self.labels).sum()), int(self.answers.sum() + self.labels.sum()))

    @property
    def macro_f1_percent(self) -> float:
        """Mean of the F1 of the classes that occur."""
        known = [row["f1_percent"] for row in self.per_class.values() if row["images"]]
        return round(float(np.mean(known)), 4) if known else 0.0

    @property
    def exact_match_percent(self) -> float:
        """Share of the pictures for which exactly their labels are answered."""
        return _percent(int((self.answers == self.labels).all(axis=1).sum()), self.images)

    @cached_property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """For each class, by name: images (pictures with it), average precision, and precision, recall and F1.

        They are in percent, the last three at the `threshold` of the class. Average precision and recall are None for a
        class that no picture has, and the precision of one that is never answered.
        """
        answered = self.answers
        answers, hits = answered.sum(axis=0), (answered & self.labels).sum(axis=0)
        totals, areas, thresholds = self.labels.sum(axis=0), self.average_precisions, self.thresholds
        return {
            name: {
                "images": int(totals[i]),
                "ap_percent": None if (area := areas[i]) is None else round(100 * area, 4),
                "precision_percent": _percent(int(hits[i]), int(answers[i])) if answers[i] else None,
                "recall_percent": _percent(int(hits[i]), int(totals[i])) if totals[i] else None,
                "f1_percent": _percent(2 * int(hits[i]), int(answers[i] + totals[i])),
                "threshold": float(f"{thresholds[i]:.6g}"),
            }
            for i, name in enumerate(self.classes)
        }

    def table(self, *, worst_first: bool = True) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a table, head and rows, of the classes; the lowest average precision first, or as in `classes`."""
        columns = ("ap_percent", "precision_percent", "recall_percent", "f1_percent")
        rows = list(self.per_class.items())
        if worst_first:
            rows.sort(key=lambda item: 101 if item[1]["ap_percent"] is None else item[1]["ap_percent"])
        head = ("class", "pictures", "AP", "precision", "recall", "F1", "threshold")
        return head, [
            (
                name,
                f"{row['images']:,}",
                *("-" if row[key] is None else f"{row[key]:.2f} %" for key in columns),
                f"{row['threshold']:.3f}",
            )
            for name, row in rows
        ]

    @property
    def reliability(self) -> Reliability:
        """How well the probabilities agree with the share of right ones, over all pairs of picture and class."""
        return Reliability.of(self.probabilities.ravel(), self.labels.ravel())

    @property
    def uncalibrated(self) -> Reliability:
        """The same at temperature 1."""
        return Reliability.of(sigmoid(self.logits).ravel(), self.labels.ravel())

    @property
    def notes(self) -> tuple[str, ...]:
        """Reasons to trust the numbers less, one phrase each."""
        notes: list[str] = []
        if self.trained_on:
            few = f"{self.trained_on:,} of these {self.images:,}" if self.trained_on < self.images else "these"
            notes.append(f"{few} pictures trained the model: on new pictures, the error may be much larger")
        totals = self.labels.sum(axis=0)
        if len(lacking := np.flatnonzero(totals == 0)):
            notes.append(f"no picture has {self._some(lacking)}: the mean does not include {_them(len(lacking))}")
        if len(few := np.flatnonzero((totals > 0) & (totals < LEAST_POSITIVES))):
            notes.append(f"fewer than {LEAST_POSITIVES} pictures have {self._some(few)}: such numbers are rough")
        undecided = () if self.calibration is None else self.calibration.undecided
        if undecided:
            notes.append(
                f"the threshold of {self._some(np.array(undecided))} is 0.5, because fewer than {LEAST_POSITIVES} "
                "validation pictures had, or had not, this label"
            )
        return tuple(notes)

    def _some(self, places: NDArray[np.int64]) -> str:
        more = f" and {count(len(places) - 3, 'more class')}" if len(places) > 3 else ""
        return ", ".join(repr(self.classes[place]) for place in places[:3]) + more

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values for JSON."""
        after, before = self.reliability, self.uncalibrated
        result: dict[str, Any] = {
            "images": self.images,
            "map_percent": self.map_percent,
            "map_interval_percent": list(self.interval_percent),
            "error_percent": self.error_percent,
            "macro_f1_percent": self.macro_f1_percent,
            "micro_f1_percent": self.micro_f1_percent,
            "exact_match_percent": self.exact_match_percent,
            "loss": round(self.loss, 4),
            "per_class": self.per_class,
        }
        if self.part:
            result |= {"part": self.part, "of": self.of, "why": self.why, "trained_on": self.trained_on}
        result["calibration"] = {
            "ece_percent": round(after.ece_percent, 2),
            "ece_percent_before": round(before.ece_percent, 2),
            "interval_percent": [round(end, 2) for end in after.interval_percent],
            "temperature": 1.0 if self.calibration is None else self.calibration.temperature,
        }
        if self.notes:
            result["notes"] = list(self.notes)
        if self.unreadable:
            result["unreadable"] = {str(path): reason for path, reason in self.unreadable.items()}
        return result

    def to_state(self) -> dict[str, Any]:
        """Return all fields as tensors and plain values, for torch.save and `from_state`."""
        return {
            "classes": list(self.classes),
            "logits": torch.tensor(self.logits),
            "labels": torch.tensor(self.labels),
            "indices": torch.tensor(self.indices),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "unreadable": {str(path): reason for path, reason in self.unreadable.items()},
            "part": self.part,
            "of": self.of,
            "why": self.why,
            "trained_on": self.trained_on,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "MultiLabelEvaluation":
        """Return the evaluation from the result of `to_state`."""
        calibration = state["calibration"]
        return cls(
            tuple(state["classes"]),
            state["logits"].numpy(),
            state["labels"].numpy(),
            state["indices"].numpy(),
            None if calibration is None else Calibration.from_dict(calibration),
            {Path(path): reason for path, reason in state["unreadable"].items()},
            state["part"],
            state["of"],
            state["why"],
            state["trained_on"],
        )


def mean_logits(logits: Tensor) -> Tensor:
    """Average the probabilities of several views: logits (views, n, classes) to logits (n, classes)."""
    views = torch.log(torch.tensor(float(len(logits))))
    positive = torch.nn.functional.logsigmoid(logits).logsumexp(dim=0) - views
    negative = torch.nn.functional.logsigmoid(-logits).logsumexp(dim=0) - views
    return positive - negative


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 4) if whole else 0.0


def _them(number: int) -> str:
    return "it" if number == 1 else "them"
