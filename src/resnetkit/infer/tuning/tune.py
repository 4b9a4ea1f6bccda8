"""Find the fastest way to compute a model on this machine that keeps the model's accuracy."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import ExportError, UsageError
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import BFLOAT16, Choice, Goal, Precision, available
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss, unseen_loss
from resnetkit.infer.quantizing.calibration import TuningPictures, read_tuning_pictures
from resnetkit.infer.quantizing.quantize import Quantized, quantize, quantize_for_speed
from resnetkit.infer.tuning.earlier import Judge, still_valid
from resnetkit.infer.tuning.measurement import BATCHES, FIRST_BATCH, Say, Trial, measure, slower_int8
from resnetkit.infer.tuning.record import Tuned, copy_graph, delete_other_graphs, move_graph
from resnetkit.infer.unloaded import find_model
from resnetkit.machine import read_machine

JUDGED_MACS = 10**12
"""Most multiply-adds for predicting all pictures that judge: half a minute in float32 on two cores."""
LEAST_JUDGED, MOST_JUDGED = 300, 10_000
"""Fewest and most pictures that judge the accuracy."""
ROUNDS = 5
"""Most measurements of each choice. Their median counts."""
SECONDS_OF_NNCF, SECONDS_OF_KINDS, BATCHES_OF_KINDS = 15, 20, 6
"""For the time that tuning is expected to take: seconds for quantizing without the pictures, and for a goal: seconds
for the small measurements, and batches of FIRST_BATCH pictures in float32 that take as long as the large ones."""
BUSY = 0.5
"""Load of the machine, as a share of the usable cores, from which other processes disturb the measurements."""


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
    """Measure the ways to compute a model on this machine; write the fastest that keeps the accuracy to tune.json.

    `model` is a model file, a run folder, NAME:WEIGHTS or hf:OWNER/NAME. Predictor uses the result for it. `data` is
    cifar10, cifar100, a folder or a CSV file. A precision is allowed if, by what its pictures show, the top-1 accuracy
    on other pictures is at most `max_top1_loss` percentage points (0 to 100) lower than in float32: see
    accuracy.AccuracyCheck. 8-bit integers (int8) need `data`, or pictures to calibrate with in `calibrate`. Without
    both, bfloat16 is judged by 16 pictures that come with the package. A precision that is slower than float32 in a
    first trial is left out. `quick` judges by fewer pictures and measures fewer rounds. `say` is called with a line of
    text for every step, at first with the time that tuning is expected to take: for a ResNet-50, one to two minutes.

    The files of earlier runs are not changed until everything is measured. With a single `goal`, the result for the
    other goal is kept with its graph if it was measured on this machine with these weights, and if it still keeps the
    accuracy that its run required. Its accuracy is judged again on the pictures of this run, unless these are fewer.

    Raises UsageError for wrong use, DataError if pictures can't be read or the result can't be written, ModelFileError
    for a model that can't be read.
    """
    if goal not in (*get_args(Goal), "both"):
        raise UsageError(f"`goal` is {goal!r}; choose one of {', '.join(get_args(Goal))}, both")
    check_loss(max_top1_loss)
    began = time.monotonic()
    unloaded = find_model(model)
    place = unloaded.writable_place()
    machine = read_machine()
    if machine.load is not None and machine.load >= BUSY * machine.usable_cores:
        say(f"other processes are running (load {machine.load:.1f}); without them, the rates may differ")
    spec, preprocess = unloaded.header.spec, unloaded.header.preprocess
    most = min(MOST_JUDGED, max(LEAST_JUDGED, JUDGED_MACS // spec.macs(preprocess.size)))
    pictures = read_tuning_pictures(unloaded.header, data, calibrate, most=LEAST_JUDGED if quick else most)
    for line in pictures.about:
        say(line)
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        trial = Trial(unloaded, machine, Path(folder), say)
        goals: tuple[Goal, ...] = get_args(Goal) if goal == "both" else (goal,)
        say(f"expected to take {_duration(_expected_seconds(trial, pictures, goals))}")
        pixels = np.resize(pictures.judged, (max(BATCHES), *pictures.judged.shape[1:]))
        allowed, accuracy, judge = _allowed_precisions(trial, pictures, max_top1_loss, goals, pixels)
        kept = still_valid(trial, [each for each in get_args(Goal) if each not in goals], judge, len(pictures.judged))
        rounds = 2 if quick else ROUNDS
        measured = [one for each in goals for one in measure(trial, each, allowed, pixels, rounds=rounds)]
        best = {each: max((one for one in measured if one.goal == each), key=lambda one: one.rank) for each in goals}
        before = {each: dict(row) | {"graph": copy_graph(row["graph"], place)} for each, row in kept.items()}
        graph = move_graph(trial.int8, place) if "int8" in allowed else None
        found: dict[Goal, Mapping[str, Any]] = {each: one.to_dict() | {"graph": graph} for each, one in best.items()}
        table = [one.to_dict() for one in sorted(measured, key=lambda one: (one.goal, -one.rate))]
        table += [row for one in before.values() for row in one.pop("table")]
        tuned = Tuned(
            fingerprint=unloaded.fingerprint,
            machine=asdict(machine) | {"instructions": list(machine.instructions)},
            goals=before | found,
            accuracy=accuracy,
            table=table,
        )
        tuned.write(unloaded)
        delete_other_graphs(place, tuned)
    say(f"took {_duration(time.monotonic() - began)}")
    return tuned


def _expected_seconds(trial: Trial, pictures: TuningPictures, goals: Sequence[Goal]) -> float:
    """Return about how long tuning takes from here, from the time of one picture in float32."""
    calibrating = (
        0
        if pictures.calibration is None
        else SECONDS_OF_NNCF + 2 * len(pictures.calibration) * trial.seconds_per_picture
    )
    judging = 2 * len(pictures.judged) * trial.seconds_per_picture
    measuring = len(goals) * (SECONDS_OF_KINDS + BATCHES_OF_KINDS * FIRST_BATCH * trial.seconds_per_picture)
    return calibrating + judging + measuring


def _duration(seconds: float) -> str:
    return f"about {max(5, round(seconds / 5) * 5)} seconds" if seconds < 100 else f"about {seconds / 60:.1f} minutes"


def _allowed_precisions(
    trial: Trial,
    pictures: TuningPictures,
    max_top1_loss: float,
    goals: Sequence[Goal],
    pixels: NDArray[np.uint8],
) -> tuple[list[Precision], dict[str, Any], Judge]:
    """Return the precisions that keep the accuracy, the field `accuracy` of tune.json, and a function that judges."""
    batches = np.array_split(pictures.judged, -(-len(pictures.judged) // FIRST_BATCH))
    multilabel = trial.unloaded.header.multilabel

    def logits(precision: Precision, graph: Path | None = None) -> NDArray[np.float32]:
        choice = Choice(trial.backend, precision, batch_size=FIRST_BATCH)
        opened = open_backend(choice, graph) if graph else trial.open(choice)
        return np.concatenate(list(opened.stream(batches)))

    check = AccuracyCheck.of(logits("float32"), None if multilabel else pictures.labels, max_top1_loss=max_top1_loss)
    if pictures.labels is not None and check.labels is None:
        trial.say("the labels seem to belong to other classes, so agreement with float32 is judged instead")
    before = check.judge(check.reference)
    allowed: list[Precision] = ["float32"]
    about = {"max_top1_loss": max_top1_loss, "pictures": list(pictures.about), "float32": before.to_dict()}
    if multilabel:
        trial.say("bfloat16 and int8 are left out: what they cost is judged for models with one class for a picture")
        return allowed, about, lambda precision, graph, loss: before
    if before.top1_error_percent is not None:
        trial.say(f"float32: top-1 error {before.top1_error_percent:.2f} % of {before.images} pictures")
    trial.say(
        f"counting errors on {before.images} pictures can't exclude a loss of {unseen_loss(before.images):.2g} points, "
        "so the change of the probabilities judges, too"
    )
    if set(BFLOAT16) & set(trial.machine.instructions):
        verdict = check.judge(logits("bfloat16"))
        trial.say(f"bfloat16: {verdict}{_outcome(verdict, max_top1_loss)}")
        about["bfloat16"] = verdict.to_dict()
        if verdict.passes:
            allowed.append("bfloat16")
    trial.close()
    if made := _quantized(
        trial,
        pictures,
        lambda graph: check.judge(logits("int8", graph)),
        is_slow=lambda: slower_int8(trial, goals, allowed, pixels),
    ):
        about["int8"] = made.verdict.to_dict() | {
            "layers": made.layers,
            "layers_in_float": list(made.layers_in_float),
            "calibration_images": 0 if pictures.calibration is None else len(pictures.calibration),
        }
        outcome = _outcome(made.verdict, max_top1_loss)
        trial.say(f"int8: {len(made.layers_in_float)} of {made.layers} layers are in float{outcome}")
        if made.verdict.passes:
            allowed.append("int8")

    def judge(precision: Precision, graph: Path | None, loss: float) -> Verdict:
        return replace(check, max_top1_loss=loss).judge(logits(precision, graph if precision == "int8" else None))

    return allowed, about, judge


def _outcome(verdict: Verdict, max_top1_loss: float) -> str:
    if verdict.passes:
        return ""
    if verdict.expected_loss <= max_top1_loss < verdict.highest_loss:
        return f"; so few pictures can't show that it loses at most {max_top1_loss:g} points, so it is left out"
    return "; it loses too much accuracy, so it is left out"


def _quantized(
    trial: Trial,
    pictures: TuningPictures,
    judge: Callable[[Path], Verdict],
    *,
    is_slow: Callable[[], str | None],
) -> Quantized[Verdict] | None:
    """Make the int8 graph at `trial.int8`. If it can't be made, or can't win, say the reason and return None.

    `is_slow` returns why the graph there can't win, or None. Its speed is measured first, as this takes least time.
    """
    if "openvino" not in available() or find_spec("nncf") is None:
        trial.say("int8 is left out: it needs openvino and nncf; pip install 'resnetkit[export]'")
        return None
    if pictures.calibration is None:
        trial.say("int8 is left out: it needs pictures to calibrate with, like those to be predicted; give DATA")
        return None
    try:
        quantize_for_speed(trial.graph("openvino"), trial.int8, pictures.calibration[:1])
        if why := is_slow():
            trial.say(f"int8 is left out: {why}")
            return None
        trial.say(f"quantizing with {len(pictures.calibration)} pictures")
        return quantize(trial.graph("openvino"), trial.int8, pictures.calibration, judge, say=trial.say)
    except ExportError as error:
        trial.say(f"int8 is left out: {error}")
        return None
