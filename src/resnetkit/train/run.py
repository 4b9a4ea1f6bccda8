"""Starting a run and going on with one: what comes before and after the loop."""

import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from resnetkit import __version__, modelfile
from resnetkit.data.dataset import open_read
from resnetkit.data.published.cifar import CIFARS
from resnetkit.data.reading import NOTHING as NOTHING_SAID
from resnetkit.data.reading import Reading, reading_of
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import line
from resnetkit.errors import DataError, ModelFileError, TrainingError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.report import write_report
from resnetkit.files import expanded
from resnetkit.train.checkpoint import RunFolder, State, load_state
from resnetkit.train.effects import check_effects, effective_fields
from resnetkit.train.loop import InterruptedTrainingError, Training
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import LENGTHS, Recipe, changed, read_recipe, write_recipe
from resnetkit.train.signals import Signals
from resnetkit.train.task import Task, prepare
from resnetkit.train.timing import fit_to_clock, too_short

MOST_NAMED = 10  # files that are left out, named one by one
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    run: Path
    model: Path
    """The model file to use: the lowest validation error, or the last one where nothing was validated."""
    best: dict[str, Any]
    """Step, epoch and errors of that model."""
    images_per_second: float
    """Pictures trained on per second of training, evaluations not counted."""
    seconds: float
    """Wall-clock time of the run in all."""

    def __repr__(self) -> str:
        error = self.best.get("error_percent")
        measured = "not validated" if error is None else f"validation error {error:.2f} %"
        return line(type(self), measured, f"{self.seconds:,.0f} seconds", str(self.model))


@contextmanager
def _process_kept() -> Iterator[None]:
    """Bring torch's threads and random numbers, which a run sets for the whole process, back to what they were."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def train(
    recipe: Recipe, data: str | Path | Dataset, *, out: str | Path | None = None, quiet: bool = False
) -> TrainResult:
    """Train as `recipe` says on `data` (cifar10, cifar100, a folder, a CSV file, or a Dataset) and leave a run folder.

    `out` is the run folder, by default runs/<model>-<data>-<time>. Raises InterruptedTrainingError, once the state is
    saved, after a SIGINT, SIGTERM or SIGHUP, or where nobody reads any more what it says on standard error;
    TrainingError when the loss is no longer finite or a file can't be written; UsageError for what is no recipe or no
    data.
    """
    return start(recipe, data, out=out, quiet=quiet)


@_process_kept()
def start(
    recipe: Recipe,
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    asked: Mapping[str, str] = NOTHING,
    began: float | None = None,
    reading: Reading = NOTHING_SAID,
) -> TrainResult:
    """`train` for the command line: `asked` says where a person asked for which field.

    One without use is refused, or named (see `check_effects`). `reading` says how the data is laid out. `began` is the
    time.monotonic() from which the recipe's minutes count, by default now.
    """
    started = time.monotonic() if began is None else began
    if not isinstance(recipe, Recipe):
        first = repr(recipe) if isinstance(recipe, str) else f"a {type(recipe).__name__}"
        raise UsageError(f"train takes a Recipe first and then the data, not {first}; RECIPES has some by name")
    run = RunFolder(_path(out, "out", "a path")) if out else None
    if run:
        run.refuse_existing()
    reading = reading.settled()
    dataset = open_for(recipe, data, reading)
    remarks = check_effects(recipe, dataset, asked)
    task = prepare(recipe, dataset)
    about = {"version": __version__, **arithmetic_of(task), **pictures_of(dataset), "data": _place(data)}
    about |= {"read_as": reading.given()} if reading.given() else {}
    if run:
        run.create()
    else:
        run = default_folder(recipe, dataset.name).create_beside()
    return _run(
        task,
        recipe,
        run,
        dataset=dataset,
        about=about,
        state=None,
        fresh=True,
        remarks=remarks,
        started=started,
        quiet=quiet,
    )


@_process_kept()
def resume(
    run_folder: str | Path,
    data: str | Path | Dataset | None = None,
    *,
    epochs: float | None = None,
    iterations: int | None = None,
    minutes: float | None = None,
    allow_other_arithmetic: bool = False,
    quiet: bool = False,
    reading: Reading | None = None,
) -> TrainResult:
    """Go on with a run that was stopped, from its last checkpoint, to the same weights as if it never had been.

    `data` is needed where a run was started on a Dataset, or where its pictures have moved; they must be the same.
    `epochs`, `iterations` or `minutes` is a new length, for the whole run, where nothing in its recipe goes by shares
    of it; the weights are those of a run that had this length from the start. `allow_other_arithmetic` goes on where
    the network is computed in another way than until now, as without the kernels: to other bits. `reading` says how
    the data is laid out, by default as it was at the start.
    Raises as `train` does.
    """
    started = time.monotonic()
    run = RunFolder(_path(run_folder, "run_folder", "a path"))
    if not run.recipe.is_file():
        raise TrainingError(f"{run.path} is not a run folder (no recipe.yaml). Start a run with: resnetkit train DATA")
    recipe, about = read_recipe(run.recipe, Recipe())
    lengths = {"epochs": epochs, "iterations": iterations, "minutes": minutes}
    if (longer := recipe.replace(**lengths)) != recipe:
        _refuse_bound(recipe, run)
    data = data if data is not None else about.get("data")
    if data is None:
        raise TrainingError(f"{run.recipe} does not say what data the run was on; give it to resnetkit.resume, too")
    state = load_state(run.state) if run.state.is_file() else None
    reading = (reading or reading_of(about.get("read_as") or {})).settled()
    try:
        dataset = open_for(recipe, data, reading)
    except DataError as error:
        if data != about.get("data"):
            raise
        raise DataError(f"{error}. Where they have moved: resnetkit train --resume {run.path} DATA") from error
    _refuse_other_pictures(run, recipe, about, dataset)
    task = prepare(longer, dataset, state.header if state else None)
    remarks: list[str] = []
    now = arithmetic_of(task)
    if other := {name: value for name, value in now.items() if about.get(name, value) != value}:
        named = " and ".join(f"its {n.replace('_', ' ')} was {about[n]} and is {v} now" for n, v in other.items())
        if not allow_other_arithmetic:
            raise TrainingError(
                f"{run.path} can't go on to the same bits: {named}. Go on on a machine like the first one, or to other "
                f"bits with: resnetkit train --resume {run.path} --allow-other-arithmetic"
            )
        remarks.append(f"other arithmetic: {named}; the bits differ from those of a run that went on as it began")
        before = {name: about[name] for name in other} | {"until_step": state.position.step if state else 0}
        about |= now | {"earlier_arithmetic": [*about.get("earlier_arithmetic", []), before]}
    return _run(
        task, longer, run, dataset=dataset, about=about, state=state, remarks=remarks, started=started, quiet=quiet
    )


def _refuse_bound(recipe: Recipe, run: RunFolder) -> None:
    """Raise UsageError where a run of another length would have been another one from its beginning."""
    if setting := recipe.bound_to_length():
        raise UsageError(
            f"{run.path} can't get another length: {setting} goes by shares of the whole run. "
            f"Train on from its weights instead: {_anew(recipe, run)}"
        )


def _refuse_other_pictures(run: RunFolder, recipe: Recipe, about: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise TrainingError where the pictures are not those of the run's start, as far as that is recorded."""
    present = pictures_of(dataset)
    for part, name, samples in (
        ("training", "fingerprint", dataset.train),
        ("validation", "validation_fingerprint", dataset.val),
    ):
        if about.get(name, present[name]) != present[name]:
            raise TrainingError(
                f"{run.path} can't go on: its {part} pictures (fingerprint {about[name]}) are not those of "
                f"{dataset.name} ({len(samples or ()):,} of {len(dataset.classes)} classes, fingerprint "
                f"{present[name]}). Give the same pictures, or start anew: {_anew(recipe, run, 'DATA')}"
            )


