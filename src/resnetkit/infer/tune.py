"""Which way to compute a model is the fastest on this machine, of those that keep its accuracy: by measuring them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from shutil import copy
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import ExportError, UsageError
from resnetkit.infer.backends import Backend, open_backend
from resnetkit.infer.choice import (
    BFLOAT16,
    GRAPHS,
    SUPPORTED,
    BackendName,
    Choice,
    Goal,
    Precision,
    available,
    usable_threads,
)
from resnetkit.infer.graphs import (
    Place,
    Source,
    Tuned,
    find_tuned,
    graph_name,
    open_source,
    served_graph,
    writable_place,
)
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss
from resnetkit.infer.quantizing.pictures import TuningPictures, read_tuning_pictures
from resnetkit.infer.quantizing.quantize import Quantized, quantize
from resnetkit.machine import Machine, read_machine
from resnetkit.modelfile import Model, load

Say: TypeAlias = Callable[[str], None]
_Judge: TypeAlias = Callable[[Precision, Path | None, float], Verdict]
"""Of a precision, its graph if it is int8's, and the loss that is allowed."""

JUDGED_MACS = 10**12
"""Multiply-adds that predicting the guard's pictures may take: half a minute in float32 on two cores."""
LEAST_JUDGED, MOST_JUDGED = 300, 10_000
BATCHES = (4, 16, 32)
FIRST_BATCH = 16
"""Pictures in a batch where kinds (backend and precision) are compared for throughput."""
HOPELESS, BEHIND = 0.6, 0.85
"""Of the best rate: a kind below the first, or then a choice below the second, is measured no longer."""
SECONDS = 0.4
"""Of one measurement."""
ROUNDS = 5
BUSY = 0.5


