"""Records of single pictures: the label, the most probable classes with their probabilities, and scores."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.calibration import Calibration
from resnetkit.data.samples import Samples
from resnetkit.display import count, line, printable
from resnetkit.errors import UsageError
from resnetkit.files import write_whole


@dataclass(frozen=True, eq=False)
class Records:
    """Records of n pictures, in the order of their indices."""

    indices: NDArray[np.int64]
    """Shape (n,): the index of each picture in the samples, from 0."""
    labels: NDArray[np.int64]
    """Shape (n,): the label of each picture, as an index into the classes."""
    classes: NDArray[np.int64]
    """Shape (n, top): the most probable classes, in order of probability; if equal, the lower index first."""
    probabilities: NDArray[np.float32]
    """Shape (n, top): the probabilities of these classes, 0 to 1, at the model's temperature."""
    label_probabilities: NDArray[np.float32]
    """Shape (n,): the probabilities of the labels, at the model's temperature."""
    uncalibrated: NDArray[np.float32]
    """Shape (n,): the probability of the most probable class at temperature 1."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return line(type(self), count(len(self), "picture"), f"top {self.top}")

    @property
    def top(self) -> int:
        """Number of classes that are kept for each picture."""
        return self.classes.shape[1]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Shape (n,): whether the most probable class is the label."""
        return self.classes[:, 0] == self.labels

    @classmethod
    def of(
        cls, logits: Tensor, labels: Tensor, indices: Tensor, *, top: int, calibration: Calibration | None = None
    ) -> "Records":
        """Return the records of a batch: logits or log-probabilities float32 (n, classes), labels and indices (n,).

        `top` classes are kept for each picture, or all if there are fewer. Their order is that of the logits.
        """
        logits = logits.float()
        ordered = logits.sort(dim=1, descending=True, stable=True)
        temperature = 1.0 if calibration is None else calibration.temperature
        log_probabilities = (logits if temperature == 1 else logits / temperature).log_softmax(dim=1)
        best = ordered.indices[:, :top]
        own = log_probabilities.gather(1, labels.to(logits.device)[:, None])[:, 0]
        return cls(
            indices.numpy(force=True).copy(),
            labels.numpy(force=True).copy(),
            best.numpy(force=True).copy(),
            log_probabilities.gather(1, best).exp().numpy(force=True),
            own.exp().numpy(force=True),
            logits.log_softmax(dim=1).amax(dim=1).exp().numpy(force=True),
        )

    def within(self, places: NDArray[np.int64]) -> "Records":
        """Return the same records of a subset, with indices into the whole set.

        `places`, int64 (m,), are the indices that were given to `Samples.subset`. Call this before you join the records
        of several subsets of one set, or merge their evaluations.
        """
        return joined([replace(self, indices=places[self.indices])])

    def to_state(self) -> dict[str, Tensor]:
        """Return the fields as tensors, by name, for `from_state`."""
        return {field.name: torch.tensor(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Records | None":
        """Return the records from the result of `to_state`; None for one of an earlier version, with fewer fields."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: tensor.numpy() for name, tensor in state.items()}) if known == state.keys() else None


def joined(parts: Sequence[Records]) -> Records:
    """Return all records of one or more parts, sorted by index.

    Raises UsageError if two records are of the same picture, or if the parts have different numbers of classes.
    """
    if len(tops := sorted({part.top for part in parts})) > 1:
        raise UsageError(f"the parts have records of {tops[0]} and of {tops[-1]} classes; give each the same `records`")
    indices = np.concatenate([part.indices for part in parts])
    order = indices.argsort(kind="stable")
    indices = indices[order]
    if (twice := indices[1:][indices[1:] == indices[:-1]]).size:
        raise UsageError(
            f"picture {twice[0]} has two records. If the parts are subsets of one set, their indices all start at 0: "
            "call `Records.within` first"
        )
    return Records(*(np.concatenate([getattr(part, field.name) for part in parts])[order] for field in fields(Records)))


def write_records(path: Path, records: Records, classes: Sequence[str], samples: Samples) -> None:
    """Write `records` as CSV with a row for each picture.

    The columns are picture,label,class_1,probability_1,class_2,...,label_probability. The first one is the
    picture's path, or its index if it is in memory. `classes` are the class names, in the order of the labels.
    `samples` are the pictures that were evaluated. A file at `path` is replaced.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{column}_{place}" for place in range(1, records.top + 1) for column in ("class", "probability")]
    writer.writerow(["picture", "label", *columns, "label_probability"])
    for place in range(len(records)):
        pairs = zip(records.classes[place].tolist(), records.probabilities[place], strict=True)
        cells = [cell for best, probability in pairs for cell in (classes[best], str(probability))]
        name, label = samples.place(int(records.indices[place])), classes[records.labels[place]]
        writer.writerow([name, label, *cells, str(records.label_probabilities[place])])
    write_whole(path, printable(text.getvalue()))
