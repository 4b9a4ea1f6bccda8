"""Measure how fast each choice computes a model on this machine. Choices take turns, and slow ones are dropped."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.infer.backends.backend import Backend
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import GRAPHS, SUPPORTED, BackendName, Choice, Goal, Precision, available, usable_threads
from resnetkit.infer.graphs import cached_graph
from resnetkit.infer.tuning.record import INT8_GRAPH
from resnetkit.infer.unloaded import UnloadedModel
from resnetkit.machine import Machine
from resnetkit.modelfile import Model, load

Say: TypeAlias = Callable[[str], None]

BATCHES = (4, 16, 32)
"""The batch sizes that are measured for throughput."""
FIRST_BATCH = 16
"""The batch size in the first comparison for throughput, of kinds: a kind is a backend with a precision."""
LONGEST = 2.0
"""Most seconds that one batch in each stream may take together. Larger batches are not measured: they gain nothing."""
HOPELESS = 0.7
"""A kind whose rate is below this share of the fastest kind's is not measured further."""
BEHIND = 0.9
"""A choice whose rate is below this share of the fastest choice's is not measured in the next round."""
SECONDS = 0.4
"""Least duration of one measurement."""
BUDGET = 20.0
"""Seconds after which no further round of a goal is begun, except for the second."""


class Trial:
    """A model that is measured on this machine. Its backends are opened when they are first needed."""

    def __init__(self, unloaded: UnloadedModel, machine: Machine, folder: Path, say: Say) -> None:
        """`folder` is for the int8 graph. `say` is called with a line of text for every step."""
        self.unloaded, self.machine, self.say = unloaded, machine, say
        self.int8 = folder / INT8_GRAPH
        self._model: Model | None = None
        self._opened: dict[Choice, Backend] = {}

    @property
    def backend(self) -> BackendName:
        """The backend whose outputs are judged."""
        return "openvino" if "openvino" in available() else "torch"

    @cached_property
    def seconds_per_picture(self) -> float:
        """Seconds for a single picture in float32."""
        preprocess = self.unloaded.header.preprocess
        pixels = np.zeros((1, preprocess.size, preprocess.size, preprocess.channels), np.uint8)
        compute = self.open(Choice(self.backend))
        compute(pixels)
        return 1 / _rate_of_calls(lambda: compute(pixels))

    def fits(self, batch_size: int, streams: int = 1) -> bool:
        """Whether batches of this size in so many streams are short enough to be measured: see LONGEST."""
        return batch_size == min(BATCHES) or batch_size * streams * self.seconds_per_picture <= LONGEST

    def graph(self, backend: BackendName) -> Path:
        """Return the path of the float32 graph for a backend of GRAPHS."""
        return cached_graph(self.unloaded, backend=backend)

    def open(self, choice: Choice) -> Backend:
        """Return the backend of a choice. Choices that differ only in batch size share it, except for inductor's."""
        key = choice if choice.backend == "inductor" else replace(choice, batch_size=1)
        if key not in self._opened:
            self._opened[key] = self._open(choice)
        return self._opened[key]

    def _open(self, choice: Choice) -> Backend:
        if choice.precision == "int8":
            return open_backend(choice, self.int8)
        if choice.backend in GRAPHS:
            return open_backend(choice, self.graph(choice.backend))
        self._model = self._model or load(self.unloaded.located)
        return open_backend(choice, self._model)

    def close(self) -> None:
        """Free the memory of all backends."""
        self._opened.clear()


@dataclass
class Measured:
    """One choice and its rates."""

    goal: Goal
    choice: Choice
    rates: list[float] = field(default_factory=list)
    """Images per second in each round."""

    @property
    def rate(self) -> float:
        """The median of the rates, in images per second."""
        return median(self.rates)

    @property
    def rank(self) -> tuple[int, float]:
        """The best choice has the highest rank. Rounds count first, so a choice that was dropped early can't win."""
        return len(self.rates), self.rate

    def to_dict(self) -> dict[str, Any]:
        """Return a row of tune.json. "milliseconds" is the time from a batch's pixels to its outputs."""
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
    """Measure the choices for `goal`, and return all that were measured.

    First one choice of each kind is measured, then in up to `rounds` rounds all choices of the fast kinds. `allowed`
    are the precisions that may be used. `pixels` are pictures to measure with, uint8 (n, size, size, channels), at
    least as many as the largest of BATCHES.
    """
    kinds = [Measured(goal, choice) for choice in _first(trial, goal, _kinds(allowed))]
    dropped = _race(trial, kinds, pixels, keep=HOPELESS, rounds=1)
    others = [
        Measured(goal, choice)
        for kind in kinds
        if kind not in dropped
        for choice in _variants(trial, goal, kind.choice)
    ]
    left = [kind for kind in kinds if kind not in dropped]
    for kind in left:
        kind.rates.clear()  # measured again with the others, in the same rounds
    trial.say(f"{goal}: {len(kinds)} kinds, then {len(left + others)} choices of the {len(left)} fastest")
    _race(trial, left + others, pixels, keep=BEHIND, rounds=rounds)
    trial.close()
    return kinds + others