@dataclass
class _Row:
    """One choice, and what was measured of it in every round."""

    goal: Goal
    choice: Choice
    rates: list[float] = field(default_factory=list)
    """Images per second."""

    @property
    def rate(self) -> float:
        return median(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """For tune.json: the medians. Milliseconds are those from a batch's pixels to its values."""
        together = self.choice.batch_size * self.choice.streams
        return {
            "goal": self.goal,
            "choice": self.choice.to_dict(),
            "images_per_second": self.rate,
            "milliseconds": 1000 * together / self.rate,
            "rounds": len(self.rates),
        }


def tune(
    model: str | Path,
    data: str | None = None,
    *,
    goal: Goal | Literal["both"] = "both",
    max_top1_loss: float = 0.5,
    calibrate: str | None = None,
    quick: bool = False,
    say: Say = lambda line: None,
) -> Tuned:
    """Measure the ways to compute MODEL on this machine, and keep the fastest that holds its accuracy in tune.json.

    `model` is a model file, a run folder, NAME:WEIGHTS or hf:OWNER/NAME; Predictor finds what is kept. `data` is
    cifar10, cifar100, a folder or a CSV file. A precision is allowed where its top-1 error on pictures of `data` is at
    most `max_top1_loss` points over float32's, or, without labels, where its best class is float32's on all but so
    many percent. 8-bit integers need `data`, or pictures to calibrate with in `calibrate`; without, bfloat16 is judged
    by the few pictures that come with the package. `quick` judges by fewer pictures and measures fewer rounds. `say`
    gets a line for every step. Takes one to three minutes for a ResNet-50.

    What was kept before is intact until all is measured. With one `goal`, what was found for the other one on this
    machine and these weights stays, with its own graph in integers, as long as it is as accurate as was asked for then
    on the pictures of this run, too, if these are not fewer.

    Raises UsageError for wrong use, DataError for pictures that can't be read or a place that can't be written,
    ModelFileError for a model that can't be read.
    """
    if goal not in (*get_args(Goal), "both"):
        raise UsageError(f"--goal is {goal!r}; choose one of {', '.join(get_args(Goal))}, both")
    check_loss(max_top1_loss)
    source = open_source(model)
    place = writable_place(source)
    machine = read_machine()
    if machine.load is not None and machine.load >= BUSY * machine.usable_cores:
        say(f"other processes are at work (load {machine.load:.1f}): what is measured now may not hold when they end")
    spec, preprocess = source.header.spec, source.header.preprocess
    most = min(MOST_JUDGED, max(LEAST_JUDGED, JUDGED_MACS // spec.macs(preprocess.size)))
    pictures = read_tuning_pictures(source.header, data, calibrate, most=LEAST_JUDGED if quick else most)
    for line in pictures.about:
        say(line)
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        trial = _Trial(source, machine, Path(folder), say)
        allowed, guard, judge = _judge(trial, pictures, max_top1_loss)
        goals: tuple[Goal, ...] = get_args(Goal) if goal == "both" else (goal,)
        kept = _kept(trial, [each for each in get_args(Goal) if each not in goals], judge, len(pictures.judged))
        pixels = np.resize(pictures.judged, (max(BATCHES), *pictures.judged.shape[1:]))
        rows = [row for each in goals for row in _measure(trial, each, allowed, pixels, rounds=2 if quick else ROUNDS)]
        best = {each: max((row for row in rows if row.goal == each), key=_finished) for each in goals}
        before = {each: dict(row) | {"graph": _own(row["graph"], place)} for each, row in kept.items()}
        graph = _placed(trial.int8, place) if "int8" in allowed else None
        found: dict[Goal, Mapping[str, Any]] = {each: row.to_dict() | {"graph": graph} for each, row in best.items()}
        table = [row.to_dict() for row in sorted(rows, key=lambda row: (row.goal, -row.rate))]
        table += [row for one in before.values() for row in one.pop("table")]
        tuned = Tuned(
            fingerprint=source.fingerprint,
            machine=asdict(machine) | {"instructions": list(machine.instructions)},
            goals=before | found,
            guard=guard,
            table=table,
        )
        tuned.write(source)
        _clear(place, tuned)
    return tuned


def _finished(row: _Row) -> tuple[int, float]:
    """A choice that was dropped early has fewer rounds, and can't win by a lucky one."""
    return len(row.rates), row.rate


class _Trial:
    """A model on this machine, its backends opened when they are needed."""

    def __init__(self, source: Source, machine: Machine, folder: Path, say: Say) -> None:
        self.source, self.machine, self.say = source, machine, say
        self.int8 = folder / graph_name("openvino", "int8", "logits")
        self._model: Model | None = None
        self._opened: dict[Choice, Backend] = {}

    def graph(self, backend: BackendName) -> Path:
        """The graph in float32."""
        return served_graph(self.source, backend=backend)

    def open(self, choice: Choice) -> Backend:
        """One backend serves batches of any size, but for what is compiled for one."""
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
        """Give the memory of all backends back."""
        self._opened.clear()


def _kept(trial: _Trial, goals: Sequence[Goal], judge: "_Judge", images: int) -> dict[Goal, dict[str, Any]]:
    """What was found for `goals` before, and still holds: rows of tune.json, each with its guard, graph and table.

    "graph" is then a path. A goal keeps what was asked for it: the pictures and the loss of the run that found it. But
    pictures that are not fewer than those have the last word on the same graph.
    """
    if not goals or not (found := find_tuned(trial.source, warn=False)):
        return {}
    tuned, place = found
    rows: dict[Goal, dict[str, Any]] = {}
    for goal in goals:
        row = dict(tuned.goals.get(goal, {}))
        choice = tuned.choice(goal) if row else None
        if not choice:
            continue
        if not tuned.fits(trial.machine):
            trial.say(f"{goal}: what was found on another machine is dropped; --goal both measures it here")
            continue
        own = replace(tuned, goals={goal: row}).graphs(goal)
        graph = next((place.folder / name for name in own if (place.folder / name).is_file()), None)
        guard = row.get("guard", tuned.guard)
        if choice.precision == "int8" and not graph:
            trial.say(f"{goal}: {choice} is dropped, as its graph is gone; --goal both measures it anew")
            continue
        if choice.precision != "float32" and images >= guard.get("float32", {}).get("images", 0):
            verdict = judge(choice.precision, graph, guard.get("max_top1_loss", 0.0))
            if not verdict.passes:
                trial.say(f"{goal}: {choice} is dropped: {verdict}; --goal both measures it anew")
                continue
        trial.say(f"{goal}: {choice} is kept, as it was found before")
        table = [line for line in tuned.table if line.get("goal") == goal]
        rows[goal] = row | {"guard": guard, "graph": graph, "table": table}
    return rows


def _own(graph: Path | None, place: Place) -> str | None:
    """The name in `place` of a graph that was kept before; one that lies elsewhere is copied."""
    if graph is None:
        return None
    if graph.parent == place.folder:
        return graph.name
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        for file in (graph, graph.with_suffix(".bin")):
            copy(file, folder)
        return _placed(Path(folder, graph.name), place)


def _judge(
    trial: _Trial, pictures: TuningPictures, max_top1_loss: float
) -> tuple[list[Precision], dict[str, Any], "_Judge"]:
    """The precisions that may be chosen, what is said of them in tune.json, and what judges others by the pictures."""
    backend: BackendName = "openvino" if "openvino" in available() else "torch"
    batches = np.array_split(pictures.judged, -(-len(pictures.judged) // FIRST_BATCH))

    def logits(precision: Precision, graph: Path | None = None) -> NDArray[np.float32]:
        choice = Choice(backend, precision, batch_size=FIRST_BATCH)
        opened = open_backend(choice, graph) if graph else trial.open(choice)
        return np.concatenate(list(opened.stream(batches)))

    guard = AccuracyCheck.of(logits("float32"), pictures.labels, max_top1_loss=max_top1_loss)
    if pictures.labels is not None and guard.labels is None:
        trial.say("the labels are not what the network tells apart, so agreement with float32 counts instead")
    before = guard.judge(guard.reference)
    allowed: list[Precision] = ["float32"]
    about = {"max_top1_loss": max_top1_loss, "pictures": list(pictures.about), "float32": before.to_dict()}
    if before.top1_error_percent is not None:
        trial.say(f"float32: top-1 error {before.top1_error_percent:.2f} % of {before.images} pictures")
    if set(BFLOAT16) & set(trial.machine.instructions):
        verdict = guard.judge(logits("bfloat16"))
        trial.say(f"bfloat16: {verdict}{_outcome(verdict)}")
        about["bfloat16"] = verdict.to_dict()
        if verdict.passes:
            allowed.append("bfloat16")
    trial.close()
    if made := _integers(trial, pictures, lambda graph: guard.judge(logits("int8", graph))):
        about["int8"] = made.verdict.to_dict() | {
            "layers": made.layers,
            "layers_in_float": list(made.layers_in_float),
            "calibration_images": 0 if pictures.calibration is None else len(pictures.calibration),
        }
        trial.say(f"int8: {len(made.layers_in_float)} of {made.layers} layers are in float{_outcome(made.verdict)}")
        if made.verdict.passes:
            allowed.append("int8")

    def again(precision: Precision, graph: Path | None, loss: float) -> Verdict:
        return replace(guard, max_top1_loss=loss).judge(logits(precision, graph if precision == "int8" else None))

    return allowed, about, again


def _outcome(verdict: Verdict) -> str:
    return "" if verdict.passes else "; too far from float32, so it is left out"


def _integers(trial: _Trial, pictures: TuningPictures, judge: Callable[[Path], Verdict]) -> Quantized | None:
    if "openvino" not in available() or find_spec("nncf") is None:
        trial.say("int8 is left out: it needs openvino and nncf; pip install 'resnetkit[export]'")
        return None
    if pictures.calibration is None:
        trial.say("int8 is left out: it needs pictures of the kind that the model is for; give DATA, or --calibrate")
        return None
    trial.say(f"quantizing with {len(pictures.calibration)} pictures")
    try:
        return quantize(trial.graph("openvino"), trial.int8, pictures.calibration, judge, say=trial.say)
    except ExportError as error:
        trial.say(f"int8 is left out: {error}")
        return None


def _measure(
    trial: _Trial, goal: Goal, allowed: Sequence[Precision], pixels: NDArray[np.uint8], *, rounds: int
) -> list[_Row]:
    """Measure every choice: first one of each kind, then all of those kinds that are not hopeless, in rounds."""
    threads = usable_threads()
    batch = 1 if goal == "latency" else FIRST_BATCH
    kinds = [_Row(goal, Choice(*kind, threads=threads, batch_size=batch)) for kind in _kinds(allowed)]
    dropped = _race(trial, kinds, pixels, keep=HOPELESS, rounds=1)
    others = [
        _Row(goal, choice)
        for kind in kinds
        if kind not in dropped
        for choice in _variants(goal, kind.choice, trial.machine)
    ]
    left = [row for row in kinds if row not in dropped]
    for row in left:
        row.rates.clear()  # measured anew beside the others, in as many rounds
    trial.say(f"{goal}: {len(kinds)} kinds, then {len(left + others)} choices of the {len(left)} fastest")
    _race(trial, left + others, pixels, keep=BEHIND, rounds=rounds)
    trial.close()
    return kinds + others


def _race(trial: _Trial, rows: Sequence[_Row], pixels: NDArray[np.uint8], *, keep: float, rounds: int) -> list[_Row]:
    """Measure `rows` by turns, and drop those that fall behind; returns these. One is always left."""
    running = list(rows)
    for row in running:
        _warm_up(trial.open(row.choice), row, pixels)
    for _ in range(rounds):
        for row in running:
            row.rates.append(_rate(trial.open(row.choice), row, pixels))
        best = max(row.rate for row in running)
        running = [row for row in running if row.rate >= keep * best]
    for row in running:
        trial.say(f"{row.choice}: {row.rate:.1f} images/s")
    return [row for row in rows if row not in running]


def _kinds(allowed: Sequence[Precision]) -> list[tuple[BackendName, Precision]]:
    """Backends and precisions that there are here.

    torch.compile takes up to a minute to be ready, and was never faster than OpenVINO: it is tried without that only.
    """
    there = [name for name in available() if name != "inductor" or "openvino" not in available()]
    return [(name, precision) for name in there for precision in SUPPORTED[name] if precision in allowed]


def _variants(goal: Goal, base: Choice, machine: Machine) -> list[Choice]:
    """`base` with other threads, or with other streams and batches."""
    if goal == "latency":
        # Two hyper-threads share what multiplies, so one thread a core may do better.
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


def _batches(row: _Row, pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    size = row.choice.batch_size
    whole = len(pixels) // size
    return (pixels[place % whole * size :][:size] for place in count())


def _warm_up(backend: Backend, row: _Row, pixels: NDArray[np.uint8]) -> None:
    """Let everything be made that the first batches make: every stream gets one."""
    for _ in backend.stream(islice(_batches(row, pixels), row.choice.streams + 1)):
        pass


def _rate(backend: Backend, row: _Row, pixels: NDArray[np.uint8]) -> float:
    """Images per second: of single calls by their median for latency, of a stream of batches for throughput."""
    batches = _batches(row, pixels)
    if row.goal == "latency":
        took: list[float] = []
        while sum(took) < SECONDS or len(took) < 3:
            began = time.perf_counter()
            backend(next(batches))
            took.append(time.perf_counter() - began)
        return row.choice.batch_size / median(took)
    began = time.perf_counter()

    def until_time_is_up() -> Iterator[NDArray[np.uint8]]:
        for number, batch in enumerate(batches):
            if number >= 2 * row.choice.streams and time.perf_counter() - began > SECONDS:
                return
            yield batch

    images = sum(len(values) for values in backend.stream(until_time_is_up()))
    return images / (time.perf_counter() - began)


def _placed(graph: Path, place: Place) -> str:
    """Move a graph in integers to where tuning is kept, and return its name there, which no other graph has or had.

    Nothing refers to it before tune.json is written, and what that referred to before is still there.
    """
    first = place.folder / graph_name("openvino", "int8", "logits")
    names = (first.with_stem(f"{first.stem}{f'-{number}' if number > 1 else ''}") for number in count(1))
    target = next(name for name in names if not name.exists() and not name.with_suffix(".bin").exists())
    graph.with_suffix(".bin").replace(target.with_suffix(".bin"))
    graph.replace(target)
    return target.name


def _clear(place: Place, tuned: Tuned) -> None:
    """Delete the graphs in integers that `tuned` does not refer to: those of before, or of other weights."""
    first = Path(graph_name("openvino", "int8", "logits"))
    referred = {Path(name).stem for goal in tuned.goals for name in tuned.graphs(goal)}
    for file in place.folder.glob(f"{first.stem}*"):
        if file.stem not in referred and file.suffix in (first.suffix, ".bin"):
            file.unlink(missing_ok=True)
