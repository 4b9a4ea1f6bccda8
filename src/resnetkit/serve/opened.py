"""What the server needs of a model that is open, whatever its kind."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure
from resnetkit.infer.choice import Choice
from resnetkit.infer.signature import Signature
from resnetkit.serve.metrics import Metrics

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

Pixels: TypeAlias = NDArray[np.uint8]
"""A decoded picture, uint8 (height, width, channels)."""


class Opened(Protocol):
    """A model that is ready to compute. Several threads may call it."""

    @property
    def choice(self) -> Choice:
        """How it is computed."""
        ...

    @property
    def signature(self) -> Signature:
        """The names, types and shapes of its inputs and outputs."""
        ...

    @property
    def batch_size(self) -> int:
        """Most pictures that go through the network together."""
        ...

    @property
    def streams(self) -> int:
        """Batches that are computed at the same time."""
        ...

    def warm_up(self) -> None:
        """Compute once in each stream: the first time takes longest."""
        ...

    def decode(self, picture: bytes) -> Pixels | Failure:
        """Return a picture as `compute` takes it, or why it can't be read. Raises nothing for a wrong picture."""
        ...

    def compute(self, pictures: Sequence[Pixels]) -> Sequence[Any]:
        """Return for each picture what the network finds."""
        ...

    def explain(self, picture: bytes, *, label: str | int | None) -> "Explanation":
        """Return where the evidence for a class is. Raises UsageError for a model that gives no explanations."""
        ...

    def note(self, found: Sequence[Any], metrics: Metrics, name: str) -> None:
        """Count what was found in pictures that were answered; `name` is the model's."""
        ...

    def note_drift(self, metrics: Metrics, name: str) -> None:
        """Set the metrics of drift, and remove those that the model has not."""
        ...

    def card(self, name: str) -> dict[str, Any]:
        """Return what clients are told of the model, as plain values for JSON."""
        ...