def slower_int8(
    trial: Trial, goals: Sequence[Goal], others: Sequence[Precision], pixels: NDArray[np.uint8]
) -> str | None:
    """Return why the int8 graph at `trial.int8` can't win, or None if it is the fastest graph for one of `goals`.

    `others` are the other precisions that may be used. `pixels` are those of `measure`.
    """
    why = None
    kinds: list[tuple[BackendName, Precision]] = [("openvino", "int8")]
    kinds += [kind for kind in _kinds(others) if kind[0] in GRAPHS]
    for goal in goals:
        raced = [Measured(goal, choice) for choice in _first(trial, goal, kinds)]
        for one in raced:
            _warm_up(trial.open(one.choice), one, pixels)
            one.rates.append(_rate(trial.open(one.choice), one, pixels))
        best = max(raced, key=lambda one: one.rate)
        if best is raced[0]:
            why = None
            break
        fastest = f"{best.choice.backend} in {best.choice.precision} {best.rate:.1f}"
        why = f"a first trial made {raced[0].rate:.1f} images/s, and {fastest} ({goal})"
    trial.close()
    return why


def _first(trial: Trial, goal: Goal, kinds: Iterable[tuple[BackendName, Precision]]) -> list[Choice]:
    """Return the choices that are compared first, one for each kind."""
    batch = 1 if goal == "latency" else FIRST_BATCH if trial.fits(FIRST_BATCH) else min(BATCHES)
    return [Choice(*kind, threads=usable_threads(), batch_size=batch) for kind in kinds]


def _race(
    trial: Trial, choices: Sequence[Measured], pixels: NDArray[np.uint8], *, keep: float, rounds: int
) -> list[Measured]:
    """Measure `choices` in turns. After each round, drop the choices below the share `keep` of the best rate.

    Ends after `rounds` rounds, or after BUDGET seconds and two rounds, or if one choice is left. Returns the choices
    that were dropped. The best choice is never dropped.
    """
    running = list(choices)
    began = time.monotonic()
    for one in running:
        _warm_up(trial.open(one.choice), one, pixels)
    for done in range(rounds):
        if len(running) == 1 < done or (done > 1 and time.monotonic() - began > BUDGET):
            break
        for one in running:
            one.rates.append(_rate(trial.open(one.choice), one, pixels))
        best = max(one.rate for one in running)
        running = [one for one in running if one.rate >= keep * best]
    for one in running:
        trial.say(f"{one.choice}: {one.rate:.1f} images/s")
    return [one for one in choices if one not in running]


def _kinds(allowed: Sequence[Precision]) -> list[tuple[BackendName, Precision]]:
    """Return the backends that are installed, each with each of its allowed precisions.

    torch.compile takes up to a minute to compile, and was never faster than OpenVINO. It is tried only if OpenVINO is
    not installed.
    """
    there = [name for name in available() if name != "inductor" or "openvino" not in available()]
    return [(name, precision) for name in there for precision in SUPPORTED[name] if precision in allowed]


def _variants(trial: Trial, goal: Goal, base: Choice) -> list[Choice]:
    """Return `base` with other numbers of threads for latency, or of streams and pictures in a batch for throughput."""
    if goal == "latency":
        # Two hyper-threads share the multiplying units of a core, so one thread for each core may be faster.
        physical = max(1, base.threads * trial.machine.physical_cores // trial.machine.cores)
        return [replace(base, threads=physical)] if physical < base.threads and base.backend in GRAPHS else []
    streams = sorted({1, -(-base.threads // 4), -(-base.threads // 2), base.threads})
    if base.backend not in GRAPHS:
        streams = [1]  # all batches of torch share one set of threads
    return [
        variant
        for number in streams
        for size in BATCHES
        if trial.fits(size, number)
        if (variant := replace(base, streams=number, batch_size=size)) != base
    ]


def _batches(measured: Measured, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of the choice's batch size without end."""
    size = measured.choice.batch_size
    whole = len(pixels) // size
    return (pixels[place % whole * size :][:size] for place in count())


def _warm_up(backend: Backend, measured: Measured, pixels: NDArray[np.uint8]) -> None:
    """Compute a batch in every stream, because the first batches allocate memory and compile kernels."""
    for _ in backend.stream(islice(_batches(measured, pixels), measured.choice.streams)):
        pass


def _rate(backend: Backend, measured: Measured, pixels: NDArray[np.uint8]) -> float:
    """Return images per second: for latency from the median time of a call, for throughput from a stream of batches."""
    batches = _batches(measured, pixels)
    if measured.goal == "latency":
        return measured.choice.batch_size * _rate_of_calls(lambda: backend(next(batches)))
    began = time.perf_counter()

    def until_time_is_up() -> Iterator[NDArray[np.uint8]]:
        for number, batch in enumerate(batches):
            if number >= 2 * measured.choice.streams and time.perf_counter() - began > SECONDS:
                return
            yield batch

    images = sum(len(values) for values in backend.stream(until_time_is_up()))
    return images / (time.perf_counter() - began)


def _rate_of_calls(call: Callable[[], object]) -> float:
    """Return calls per second, from their median time."""
    took: list[float] = []
    while sum(took) < SECONDS or len(took) < 3:
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1 / median(took)
