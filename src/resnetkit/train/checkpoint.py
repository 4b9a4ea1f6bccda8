"""A run's folder, and the training state in it: everything that a run needs to go on as if it had never stopped."""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resnetkit.display import shell
from resnetkit.errors import TrainingError
from resnetkit.files import whole_file
from resnetkit.modelfile import Header
from resnetkit.train.optim import Plan
from resnetkit.train.task import Measured

STATE_VERSION = 2
EARLIER_VERSIONS = (1,)
"""Of states that can still be read."""
EARLIER_NAMES = {"errors": "scores", "warmup_wrong": "warmup_counts", "window_wrong": "window_counts"}
"""Fields of Position as version 1 called them."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one training run."""

    path: Path

    @property
    def best(self) -> Path:
        """Model file with the lowest validation error; without validation, the last one."""
        return self.path / "best.safetensors"

    @property
    def last(self) -> Path:
        """Model file of the latest evaluation that was saved with the state; at the end, of the last one."""
        return self.path / "last.safetensors"

    @property
    def state(self) -> Path:
        """Training state to resume from."""
        return self.path / "state.pt"

    @property
    def recipe(self) -> Path:
        """The recipe and what it was run on."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON document a line: training and validation metrics."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Error and learning rate over the run."""
        return self.path / "curves.png"

    @property
    def report(self) -> Path:
        """The finished run as a page."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "log.txt"

    def refuse_existing(self) -> None:
        """Raise TrainingError where there is something in the folder already, but for what a start that failed left."""
        left_by_a_start = {".lock", self.log.name}
        if self.path.exists() and (
            not self.path.is_dir() or any(path.name not in left_by_a_start for path in self.path.iterdir())
        ):
            raise TrainingError(
                f"{self.path} is there already. Give another `out`, or go on with: "
                f"resnetkit train --resume {shell(self.path)}"
            )

    def create(self) -> None:
        """Make the folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.path} can't be made: {error.strerror}. Give another `out`.") from error

    def create_beside(self) -> "RunFolder":
        """Make the folder and return it; where it is there already, the first of <name>-2, <name>-3, ... that is not.

        Of several runs that start at the same time, each gets its own.
        """
        RunFolder(self.path.parent).create()
        run, number = self, 1
        while True:
            try:
                run.path.mkdir()
            except FileExistsError:
                number += 1
                run = RunFolder(self.path.with_name(f"{self.path.name}-{number}"))
            except OSError as error:
                raise TrainingError(f"{run.path} can't be made: {error.strerror}. Give another `out`.") from error
            else:
                return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and sweep out half-written files; TrainingError where it is held."""
        with (self.path / ".lock").open("w") as lock:
            try:
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # Windows has no flock: two runs in one folder are then the user's own care.
                pass
            except OSError as error:
                raise TrainingError(f"{self.path} is in use by another process; wait for it, or stop it") from error
            for half_written in self.path.glob(".*.part"):
                half_written.unlink()
            yield


@dataclass
class Position:
    """Where a run is: plain values, saved with the weights."""

    plan: Plan
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    next_batch: int = 0
    """First batch of `epoch` that was not seen yet."""
    images: int = 0
    """Pictures trained on."""
    training_seconds: float = 0.0
    """Time spent on training steps."""
    seconds: float = 0.0
    """Time spent in all, evaluations and savings included."""
    warming_up: bool = False
    scores: list[float] = field(default_factory=list)
    """The task's score at every evaluation so far; what a plateau is told by."""
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best model file."""
    evaluation_seconds: float = 0.0
    """What the last evaluation took, with the saving after it."""
    evaluation_due: bool = False
    """Whether the evaluation after `step` is still to be made."""
    warmup_counts: dict[str, int] = field(default_factory=dict)
    warmup_images: int = 0
    """Sums since the warm-up was last reconsidered; counts by the task's names."""
    window_loss: float = 0.0
    window_counts: dict[str, int] = field(default_factory=dict)
    window_images: int = 0
    """Sums since the last line of training metrics."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """The reverse of to_dict; also of the first version's."""
        values = {EARLIER_NAMES.get(name, name): value for name, value in values.items()}
        for name in ("warmup_counts", "window_counts"):
            if isinstance(values[name], int):
                values[name] = {"error": values[name]}
        knots = tuple((int(step), float(progress)) for step, progress in values["plan"]["knots"])
        return cls(**values | {"plan": Plan(knots)})


def save_state(
    path: Path,
    position: Position,
    *,
    header: Header,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: AveragedModel | None,
    best: Measured | None,
) -> None:
    """Write the whole training state to one file, so that its parts can't disagree.

    `best` is what was measured of the best model file, where it is known.
    """
    state = {
        "version": STATE_VERSION,
        "header": header.to_json(),
        "position": position.to_dict(),
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": device_rng(net),
        "best": None if best is None else dict(best.details),
    }
    # Not straight into the file: where that fails, torch hides the reason behind one of its own.
    content = io.BytesIO()
    torch.save(state, content)
    with whole_file(path) as file:
        file.write(content.getbuffer())


def device_rng(net: nn.Module) -> Tensor | None:
    """State of the random generator of the GPU that `net` is on; None on a CPU, whose generator is torch's own."""
    device = next(net.parameters()).device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class State:
    """A saved training state."""

    path: Path
    header: Header
    position: Position
    tensors: dict[str, Any]
    """State dicts of net, optimizer and ema, and the random generators' states."""
    best: Measured | None
    """What was measured of the best model file; None where it is not known."""

    def restore(self, *, net: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedModel | None) -> None:
        """Put weights, moments, averages and the random generators back; TrainingError where they do not fit."""
        try:
            net.load_state_dict(self.tensors["net"])
            optimizer.load_state_dict(self.tensors["optimizer"])
            if ema is not None:
                ema.load_state_dict(self.tensors["ema"])
            torch.set_rng_state(self.tensors["rng"])
            device = next(net.parameters()).device
            generator = self.tensors.get("device_rng")  # not there in states of earlier versions
            if generator is not None and device.type == "cuda":
                torch.cuda.set_rng_state(generator, device)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{self.path} does not fit the run; start anew with another `out`") from error


def load_state(path: Path) -> State:
    """Read a saved state, running no code from the file; TrainingError where it is broken."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] not in (STATE_VERSION, *EARLIER_VERSIONS):
            raise TrainingError(f"{path} was written by another version of resnetkit; resume with that one")
        header = Header.from_json(state["header"], source=str(path))
        position = Position.from_dict(state["position"])
        best = Measured(position.best, state["best"]) if state.get("best") else None
        return State(path, header, position, state, best)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        EOFError,
    ) as error:
        raise TrainingError(f"{path} is broken and can't be resumed from; start anew with another `out`") from error
