"""The interface between the training loop and a task. The loop does not depend on labels, networks or error rates."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from resnetkit.modelfile import Header
from resnetkit.progress import Advance


class Batch(Protocol):
    """Pictures that go through the network together, with their targets."""

    @property
    def number(self) -> int:
        """Index in the epoch, from 0. A run that stopped after this batch continues with batch `number + 1`."""

    def __len__(self) -> int:
        """Number of pictures in the batch."""


@dataclass(frozen=True)
class Step:
    """The loss and the counts of one batch."""

    loss: Tensor
    """Scalar with a gradient: the sum of the batch's losses, divided by the number of pictures in the whole step. The
    losses of a step's batches add up to the mean over the step, even if the batches differ in size."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """For each name in `Task.counts`, the number of pictures in the batch that it applies to."""


@dataclass(frozen=True)
class Measured:
    """The result of a validation."""

    values: Mapping[str, float]
    """Named values, for metrics.jsonl and the model file. A name that ends in _percent is a percentage."""
    details: Mapping[str, Any]
    """Data for the task's report: plain values and tensors, which are saved with the training state."""


B = TypeVar("B", bound=Batch)


class Task(Protocol[B]):
    """A learning task, ready for training: a network, its pictures, a loss and a validation."""

    @property
    def net(self) -> nn.Module:
        """The network in training, on its device."""

    @property
    def header(self) -> Header:
        """Header of the run's model files, without the metrics."""

    @property
    def title(self) -> str:
        """Title of the curves and of the report."""

    @property
    def device(self) -> torch.device:
        """Device of the network."""

    @property
    def precision(self) -> str:
        """Precision of the feature maps in training: float32 or bfloat16."""

    @property
    def computed_by(self) -> str:
        """How a step is computed: by kernels, torch.compile or eager."""

    @property
    def recompute(self) -> bool:
        """Whether the backward pass computes feature maps again, to save memory."""

    @property
    def training_pictures(self) -> int:
        """Number of pictures in an epoch."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""

    @property
    def validation_pictures(self) -> int:
        """Number of pictures in a validation; 0 if there is no validation."""

    @property
    def validated_at_once(self) -> int:
        """Number of pictures in a batch of the validation."""

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the counts in training, such as "error". They are shown as percentages of the pictures.

        A warm-up (`Recipe.warmup_lr`) ends when the percentage of the first one is low enough.
        """
        ...

    @property
    def score(self) -> str:
        """Name of the value in `Measured.values` that ranks models; lower is better. The curves show it."""

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[B]:
        """Yield the batches of an epoch from `first_batch` on. A repeated call yields the same batches, bit for bit.

        `progress` returns the share of the run that is done, 0 to 1. When the batches must change at this progress (a
        different augmentation), the generator ends early, and the loop calls `batches` again from the next batch on. A
        generator that yields no batch means that the epoch is over.
        """
        ...

    @property
    def early_steps(self) -> tuple[float, float]:
        """(share, cost): until this share of the run is done, a step takes `cost` times as long as a later one.

        (0, 1) where all steps take equally long.
        """
        ...

    def train_mode(self) -> None:
        """Set the network to training mode."""

    def step(self, batch: B, *, pictures: int) -> Step:
        """Return the loss of a batch; `pictures` counts the pictures of the whole step, which may have several batches.

        The loop calls `backward`.
        """
        ...

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Measure `net`, a network like `self.net`, on the validation pictures; return None if there are none.

        `advance` is called after each batch with its number of pictures; an exception that it raises ends the
        validation. `net` is left in evaluation mode.
        """
        ...

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any], measured: Measured | None) -> None:
        """Write a model file with the weights of `net`, whose validation is `measured`."""

    def load(self, path: Path) -> Any:
        """Return the model in a file that `save` wrote, on the CPU; its network is `net` and its header `header`."""

    def report(
        self, path: Path, model: Any, measured: Measured | None, *, curves: bytes, about: Mapping[str, Any]
    ) -> None:
        """Write the HTML report of a finished run.

        `model` is the best one, from `load`, `measured` its validation, `curves` a PNG image, and `about` what
        recipe.yaml says of the run's data and machine.
        """

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Return the files that could not be read, in training and in the validation `measured`, with the reasons."""
        ...

    def example(self, pictures: int) -> B:
        """Return a batch of `pictures` pictures of noise, to measure the time of a step."""
        ...

    def validate_example(self, pictures: int) -> None:
        """Do the computation of a validation on a batch of `pictures` pictures of noise, to measure its time."""
