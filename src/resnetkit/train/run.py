"""Starting a run and going on with one: what comes before and after the loop."""

import signal
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from resnetkit import __version__, modelfile
from resnetkit.data.dataset import open_dataset
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import ModelFileError, TrainingError
from resnetkit.train.checkpoint import RunFolder, State, load_state
from resnetkit.train.evaluate import evaluate
from resnetkit.train.loop import InterruptedTrainingError, Training
from resnetkit.train.metrics import Evaluation
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import Recipe, read_recipe, write_recipe
from resnetkit.train.report import write_report
from resnetkit.train.signals import Signals
from resnetkit.train.task import Task, prepare
from resnetkit.train.timing import fit_to_clock, too_short

MOST_NAMED = 10  # files that are left out, named one by one


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


def train(
    recipe: Recipe,
    data: str | Dataset,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    began: float | None = None,
) -> TrainResult:
    """Train as `recipe` says on `data` (cifar10, cifar100, a folder, a CSV file, or a Dataset) and leave a run folder.

    `out` is the run folder, by default runs/<model>-<data>-<time>; `began` the time.monotonic() from which the recipe's
    minutes count, by default now. Raises InterruptedTrainingError, once the state is
    saved, after a SIGINT, SIGTERM or SIGHUP, or where nobody reads any more what it says on standard error;
    TrainingError when the loss is no longer finite or a file can't be written.
    """
    started = time.monotonic() if began is None else began
    name = data.name if isinstance(data, Dataset) else data
    run = RunFolder(Path(out) if out else default_folder(recipe, name))
    run.refuse_existing()
    dataset = open_for(recipe, data)
    task = prepare(recipe, dataset)
    run.create()
    return _run(task, recipe, run, data=data, dataset=dataset, state=None, started=started, quiet=quiet)


def resume(run_folder: str | Path, data: str | Dataset | None = None, *, quiet: bool = False) -> TrainResult:
    """Go on with a run that was stopped, from its last checkpoint, to the same weights as if it never had been.

    `data` is needed where a run was started on a Dataset, or where its pictures have moved; they must be the same.
    Raises as `train` does.
    """
    started = time.monotonic()
    run = RunFolder(Path(run_folder))
    if not run.recipe.is_file():
        raise TrainingError(f"{run.path} is not a run folder (no recipe.yaml). Start a run with: resnetkit train DATA")
    recipe, about = read_recipe(run.recipe, Recipe())
    data = data or about.get("data")
    if data is None:
        raise TrainingError(f"{run.recipe} does not say what data the run was on; give it to resnetkit.resume, too")
    state = load_state(run.state) if run.state.is_file() else None
    dataset = open_for(recipe, data)
    task = prepare(recipe, dataset, state.header if state else None)
    present = {"fingerprint": task.header.data["fingerprint"]} | how(task)
    for name, now in present.items():
        if about.get(name, now) != now:
            raise TrainingError(
                f"{run.path} can't go on: its {name.replace('_', ' ')} was {about[name]} and is {now} now. "
                "Bring back the same pictures or machine, or start anew with another --out."
            )
    return _run(task, recipe, run, data=data, dataset=dataset, state=state, started=started, quiet=quiet)


def default_folder(recipe: Recipe, data: str) -> Path:
    """runs/<model>-<data>-<time>."""
    model = recipe.model.replace(",", "-").replace("=", "")
    return Path("runs") / f"{model}-{Path(data).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}"


def open_for(recipe: Recipe, data: str | Dataset) -> Dataset:
    """Open the data as the recipe divides it."""
    if isinstance(data, Dataset):
        return data
    return open_dataset(
        data,
        train_split=recipe.train_split,
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
        strict=recipe.strict,
    )


def _run(
    task: Task,
    recipe: Recipe,
    run: RunFolder,
    *,
    data: str | Dataset,
    dataset: Dataset,
    state: State | None,
    started: float,
    quiet: bool,
) -> TrainResult:
    try:
        with run.locked(), Monitor(run, quiet=quiet) as monitor, Signals() as signals:
            cost = None
            if recipe.minutes and state is None and task.computed_by != "torch.compile":  # which pays in long runs only
                fitted, cost = fit_to_clock(task, recipe, run, monitor, started=started)
                if fitted != recipe:
                    recipe, task = fitted, prepare(fitted, dataset)
            training = Training(task, recipe, run, monitor, started=started, cost=cost)
            if state:
                training.restore(state)
            else:
                record_recipe(training, data)
                monitor.forget_after(0)
                training.save()
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


def how(task: Task) -> dict[str, str]:
    """What of the machine a run's bits depend on."""
    return {"precision": task.precision, "computed_by": task.computed_by}


def record_recipe(training: Training, data: str | Dataset) -> None:
    """Write recipe.yaml: the recipe, and what it is run on."""
    about = {"version": __version__, **how(training.task), **training.task.header.data}
    if isinstance(data, Dataset):
        about["data"] = None
    else:
        about["data"] = data if data in ("cifar10", "cifar100") else str(Path(data).resolve())
    write_recipe(training.run.recipe, training.recipe, about)


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
