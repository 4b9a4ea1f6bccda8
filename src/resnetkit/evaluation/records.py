"""Records of single pictures: the label, and the most probable classes with their probabilities."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """Shape (n, top): the probabilities of these classes, 0 to 1."""

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return line(type(self), count(len(self), "picture"), f"top {self.top}")

    @property
    def top(self) -> int:
        """Number of classes that are kept for each picture."""
        return self.classes.shape[1]

    @classmethod
    def of(cls, log_probabilities: Tensor, labels: Tensor, indices: Tensor, *, top: int) -> "Records":
        """Return the records of a batch: log-probabilities float32 (n, classes), labels and indices int64 (n,).

        `top` classes are kept for each picture, or all if there are fewer.
        """
        ordered = log_probabilities.float().sort(dim=1, descending=True, stable=True)
        return cls(
            indices.numpy(force=True).copy(),
            labels.numpy(force=True).copy(),
            ordered.indices[:, :top].numpy(force=True).copy(),
            ordered.values[:, :top].exp().numpy(force=True),
        )

    def within(self, places: NDArray[np.int64]) -> "Records":
        """Return the same records of a subset, with indices into the whole set.

        `places`, int64 (m,), are the indices that were given to `Samples.subset`. Call this before you join the records
        of several subsets of one set, or merge their evaluations.
        """
        return joined([Records(places[self.indices], self.labels, self.classes, self.probabilities)])

    def to_state(self) -> dict[str, Tensor]:
        """Return the fields as tensors, by name, for `from_state`."""
        return {field.name: torch.tensor(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Records":
        """Return the records from the result of `to_state`."""
        return cls(**{name: tensor.numpy() for name, tensor in state.items()})


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
    return Records(
        indices,
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.classes for part in parts])[order],
        np.concatenate([part.probabilities for part in parts])[order],
    )


def write_records(path: Path, records: Records, classes: Sequence[str], samples: Samples) -> None:
    """Write `records` as CSV: picture,label,class_1,probability_1,class_2,... with a row for each picture.

    The first column is the picture's path, or its index if it is in memory. `classes` are the class names, in the order
    of the labels. `samples` are the pictures that were evaluated. A file at `path` is replaced.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{column}_{place}" for place in range(1, records.top + 1) for column in ("class", "probability")]
    writer.writerow(["picture", "label", *columns])
    for index, label, best, probabilities in zip(
        records.indices.tolist(), records.labels.tolist(), records.classes.tolist(), records.probabilities, strict=True
    ):
        pairs = zip(best, probabilities, strict=True)
        cells = [cell for place, probability in pairs for cell in (classes[place], str(probability))]
        writer.writerow([samples.place(index), classes[label], *cells])
    write_whole(path, printable(text.getvalue()))