def _anew(recipe: Recipe, run: RunFolder, data: str | None = None) -> str:
    """The command that trains on from a run's weights, on its own data unless `data` says others."""
    _, about = read_recipe(run.recipe, Recipe())
    data = data or (shlex.quote(about["data"]) if about.get("data") else "DATA")
    return f"resnetkit train {data} --init {shlex.quote(str(run.path))} --model {recipe.model}"


def default_folder(recipe: Recipe, data: str) -> RunFolder:
    """runs/<model>-<data>-<time>."""
    model = recipe.model.replace(",", "-").replace("=", "")
    return RunFolder(Path("runs") / f"{model}-{expanded(data).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}")


def open_for(recipe: Recipe, data: str | Path | Dataset, reading: Reading = NOTHING_SAID) -> Dataset:
    """Open the data as the recipe divides it."""
    if isinstance(data, Dataset):
        return data
    _path(data, "data", f"{', '.join(CIFARS)}, a folder, a .csv file or a Dataset")
    return open_read(
        str(data),
        reading,
        train_split=recipe.train_split,
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
        strict=recipe.strict,
    )


def _path(given: object, name: str, wanted: str) -> Path:
    if not isinstance(given, str | Path):
        raise UsageError(f"{name} is {given!r:.50}; give {wanted}")
    return expanded(given)


def _place(data: str | Path | Dataset) -> str | None:
    """Where the pictures are, for the next process: None for a Dataset, which is in memory."""
    if isinstance(data, Dataset):
        return None
    if str(data) in CIFARS and not (isinstance(data, Path) and data.exists()):
        return str(data)
    return str(expanded(data).resolve())


