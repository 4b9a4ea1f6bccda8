"""Find the fastest way to compute a detector on this machine that keeps its average precision."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.detection.samples import Detections
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.detect.evaluate import Finder, decoded
from resnetkit.detect.inference.export import MAX_AP_LOSS, check_ap_loss, open_files, read_pictures
from resnetkit.detect.inference.finders import GraphFinder
from resnetkit.detect.inference.opening import cached_files, open_choice
from resnetkit.detect.inference.quantizing import (
    FEW_JUDGED,
    MOST_JUDGED,
    JudgingPictures,
    PrecisionCheck,
    find_in,
    measured,
    quantize_detector,
    read_judging,
)
from resnetkit.errors import DataError, ExportError, ModelFileError, UsageError
from resnetkit.infer.choice import BFLOAT16, GRAPHS, SUPPORTED, BackendName, Choice, Goal, available, usable_threads
from resnetkit.infer.tuning.record import Tuned, copy_graph, delete_other_graphs, find_tuned, move_graph
from resnetkit.infer.unloaded import UnloadedModel, find_model
from resnetkit.machine import Machine, read_machine
from resnetkit.modelfile import Header

INT8_GRAPH = "int8-proposals.xml"
"""Name of the first int8 graph in a folder."""
TIMED = 8
"""Pictures whose times are measured."""
SECONDS, LEAST_CALLS = 0.5, 3
"""Least duration of one measurement, and its least number of pictures."""
ROUNDS, QUICK_ROUNDS = 5, 2
HOPELESS = 0.8
"""A choice whose rate is below this share of the fastest one's is not measured in the next round."""

Say = Callable[[str], None]


