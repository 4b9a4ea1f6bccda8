"""Find the fastest way to compute a model on this machine, of those that keep its accuracy, by measuring them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import ExportError, UsageError
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import BFLOAT16, BackendName, Choice, Goal, Precision, available
from resnetkit.infer.graphs import Tuned, open_source, writable_place
from resnetkit.infer.measurement import BATCHES, FIRST_BATCH, Say, Trial, measure
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss
from resnetkit.infer.quantizing.pictures import TuningPictures, read_tuning_pictures
from resnetkit.infer.quantizing.quantize import Quantized, quantize
from resnetkit.infer.tuned import Judge, delete_other_graphs, graph_in_place, move_graph, still_valid
from resnetkit.machine import read_machine

JUDGED_MACS = 10**12
"""Multiply-adds that the predictions on the judging pictures may take: half a minute in float32 on two cores."""
LEAST_JUDGED, MOST_JUDGED = 300, 10_000
ROUNDS = 5
BUSY = 0.5


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
    cifar10, cifar100, a folder or a CSV file. A precision is allowed if its top-1 error on pictures of `data` is at
    most `max_top1_loss` percentage points over float32's. Without labels, its best class may differ from float32's on
    at most so many percent of the pictures. 8-bit integers need `data`, or pictures to calibrate with in `calibrate`;
    without either, bfloat16 is judged by the few pictures that come with the package. `quick` judges by fewer pictures
    and measures fewer rounds. `say` gets a line for every step. A ResNet-50 takes one to three minutes.

    What earlier runs kept stays intact until all is measured. With a single `goal`, the choice for the other goal stays
    with its own graph, if it was found on this machine for these weights and is still as accurate as was asked then.
    It is judged again on the pictures of this run, unless these are fewer.

    Raises UsageError for wrong use, DataError for pictures that can't be read or a place that can't be written,
    ModelFileError for a model that can't be read.
    """
    if goal not in (*get_args(Goal), "both"):
        raise UsageError(f"`goal` is {goal!r}; choose one of {', '.join(get_args(Goal))}, both")
    check_loss(max_top1_loss)
    source = open_source(model)
    place = writable_place(source)
    machine = read_machine()
    if machine.load is not None and machine.load >= BUSY * machine.usable_cores:
        say(f"other processes are running (load {machine.load:.1f}): these rates may not hold when they have ended")
    spec, preprocess = source.header.spec, source.header.preprocess
    most = min(MOST_JUDGED, max(LEAST_JUDGED, JUDGED_MACS // spec.macs(preprocess.size)))
    pictures = read_tuning_pictures(source.header, data, calibrate, most=LEAST_JUDGED if quick else most)
    for line in pictures.about:
        say(line)
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        trial = Trial(source, machine, Path(folder), say)
        allowed, accuracy, judge = _allowed_precisions(trial, pictures, max_top1_loss)
        goals: tuple[Goal, ...] = get_args(Goal) if goal == "both" else (goal,)
        kept = still_valid(trial, [each for each in get_args(Goal) if each not in goals], judge, len(pictures.judged))
        pixels = np.resize(pictures.judged, (max(BATCHES), *pictures.judged.shape[1:]))
        rounds = 2 if quick else ROUNDS
        measured = [one for each in goals for one in measure(trial, each, allowed, pixels, rounds=rounds)]
        best = {each: max((one for one in measured if one.goal == each), key=lambda one: one.rank) for each in goals}
        before = {each: dict(row) | {"graph": graph_in_place(row["graph"], place)} for each, row in kept.items()}
        graph = move_graph(trial.int8, place) if "int8" in allowed else None
        found: dict[Goal, Mapping[str, Any]] = {each: one.to_dict() | {"graph": graph} for each, one in best.items()}
        table = [one.to_dict() for one in sorted(measured, key=lambda one: (one.goal, -one.rate))]
        table += [row for one in before.values() for row in one.pop("table")]
        tuned = Tuned(
            fingerprint=source.fingerprint,
            machine=asdict(machine) | {"instructions": list(machine.instructions)},
            goals=before | found,
            accuracy=accuracy,
            table=table,
        )
        tuned.write(source)
        delete_other_graphs(place, tuned)
    return tuned


def _allowed_precisions(
    trial: Trial, pictures: TuningPictures, max_top1_loss: float
) -> tuple[list[Precision], dict[str, Any], Judge]:
    """The precisions that keep the accuracy, what tune.json says of each, and a function that judges others."""
    backend: BackendName = "openvino" if "openvino" in available() else "torch"
    batches = np.array_split(pictures.judged, -(-len(pictures.judged) // FIRST_BATCH))

    def logits(precision: Precision, graph: Path | None = None) -> NDArray[np.float32]:
        choice = Choice(backend, precision, batch_size=FIRST_BATCH)
        opened = open_backend(choice, graph) if graph else trial.open(choice)
        return np.concatenate(list(opened.stream(batches)))

    check = AccuracyCheck.of(logits("float32"), pictures.labels, max_top1_loss=max_top1_loss)
    if pictures.labels is not None and check.labels is None:
        trial.say("the labels seem to belong to other classes, so agreement with float32 counts instead")
    before = check.judge(check.reference)
    allowed: list[Precision] = ["float32"]
    about = {"max_top1_loss": max_top1_loss, "pictures": list(pictures.about), "float32": before.to_dict()}
    if before.top1_error_percent is not None:
        trial.say(f"float32: top-1 error {before.top1_error_percent:.2f} % of {before.images} pictures")
    if set(BFLOAT16) & set(trial.machine.instructions):
        verdict = check.judge(logits("bfloat16"))
        trial.say(f"bfloat16: {verdict}{_outcome(verdict)}")
        about["bfloat16"] = verdict.to_dict()
        if verdict.passes:
            allowed.append("bfloat16")
    trial.close()
    if made := _quantized(trial, pictures, lambda graph: check.judge(logits("int8", graph))):
        about["int8"] = made.verdict.to_dict() | {
            "layers": made.layers,
            "layers_in_float": list(made.layers_in_float),
            "calibration_images": 0 if pictures.calibration is None else len(pictures.calibration),
        }
        trial.say(f"int8: {len(made.layers_in_float)} of {made.layers} layers are in float{_outcome(made.verdict)}")
        if made.verdict.passes:
            allowed.append("int8")

    def judge(precision: Precision, graph: Path | None, loss: float) -> Verdict:
        return replace(check, max_top1_loss=loss).judge(logits(precision, graph if precision == "int8" else None))

    return allowed, about, judge


def _outcome(verdict: Verdict) -> str:
    return "" if verdict.passes else "; too far from float32, so it is left out"


def _quantized(trial: Trial, pictures: TuningPictures, judge: Callable[[Path], Verdict]) -> Quantized | None:
    """Make the graph in 8-bit integers at `trial.int8`; None, with a line that says why, where it can't be made."""
    if "openvino" not in available() or find_spec("nncf") is None:
        trial.say("int8 is left out: it needs openvino and nncf; pip install 'resnetkit[export]'")
        return None
    if pictures.calibration is None:
        trial.say("int8 is left out: it needs pictures like those the model is for; give DATA, or some to calibrate by")
        return None
    trial.say(f"quantizing with {len(pictures.calibration)} pictures")
    try:
        return quantize(trial.graph("openvino"), trial.int8, pictures.calibration, judge, say=trial.say)
    except ExportError as error:
        trial.say(f"int8 is left out: {error}")
        return None