def _run(
    task: Task,
    recipe: Recipe,
    run: RunFolder,
    *,
    dataset: Dataset,
    about: Mapping[str, Any],
    state: State | None,
    remarks: Sequence[str],
    started: float,
    quiet: bool,
    fresh: bool = False,
) -> TrainResult:
    try:
        with run.locked(), Monitor(run, quiet=quiet) as monitor, Signals() as signals:
            if fresh:
                run.refuse_existing()  # another process may have been quicker
            cost = None
            if recipe.minutes and state is None and task.computed_by != "torch.compile":  # which pays in long runs only
                fitted, cost = fit_to_clock(task, recipe, run, monitor, started=started)
                if fitted != recipe:
                    recipe, task = fitted, prepare(fitted, dataset)
            training = Training(task, recipe, run, monitor, started=started, cost=cost)
            if state:
                restore(training, state)
            if not state or read_recipe(run.recipe, Recipe()) != (recipe, about):
                write_recipe(run.recipe, recipe, about)
            if not state:
                monitor.forget_after(0)
                training.save()
            for remark in (*remarks, *dataset.notes):
                monitor.say(remark)
            for path, reason in task.skipped[:MOST_NAMED]:
                monitor.say(f"left out: {path}: {reason}")
            if more := len(task.skipped[MOST_NAMED:]):
                monitor.say(f"left out: {more} more files; resnetkit data check names them")
            training.go_on(signals)
            return finish(training, signals)
    except KeyboardInterrupt:
        raise InterruptedTrainingError(
            f"stopped at once; what was saved last is whole. Go on with: resnetkit train --resume {run.path}",
            signal.SIGINT,
        ) from None
    except (OSError, ModelFileError) as error:
        failed = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(failed, OSError):
            raise
        raise TrainingError(
            f"{failed.filename or run.path}: {failed.strerror}. What was saved before is whole; "
            f"make room or mend it, then go on with: resnetkit train --resume {run.path}"
        ) from error


def restore(training: Training, state: State) -> None:
    """Go back to a saved state; where the recipe has another length by now, to a run that always had it."""
    recipe, run, plan = training.recipe, training.run, training.position.plan
    training.restore(state)
    here = training.position
    ended = here.step >= here.plan.total_steps
    then = changed(Recipe(), {name: state.header.recipe.get(name) for name in LENGTHS}, source=str(run.state))
    if then.length == recipe.length:
        if ended:
            (unit,) = [f"--{name}" for name, value in recipe.length.items() if value is not None]
            on = _anew(recipe, run) if recipe.bound_to_length() else f"resnetkit train --resume {run.path} {unit} N"
            training.monitor.say(f"{run.path} is finished; train on with: {on}")
        return
    _refuse_bound(recipe, run)
    if plan.total_steps <= here.step or (recipe.minutes and 60 * recipe.minutes <= here.seconds):
        raise UsageError(
            f"{run.path} has done {here.step:,} steps in {here.seconds / 60:.1f} minutes already; give a greater length"
        )
    if ended and here.errors and here.step % training.steps_per_evaluation:
        here.errors.pop()  # of an evaluation that the longer run does not have: a plateau is told by them
    here.plan = plan


def arithmetic_of(task: Task) -> dict[str, str]:
    """What of the machine a run's bits depend on."""
    return {"precision": task.precision, "computed_by": task.computed_by, "device": task.device.type}


def pictures_of(dataset: Dataset) -> dict[str, Any]:
    """Which pictures a run sees, so that it goes on with the same ones."""
    train, val = dataset.train, dataset.val
    return {
        "name": dataset.name,
        "fingerprint": train.fingerprint() if train is not None else None,
        "validation_fingerprint": val.fingerprint() if val is not None and len(val) else None,
        "split": dict(dataset.split),
    }


def finish(training: Training, signals: Signals) -> TrainResult:
    """Draw the curves, write the report on the best model file, and say what the run came to."""
    run, task, here = training.run, training.task, training.position
    training.monitor.doing("drawing the curves")
    training.draw()
    model = modelfile.load(run.best)
    unreadable = dict(task.loader.unreadable)
    measured = training.best_evaluation
    if task.val is not None and measured is None:  # of a state without it, or older than the file
        measured = evaluate_best(training, model, task.val, signals)
    if measured is not None:
        unreadable |= measured.unreadable
    write_report(
        run.report,
        model.header,
        title=training.title(),
        evaluated=measured,
        recipe=effective_fields(model.header.recipe, model.header.data.get("split", {})),
        on="validation pictures",
        curves=run.curves.read_bytes(),
    )
    if unreadable:
        training.monitor.say(f"{len(unreadable)} pictures could not be read; their names are in {run.log}")
    if warning := too_short(training.recipe, here.step, training.epochs()):
        training.monitor.say(warning)
    return TrainResult(
        run=run.path,
        model=run.best,
        best=here.best,
        images_per_second=here.images / max(here.training_seconds, 1e-9),
        seconds=training.elapsed(),
    )


def evaluate_best(training: Training, model: modelfile.Model, val: Samples, signals: Signals) -> Evaluation:
    """Evaluate the best model file; InterruptedTrainingError where the run is asked to stop meanwhile."""
    seen = training.monitor.doing("validating the best model", len(val), "pictures")

    def advance(count: int) -> None:
        seen(count)
        if signals.received:
            raise InterruptedTrainingError(
                f"stopped before the report; the training is done, and {training.run.best} is its model. "
                f"For the report: resnetkit train --resume {training.run.path}",
                signals.received,
            )

    return evaluate(model, val, workers=training.recipe.workers, device=training.task.device.type, advance=advance)
