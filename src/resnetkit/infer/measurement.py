"""How fast each way to compute a model is on this machine: choices are measured in turns, and slow ones are dropped."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.infer.backends.backend import Backend
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import GRAPHS, SUPPORTED, BackendName, Choice, Goal, Precision, available, usable_threads
from resnetkit.infer.graphs import Source, graph_name, served_graph
from resnetkit.machine import Machine
from resnetkit.modelfile import Model, load

Say: TypeAlias = Callable[[str], None]

BATCHES = (4, 16, 32)
"""Pictures in a batch that are tried for throughput."""
FIRST_BATCH = 16
"""Pictures in a batch while kinds (a backend with a precision) are compared for throughput."""
HOPELESS = 0.6
"""A kind that is slower than this share of the fastest is not measured further."""
BEHIND = 0.85
"""A choice that is slower than this share of the fastest is not measured in the next round."""
SECONDS = 0.4
"""How long one measurement takes."""


class Trial:
    """A model on this machine. Its backends are opened when they are first needed."""

    def __init__(self, source: Source, machine: Machine, folder: Path, say: Say) -> None:
        """`folder` is for files that are made on the way."""
        self.source, self.machine, self.say = source, machine, say
        self.int8 = folder / graph_name("openvino", "int8", "logits")
        self._model: Model | None = None
        self._opened: dict[Choice, Backend] = {}

    def graph(self, backend: BackendName) -> Path:
        """The float32 graph for a backend of GRAPHS."""
        return served_graph(self.source, backend=backend)

    def open(self, choice: Choice) -> Backend:
        """The backend of a choice. One serves batches of any size, except where it is compiled for a single size."""
        key = choice if choice.backend == "inductor" else replace(choice, batch_size=1)
        if key not in self._opened:
            self._opened[key] = self._open(choice)
        return self._opened[key]

    def _open(self, choice: Choice) -> Backend:
        if choice.precision == "int8":
            return open_backend(choice, self.int8)
        if choice.backend in GRAPHS:
            return open_backend(choice, self.graph(choice.backend))
        self._model = self._model or load(self.source.located)
        return open_backend(choice, self._model)

    def close(self) -> None:
        """Free the memory of all backends."""
        self._opened.clear()


@dataclass
class Measured:
    """One choice, and its rate in every round."""

    goal: Goal
    choice: Choice
    rates: list[float] = field(default_factory=list)
    """Images per second."""

    @property
    def rate(self) -> float:
        """The median of the rates."""
        return median(self.rates)

    @property
    def rank(self) -> tuple[int, float]:
        """The highest is the best. A choice that was dropped early has fewer rounds, and can't win by a lucky one."""
        return len(self.rates), self.rate

    def to_dict(self) -> dict[str, Any]:
        """A row of tune.json. The milliseconds are those from a batch's pixels to its outputs."""
        together = self.choice.batch_size * self.choice.streams
        return {
            "goal": self.goal,
            "choice": self.choice.to_dict(),
            "images_per_second": self.rate,
            "milliseconds": 1000 * together / self.rate,
            "rounds": len(self.rates),
        }


def measure(
    trial: Trial, goal: Goal, allowed: Sequence[Precision], pixels: NDArray[np.uint8], *, rounds: int
) -> list[Measured]:
    """Measure the choices for `goal`: first one of each kind, then in `rounds` all choices of the kinds that are fast.

    `allowed` are the precisions that may be used, and `pixels` pictures (n, size, size, channels) to measure with, at
    least as many as the largest of BATCHES. Returns all choices that were measured.
    """
    threads = usable_threads()
    batch = 1 if goal == "latency" else FIRST_BATCH
    kinds = [Measured(goal, Choice(*kind, threads=threads, batch_size=batch)) for kind in _kinds(allowed)]
    dropped = _race(trial, kinds, pixels, keep=HOPELESS, rounds=1)
    others = [
        Measured(goal, choice)
        for kind in kinds
        if kind not in dropped
        for choice in _variants(goal, kind.choice, trial.machine)
    ]
    left = [kind for kind in kinds if kind not in dropped]
    for kind in left:
        kind.rates.clear()  # measured anew beside the others, in as many rounds
    trial.say(f"{goal}: {len(kinds)} kinds, then {len(left + others)} choices of the {len(left)} fastest")
    _race(trial, left + others, pixels, keep=BEHIND, rounds=rounds)
    trial.close()
    return kinds + others


def _race(
    trial: Trial, choices: Sequence[Measured], pixels: NDArray[np.uint8], *, keep: float, rounds: int
) -> list[Measured]:
    """Measure `choices` in turns, and drop those under the share `keep` of the best rate, but never all of them.

    Returns those that were dropped.
    """
    running = list(choices)
    for one in running:
        _warm_up(trial.open(one.choice), one, pixels)
    for _ in range(rounds):
        for one in running:
            one.rates.append(_rate(trial.open(one.choice), one, pixels))
        best = max(one.rate for one in running)
        running = [one for one in running if one.rate >= keep * best]
    for one in running:
        trial.say(f"{one.choice}: {one.rate:.1f} images/s")
    return [one for one in choices if one not in running]


def _kinds(allowed: Sequence[Precision]) -> list[tuple[BackendName, Precision]]:
    """The backends that are installed, each with its allowed precisions.

    torch.compile takes up to a minute to get ready, and was never faster than OpenVINO. It is tried only where OpenVINO
    is not installed.
    """
    there = [name for name in available() if name != "inductor" or "openvino" not in available()]
    return [(name, precision) for name in there for precision in SUPPORTED[name] if precision in allowed]


def _variants(goal: Goal, base: Choice, machine: Machine) -> list[Choice]:
    """`base` with other threads for latency, or with other streams and batches for throughput."""
    if goal == "latency":
        # Two hyper-threads share the units that multiply, so one thread for each core may be faster.
        physical = max(1, base.threads * machine.physical_cores // machine.cores)
        return [replace(base, threads=physical)] if physical < base.threads and base.backend in GRAPHS else []
    streams = sorted({1, -(-base.threads // 4), -(-base.threads // 2), base.threads})
    if base.backend not in GRAPHS:
        streams = [1]  # torch has one set of threads for all
    return [
        variant
        for number in streams
        for size in BATCHES
        if (variant := replace(base, streams=number, batch_size=size)) != base
    ]


def _batches(measured: Measured, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Batches of the choice's size without end."""
    size = measured.choice.batch_size
    whole = len(pixels) // size
    return (pixels[place % whole * size :][:size] for place in count())


def _warm_up(backend: Backend, measured: Measured, pixels: NDArray[np.uint8]) -> None:
    """Give every stream a batch, since the first ones allocate memory and make kernels."""
    for _ in backend.stream(islice(_batches(measured, pixels), measured.choice.streams + 1)):
        pass


def _rate(backend: Backend, measured: Measured, pixels: NDArray[np.uint8]) -> float:
    """Images per second: for latency from the median of single calls, for throughput from a stream of batches."""
    batches = _batches(measured, pixels)
    if measured.goal == "latency":
        took: list[float] = []
        while sum(took) < SECONDS or len(took) < 3:
            began = time.perf_counter()
            backend(next(batches))
            took.append(time.perf_counter() - began)
        return measured.choice.batch_size / median(took)
    began = time.perf_counter()

    def until_time_is_up() -> Iterator[NDArray[np.uint8]]:
        for number, batch in enumerate(batches):
            if number >= 2 * measured.choice.streams and time.perf_counter() - began > SECONDS:
                return
            yield batch

    images = sum(len(values) for values in backend.stream(until_time_is_up()))
    return images / (time.perf_counter() - began)
