"""What the training loop asks of a task. The loop itself knows no labels, no network and no error."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from resnetkit.modelfile import Header
from resnetkit.progress import Advance


class Batch(Protocol):
    """Pictures that go through the network together, with what they should give."""

    @property
    def number(self) -> int:
        """Place in the epoch, from 0: a run that stopped after this batch goes on at `number + 1`."""

    def __len__(self) -> int:
        """Pictures in the batch."""


@dataclass(frozen=True)
class Step:
    """What a batch gave."""

    loss: Tensor
    """Scalar with a gradient: the sum of its pictures' losses, divided by the pictures of the whole step. So the losses
    of a step's batches add up to its mean, however many pictures each of them has."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many of its pictures count as what, by the names in `Task.counts`."""


@dataclass(frozen=True)
class Measured:
    """What a validation found."""

    values: Mapping[str, float]
    """Named values, for metrics.jsonl and the model file. A name that ends in _percent holds a percentage."""
    details: Mapping[str, Any]
    """What the task's report is written from: plain values and tensors, which are saved with the training state."""


B = TypeVar("B", bound=Batch)


class Task(Protocol[B]):
    """Something to learn, ready to start: a network, its pictures, and what counts as good."""

    @property
    def net(self) -> nn.Module:
        """The network in training, on its device."""

    @property
    def header(self) -> Header:
        """What the run's model files say, but for the metrics."""

    @property
    def title(self) -> str:
        """What the curves and the report are called."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""

    @property
    def precision(self) -> str:
        """The precision of its maps in training: float32 or bfloat16."""

    @property
    def computed_by(self) -> str:
        """What computes a step: kernels, torch.compile or eager."""

    @property
    def recompute(self) -> bool:
        """Whether a step computes maps again for the gradient, to save memory."""

    @property
    def training_pictures(self) -> int:
        """Pictures in an epoch."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch."""

    @property
    def validation_pictures(self) -> int:
        """Pictures in a validation; 0 where nothing is validated."""

    @property
    def validated_at_once(self) -> int:
        """Pictures in a validation's batch."""

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of what is counted in training, such as "error"; shown as percentages of the pictures."""

    @property
    def score(self) -> str:
        """The validation's value by which two models are compared; lower is better. The curves show it."""

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[B]:
        """The batches of an epoch from `first_batch` on, the same to the bit whenever they are asked for.

        `progress` gives the share of the run that is behind, 0 to 1. Where it calls for other batches, the generator
        ends early, and the loop asks again from there on. One that gives nothing says that the epoch is over.
        """
        ...

    def early_cost(self, progress: float) -> float:
        """What a step costs at `progress`, as a share of one at the run's end."""
        ...

    def train_mode(self) -> None:
        """Set the network to training."""

    def step(self, batch: B, *, pictures: int) -> Step:
        """The loss of a batch; `pictures` are those of the whole step, which may have several batches."""
        ...

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Measure a network of this kind on the validation pictures; None where there are none.

        `advance` is called after each batch with its pictures; what it raises ends the validation. Leaves `net` in
        evaluation mode.
        """
        ...

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any]) -> None:
        """Write a model file with the weights of `net`."""

    def report(self, path: Path, header: Header, measured: Measured | None, *, curves: bytes) -> None:
        """Write the finished run as a page: of the model file with this header, what was measured of it, and a PNG."""

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Files that could not be read in training and in that validation, each with the reason."""
        ...

    def example(self, pictures: int) -> B:
        """A batch of noise, to measure what a step takes."""
        ...

    def validate_example(self, pictures: int) -> None:
        """Compute what a validation computes on a batch of so many pictures of noise."""