@dataclass
class Timed:
    """One choice, what finds objects with it, and its rates."""

    goal: Goal
    choice: Choice
    find: Finder
    rates: list[float] = field(default_factory=list)
    """Pictures per second in each round."""

    def measure(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        """Add a rate. Graphs are computed beside one thread of torch, as the commands do."""
        torch.set_num_threads(1 if self.choice.backend in GRAPHS else self.choice.threads or usable_threads())
        streams = self.choice.streams
        began, done = time.perf_counter(), 0
        calls: list[float] = []
        endless = (pictures[place % len(pictures)] for place in count())

        def until_time_is_up() -> Any:
            for number, picture in enumerate(endless):
                if number >= max(LEAST_CALLS, 2 * streams) and time.perf_counter() - began > SECONDS:
                    return
                yield picture

        def find(picture: NDArray[np.uint8]) -> Detections:
            started = time.perf_counter()
            found = self.find(picture)
            calls.append(time.perf_counter() - started)
            return found

        for _ in prefetch(find, until_time_is_up(), workers=streams if streams > 1 else 0, ahead=streams):
            done += 1
        taken = time.perf_counter() - began
        self.rates.append(1 / median(calls) if self.goal == "latency" else done / taken)

    @property
    def rank(self) -> tuple[int, float]:
        """The best choice has the highest rank. A choice that was dropped early can't win."""
        return len(self.rates), median(self.rates)

    def to_dict(self) -> dict[str, Any]:
        """Return a row of tune.json."""
        rate = median(self.rates)
        return {
            "goal": self.goal,
            "choice": self.choice.to_dict(),
            "images_per_second": rate,
            "milliseconds": 1000 * self.choice.streams / rate,
            "rounds": len(self.rates),
        }


def tune_detector(
    model: str | Path,
    data: str | None = None,
    *,
    goal: Goal | Literal["both"] = "both",
    max_ap_loss: float = MAX_AP_LOSS,
    calibrate: str | None = None,
    quick: bool = False,
    say: Say = lambda line: None,
) -> Tuned:
    """Measure the ways to compute a detector on this machine; write the fastest that keeps its precision to tune.json.

    DetectorPredictor uses the result. `data` has pictures with boxes. bfloat16 and 8-bit integers (int8) are allowed if
    on the val part of `data` neither AP50 nor COCO's AP is more than `max_ap_loss` percentage points lower than in
    float32; without `data`, they are left out. The train part of `data` or of `calibrate` calibrates int8. A time is
    that from a decoded picture to its boxes. `quick` judges by fewer pictures and measures fewer rounds. With a single
    `goal`, the result for the other goal is kept if it is of this machine and these weights.

    Raises UsageError for wrong use, DataError if pictures can't be read or the result can't be written, ModelFileError
    for a file that is not a detector.
    """
    if goal not in (*get_args(Goal), "both"):
        raise UsageError(f"`goal` is {goal!r}; choose one of {', '.join(get_args(Goal))}, both")
    check_ap_loss(max_ap_loss)
    unloaded, machine = find_model(model), read_machine()
    if unloaded.header.kind != "detector":
        raise ModelFileError(f"{model} contains a {unloaded.header.kind}; give a detector")
    place = unloaded.writable_place()
    pictures = (
        read_judging(unloaded.header, data, calibrate, most=FEW_JUDGED if quick else MOST_JUDGED) if data else None
    )
    goals: tuple[Goal, ...] = get_args(Goal) if goal == "both" else (goal,)
    threads = torch.get_num_threads()
    try:
        with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
            trial = _Trial(unloaded, machine, Path(folder, INT8_GRAPH), say)
            accuracy = trial.judge(pictures, max_ap_loss)
            timed = _timed_pictures(unloaded.header, pictures)
            table = [one for each in goals for one in trial.race(each, timed, QUICK_ROUNDS if quick else ROUNDS)]
            best = {each: max((one for one in table if one.goal == each), key=lambda one: one.rank) for each in goals}
            before = _kept(unloaded, machine, [each for each in get_args(Goal) if each not in goals])
            kept: dict[Goal, Mapping[str, Any]] = {
                each: row | {"graph": copy_graph(row["graph"], place)} for each, row in before.items()
            }
            graph = move_graph(trial.int8, place, name=INT8_GRAPH) if "int8" in trial.precisions else None
            found: dict[Goal, Mapping[str, Any]] = {
                each: one.to_dict() | {"graph": graph} for each, one in best.items()
            }
            tuned = Tuned(
                fingerprint=unloaded.fingerprint,
                machine=asdict(machine) | {"instructions": list(machine.instructions)},
                goals=kept | found,
                accuracy=accuracy,
                table=[one.to_dict() for one in sorted(table, key=lambda one: (one.goal, -one.rank[1]))],
            )
            tuned.write(unloaded)
            delete_other_graphs(place, tuned, name=INT8_GRAPH)
    finally:
        torch.set_num_threads(threads)
    return tuned


class _Trial:
    """A detector that is measured on this machine."""

    def __init__(self, unloaded: UnloadedModel, machine: Machine, int8: Path, say: Say) -> None:
        """`int8` is the path for the graph in 8-bit integers."""
        self.unloaded, self.machine, self.int8, self.say = unloaded, machine, int8, say
        self.precisions = {"float32"}

    def open(self, choice: Choice) -> Finder:
        """Return what finds objects by a choice."""
        if choice.precision != "int8":
            return open_choice(self.unloaded, choice, goal="latency")
        file = cached_files(self.unloaded, "openvino")
        return open_files(file, choice, self.unloaded.header, integers=self.int8)

    def judge(self, pictures: JudgingPictures | None, max_ap_loss: float) -> dict[str, Any]:
        """Find the precisions that keep the average precision; return the field `accuracy` of tune.json."""
        if "openvino" not in available():
            self.say("only float32 is measured: other precisions need openvino; pip install 'resnetkit[export]'")
            return {}
        if pictures is None:
            self.say("only float32 is measured: other precisions are judged by pictures with boxes; give DATA")
            return {}
        self.say(pictures.about)
        torch.set_num_threads(1)
        finder = self.open(Choice("openvino"))
        assert isinstance(finder, GraphFinder)
        reference = find_in(finder, pictures.judged)
        check = PrecisionCheck(pictures.judged, measured(reference, pictures.judged), max_ap_loss)
        before = check.judge(reference)
        self.say(f"float32: {before}")
        about: dict[str, Any] = {
            "max_ap_loss": max_ap_loss,
            "pictures": [pictures.about],
            "float32": before.to_dict(),
        }
        if set(BFLOAT16) & set(self.machine.instructions):
            verdict = check.judge(find_in(self.open(Choice("openvino", "bfloat16")), pictures.judged))
            about["bfloat16"] = verdict.to_dict()
            self.say(f"bfloat16: {verdict}{'' if verdict.passes else '; it is left out'}")
            self.precisions |= {"bfloat16"} if verdict.passes else set()
        if find_spec("nncf") is None:
            self.say("int8 is left out: it needs nncf; pip install 'resnetkit[export]'")
            return about
        try:
            file = cached_files(self.unloaded, "openvino")
            made = quantize_detector(file, self.int8, finder, pictures, check, say=self.say)
        except (ExportError, DataError) as error:
            self.say(f"int8 is left out: {error}")
            return about
        about["int8"] = made.verdict.to_dict() | {
            "layers": made.layers,
            "layers_in_float": list(made.layers_in_float),
            "calibration_images": len(pictures.calibration),
        }
        if made.verdict.passes:
            self.precisions.add("int8")
        else:
            self.say(f"int8 is left out: more than {max_ap_loss:g} points are lost")
        return about

    def race(self, goal: Goal, pictures: Sequence[NDArray[np.uint8]], rounds: int) -> list[Timed]:
        """Measure all choices for a goal in turns, in up to `rounds` rounds; the slow ones are dropped on the way."""
        running = [Timed(goal, choice, self.open(choice)) for choice in self._choices(goal)]
        every = list(running)
        for one in running:
            one.find(pictures[0])  # the first call allocates memory and compiles kernels
        for _ in range(rounds):
            for one in running:
                one.measure(pictures)
            best = max(median(one.rates) for one in running)
            running = [one for one in running if median(one.rates) >= HOPELESS * best]
        for one in sorted(every, key=lambda one: -one.rank[1]):
            self.say(f"{goal}: {one.choice}: {median(one.rates):.2f} images/s")
        return every

    def _choices(self, goal: Goal) -> list[Choice]:
        threads = usable_threads()
        kinds: list[tuple[BackendName, Any]] = [
            (name, precision)
            for name in available()
            if name != "inductor"
            for precision in SUPPORTED[name]
            if precision in self.precisions and (name in GRAPHS or precision == "float32")
        ]
        choices = [Choice(*kind, threads=threads) for kind in kinds]
        if goal == "latency":
            # Two hyper-threads share the multiplying units of a core, so one thread for each core may be faster.
            physical = max(1, threads * self.machine.physical_cores // self.machine.cores)
            fewer = [replace(one, threads=physical) for one in choices if one.backend in GRAPHS and physical < threads]
            return choices + fewer
        streams = sorted({-(-threads // 4), -(-threads // 2), threads} - {1})
        return choices + [replace(one, streams=n) for one in choices if one.backend in GRAPHS for n in streams]


def _kept(unloaded: UnloadedModel, machine: Machine, goals: Sequence[Goal]) -> dict[Goal, dict[str, Any]]:
    """Return the rows of an earlier tune.json for `goals` that still hold, with the path of their int8 graph."""
    if not goals or not (found := find_tuned(unloaded, warn=False)) or not found[0].fits(machine):
        return {}
    tuned, place = found
    rows: dict[Goal, dict[str, Any]] = {}
    for goal in goals:
        row = dict(tuned.goals.get(goal, {}))
        graph = place.folder / row["graph"] if row.get("graph") else None
        if row and (graph is None or graph.is_file()):
            rows[goal] = row | {"graph": graph, "accuracy": row.get("accuracy", tuned.accuracy)}
    return rows


def _timed_pictures(header: Header, pictures: JudgingPictures | None) -> list[NDArray[np.uint8]]:
    """Return up to TIMED pictures; without DATA, one of the package in the size of most training pictures."""
    if pictures is not None:
        read = prefetch(decoded, pictures.judged.paths[:TIMED], workers=0, ahead=1)
        if found := [pixels for pixels in read if not isinstance(pixels, Failure)]:
            return found
    shorter = int(header.data.get("shorter_side", header.preprocess.size))
    return [np.array(Image.fromarray(read_pictures(None)[0]).resize((4 * shorter // 3, shorter)))]
