"""The saved training state, from which a run resumes with the same weights, bit for bit."""

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from resnetkit.errors import TrainingError
from resnetkit.files import whole_file
from resnetkit.modelfile import Header
from resnetkit.train.pace import Plan
from resnetkit.train.task import Measured

STATE_VERSION = 2
EARLIER_VERSIONS = (1,)
"""Earlier versions of the state that can still be read."""
EARLIER_NAMES = {"errors": "scores", "warmup_wrong": "warmup_counts", "window_wrong": "window_counts"}
"""Names of fields of Position in version 1, with today's names."""


@dataclass
class Position:
    """The position of a run: plain values, saved with the weights."""

    plan: Plan
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    next_batch: int = 0
    """First batch of `epoch` that was not trained on yet."""
    images: int = 0
    """Number of pictures trained on, repetitions included."""
    training_seconds: float = 0.0
    """Time spent on training steps."""
    seconds: float = 0.0
    """Total time, including evaluations and saving."""
    warming_up: bool = False
    scores: list[float] = field(default_factory=list)
    """The task's score at every evaluation so far; the plateau schedule uses them."""
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best model file."""
    evaluation_seconds: float = 0.0
    """Time of the last evaluation, including the saving after it."""
    stopped_early: bool = False
    """Whether `Recipe.patience` ended the run after `step`."""
    evaluation_due: bool = False
    """Whether an evaluation must follow `step` and is not done yet."""
    warmup_counts: dict[str, int] = field(default_factory=dict)
    warmup_images: int = 0
    """Counts (by the task's names) and pictures since the end of the warm-up was last checked."""
    window_loss: float = 0.0
    window_counts: dict[str, int] = field(default_factory=dict)
    window_images: int = 0
    """Sum of losses, counts and pictures since the last line of training metrics."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Position":
        """Return the position with these values, from `to_dict` of this version or of version 1."""
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
    """Write the whole training state to one file, so that its parts always fit together.

    `best` is the validation result of the best model file; None if it is not known.
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
    # If writing directly into the file fails, torch replaces the system's error by one without the reason.
    content = io.BytesIO()
    torch.save(state, content)
    with whole_file(path) as file:
        file.write(content.getbuffer())


def device_rng(net: nn.Module) -> Tensor | None:
    """Return the state of the random generator of the GPU that `net` is on; None on a CPU, which uses torch's own."""
    device = next(net.parameters()).device
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class State:
    """A saved training state."""

    path: Path
    header: Header
    position: Position
    tensors: dict[str, Any]
    """State dicts of net, optimizer and ema, and the states of the random generators."""
    best: Measured | None
    """Validation result of the best model file; None if it is not known."""

    def restore(self, *, net: nn.Module, optimizer: torch.optim.Optimizer, ema: AveragedModel | None) -> None:
        """Restore the weights, the optimiser, the moving average and the random generators.

        Raises TrainingError if the state does not fit them.
        """
        try:
            net.load_state_dict(self.tensors["net"])
            optimizer.load_state_dict(self.tensors["optimizer"])
            if ema is not None:
                ema.load_state_dict(self.tensors["ema"])
            torch.set_rng_state(self.tensors["rng"])
            device = next(net.parameters()).device
            generator = self.tensors.get("device_rng")  # states of earlier versions do not contain it
            if generator is not None and device.type == "cuda":
                torch.cuda.set_rng_state(generator, device)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{self.path} does not fit the run; start a new run with another `out`") from error


def load_state(path: Path) -> State:
    """Read a saved state, without running code from the file.

    Raises TrainingError if the file is broken or from another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] not in (STATE_VERSION, *EARLIER_VERSIONS):
            raise TrainingError(f"{path} was written by another version of resnetkit; resume with that version")
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
        raise TrainingError(f"{path} is broken, so the run can't resume; start a new one with another `out`") from error
