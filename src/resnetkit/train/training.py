"""A task and a run folder to a finished run: what comes before and after the loop, whatever the task."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.display import line, shell
from resnetkit.errors import ModelFileError, TrainingError, UsageError
from resnetkit.modelfile import inspect, load
from resnetkit.train.checkpoint import RunFolder, State
from resnetkit.train.loop import InterruptedTrainingError, StoppedEvaluationError, Training
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import LENGTHS, Recipe, changed, read_recipe, write_recipe
from resnetkit.train.signals import Signals
from resnetkit.train.task import Measured, Task
from resnetkit.train.timing import fit_to_clock, too_short


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


def train_task(
    task: Task[Any],
    recipe: Recipe,
    run: RunFolder,
    *,
    about: Mapping[str, Any],
    started: float,
    prepare: Callable[[Recipe], Task[Any]] | None = None,
    state: State | None = None,
    remarks: Sequence[str] = (),
    quiet: bool = False,
    fresh: bool = False,
) -> TrainResult:
    """Train from the beginning, or from `state`, to the end, and write the report.

    `about` is kept with the recipe: what the run was on. `prepare` makes the task anew for a recipe with another batch,
    where the clock allows too few steps with this one. `remarks` are said before the first step. `fresh` refuses a
    folder in which there is something. `started` is the time.monotonic() from which the recipe's minutes count.

    Raises InterruptedTrainingError, once the state is saved, where the run is asked to stop; TrainingError where the
    loss is no longer finite or a file can't be written.
    """
    try:
        with run.locked(), Monitor(run, quiet=quiet) as monitor, Signals() as signals:
            if fresh:
                run.refuse_existing()  # another process may have been quicker
            cost = None
            if recipe.minutes and state is None and task.computed_by != "torch.compile":  # which pays in long runs only
                fitted, cost = fit_to_clock(task, recipe, run, monitor, started=started)
                if fitted != recipe and prepare:
                    recipe, task = fitted, prepare(fitted)
            training = Training(task, recipe, run, monitor, started=started, cost=cost)
            if state:
                restore(training, state)
            if not state or read_recipe(run.recipe, Recipe()) != (recipe, about):
                write_recipe(run.recipe, recipe, about)
            if not state:
                monitor.forget_after(0)
                training.save()
            for remark in remarks:
                monitor.say(remark)
            training.go_on(signals)
            return finish(training, signals)
    except KeyboardInterrupt:
        raise InterruptedTrainingError(
            f"stopped at once; what was saved last is whole. Go on with: resnetkit train --resume {shell(run.path)}",
            signal.SIGINT,
        ) from None
    except (OSError, ModelFileError) as error:
        failed = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(failed, OSError):
            raise
        raise TrainingError(
            f"{failed.filename or run.path}: {failed.strerror}. What was saved before is whole; "
            f"make room or mend it, then go on with: resnetkit train --resume {shell(run.path)}"
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
            (unit,) = [name for name, value in recipe.length.items() if value is not None]
            longer = f"resnetkit train --resume {shell(run.path)} --{unit} N"
            on = train_on(recipe, run) if recipe.bound_to_length() else longer
            training.monitor.say(f"{run.path} is finished; train on with: {on}")
        return
    refuse_bound(recipe, run)
    if plan.total_steps <= here.step or (recipe.minutes and 60 * recipe.minutes <= here.seconds):
        raise UsageError(
            f"{run.path} has done {here.step:,} steps in {here.seconds / 60:.1f} minutes already; give a greater length"
        )
    if ended and here.scores and here.step % training.steps_per_evaluation:
        here.scores.pop()  # of an evaluation that the longer run does not have: a plateau is told by them
    here.plan = plan


def refuse_bound(recipe: Recipe, run: RunFolder) -> None:
    """Raise UsageError where a run of another length would have been another one from its beginning."""
    if setting := recipe.bound_to_length():
        raise UsageError(
            f"{run.path} can't get another length: {setting} goes by shares of the whole run. "
            f"Train on from its weights instead: {train_on(recipe, run)}"
        )


def train_on(recipe: Recipe, run: RunFolder, data: str | None = None) -> str:
    """The command that trains on from a run's weights, on its own data unless `data` says others."""
    _, about = read_recipe(run.recipe, Recipe())
    data = data or (shell(about["data"]) if about.get("data") else "DATA")
    return f"resnetkit train {data} --init {shell(run.path)} --model {recipe.model}"


def arithmetic_of(task: Task[Any]) -> dict[str, str]:
    """What of the machine a run's bits depend on."""
    return {"precision": task.precision, "computed_by": task.computed_by, "device": task.device.type}


def finish(training: Training, signals: Signals) -> TrainResult:
    """Draw the curves, write the report on the best model file, and say what the run came to."""
    run, task, here = training.run, training.task, training.position
    training.monitor.doing("drawing the curves")
    training.draw()
    measured = training.best_measured or validate_best(training, signals)
    task.report(run.report, inspect(run.best), measured, curves=run.curves.read_bytes())
    if unreadable := task.unreadable(measured):
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


def validate_best(training: Training, signals: Signals) -> Measured | None:
    """Measure the best model file, where the state does not say how good it is."""
    if not training.task.validation_pictures:
        return None
    net = load(training.run.best).net.to(training.task.device)
    try:
        return training.validate(net, "validating the best model", lambda: signals.received)
    except StoppedEvaluationError:
        raise InterruptedTrainingError(
            f"stopped before the report; the training is done, and {training.run.best} is its model. "
            f"For the report: resnetkit train --resume {shell(training.run.path)}",
            signals.received,
        ) from None
