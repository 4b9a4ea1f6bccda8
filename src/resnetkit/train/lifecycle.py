"""Train any task in a run folder: restore a state, run the loop, write the report, turn failures into messages."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetkit.display import line, shell
from resnetkit.errors import ModelFileError, TrainingError, UsageError
from resnetkit.train.checkpoint import State
from resnetkit.train.loop import InterruptedTrainingError, StoppedEvaluationError, Training
from resnetkit.train.monitor import Monitor, spoken
from resnetkit.train.recipe import LENGTHS, Recipe, changed, read_recipe, write_recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.signals import Signals
from resnetkit.train.task import Measured, Task
from resnetkit.train.timing import fit_to_clock, too_short

DETECTION = "detection"
"""The entry of recipe.yaml's `run` with the settings of a detector's training; other runs do not have it."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished run."""

    run: Path
    """The run folder."""
    model: Path
    """The model file with the lowest validation error; the last one if there was no validation."""
    best: dict[str, Any]
    """Step, epoch and errors of that model."""
    images_per_second: float
    """Training pictures per second of training, without the time of evaluations."""
    seconds: float
    """Wall-clock time of the whole run."""
    score: str = "error_percent"
    """The name of the value in `best` by which the best model was chosen; lower is better."""
    rungs: tuple[Mapping[str, Any], ...] = ()
    """The rungs of the ladder, in order: rung, seconds, top1_error_percent (None without validation) and kept. Empty
    for a run that trained the whole network at once."""
    measured: Measured | None = field(default=None, repr=False, compare=False)
    """The validation of that model; None without validation pictures."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        values = {name: value for name, value in vars(self).items() if name not in ("score", "measured")}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def __repr__(self) -> str:
        value = self.best.get(self.score)
        measured = "not validated" if value is None else f"validation {spoken({self.score: value}, first=self.score)}"
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
    fitted_before: bool = False,
) -> TrainResult:
    """Train `task` from the beginning, or from `state`, to the end, and write the report.

    `about` describes the run's data and machine; recipe.yaml stores it with the recipe. `prepare` makes the task again
    for a recipe with a smaller batch size, when `minutes` requires one. `remarks` are printed before the first
    step. With `fresh`, a run folder that is not empty is refused. With `fitted_before`, the network knows its classes
    already, so that a few steps are no reason for a warning. `started` is the time.monotonic() from which the
    recipe's minutes count.

    Raises InterruptedTrainingError, after the state is saved, when the run must stop; TrainingError when the loss is no
    longer finite or a file can't be written.
    """
    try:
        with run.locked(), Monitor(run, quiet=quiet) as monitor, Signals() as signals:
            if fresh:
                run.refuse_existing()  # another process may have created files in the meantime
            cost = None
            if recipe.minutes and state is None and task.computed_by != "torch.compile":  # only long runs use that
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
            return finish(training, signals, about, fitted_before=fitted_before)
    except KeyboardInterrupt:
        raise InterruptedTrainingError(
            f"stopped immediately; the last saved state is intact. "
            f"Go on with: resnetkit train --resume {shell(run.path)}",
            signal.SIGINT,
        ) from None
    except (OSError, ModelFileError) as error:
        failed = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(failed, OSError):
            raise
        raise TrainingError(
            f"{failed.filename or run.path}: {failed.strerror}. The last saved state is intact; free space or fix the "
            f"cause, then go on with: resnetkit train --resume {shell(run.path)}"
        ) from error


def restore(training: Training, state: State) -> None:
    """Restore a saved state. If the recipe now has another length, continue with this length.

    If nothing in the recipe depends on the length, the run continues as if it had had this length from the start.
    Otherwise it continues as a run of this length would at this point, and a line says so.

    Raises UsageError when the new length is already over.
    """
    recipe, run, plan = training.recipe, training.run, training.position.plan
    training.restore(state)
    here, ended = training.position, training.ended
    if length_before(state) == recipe.length:
        if here.stopped_early:
            on = train_on(recipe, run)
            training.monitor.say(f"{run.path} is finished: `patience` stopped it. Train on with: {on}")
        elif ended:
            (unit,) = [name for name, value in recipe.length.items() if value is not None]
            longer = f"resnetkit train --resume {shell(run.path)} --{unit} N"
            training.monitor.say(f"{run.path} is finished; train on with: {longer}")
        return
    if here.stopped_early:
        raise UsageError(
            f"{run.path} was stopped by `patience`, as a run of any length would have been. Start a new run from its "
            f"weights instead: {train_on(recipe, run)}"
        )
    if plan.total_steps <= here.step or (recipe.minutes and 60 * recipe.minutes <= here.seconds):
        raise UsageError(
            f"{run.path} has done {here.step:,} steps in {here.seconds / 60:.1f} minutes already; give a greater length"
        )
    setting = recipe.bound_to_length()
    if setting and here.step:
        done = here.seconds / (60 * recipe.minutes) if recipe.minutes else here.step / plan.total_steps
        total = round(here.step / done) if recipe.minutes else plan.total_steps
        plan = here.plan.as_part_of(total, step=here.step, progress=done)
        training.monitor.say(
            f"going on as a run of the new length at {100 * done:.0f} % of it, because {setting} depends on the "
            "length; the weights differ from those of a run that had this length from the start"
        )
    elif ended and here.scores and here.step % training.steps_per_evaluation:
        here.scores.pop()  # the longer run has no evaluation at this step, and the plateau schedule uses all scores
    here.plan = plan


def length_before(state: State) -> dict[str, float | None]:
    """Return the length of a run when its state was saved, as `Recipe.length` does."""
    return changed(Recipe(), {name: state.header.recipe.get(name) for name in LENGTHS}, source=str(state.path)).length


def train_on(recipe: Recipe, run: RunFolder, data: str | None = None) -> str:
    """Return the command that starts a new run from a run's weights, on `data` or else on the same data."""
    _, about = read_recipe(run.recipe, Recipe())
    data = data or (shell(about["data"]) if about.get("data") else "DATA")
    if DETECTION in about:
        return f"resnetkit detect train {data} --init {shell(run.path)} --model {recipe.model}"
    return f"resnetkit train {data} --init {shell(run.path)} --model {recipe.model}"


def arithmetic_of(task: Task[Any]) -> dict[str, str]:
    """Return the settings of the machine that decide a run's weights to the bit."""
    return {"precision": task.precision, "computed_by": task.computed_by, "device": task.device.type}


def finish(
    training: Training, signals: Signals, about: Mapping[str, Any], *, fitted_before: bool = False
) -> TrainResult:
    """Draw the curves, write the report of the best model file, and return the result of the run."""
    run, task, here = training.run, training.task, training.position
    training.monitor.doing("drawing the curves")
    training.draw()
    measured = training.best_measured or validate_best(training, signals)
    task.report(run.report, task.load(run.best), measured, curves=run.curves.read_bytes(), about=about)
    if unreadable := task.unreadable(measured):
        training.monitor.say(f"{len(unreadable)} pictures could not be read; their names are in {run.log}")
    warning = None if fitted_before else too_short(training.recipe, here.step, training.epochs())
    if warning:
        training.monitor.say(warning)
    return TrainResult(
        run=run.path,
        model=run.best,
        best=here.best,
        images_per_second=here.images / max(here.training_seconds, 1e-9),
        seconds=training.elapsed(),
        score=task.score,
        measured=measured,
    )


def validate_best(training: Training, signals: Signals) -> Measured | None:
    """Measure the best model file, when the state contains no validation result of it."""
    if not training.task.validation_pictures:
        return None
    net = training.task.load(training.run.best).net.to(training.task.device)
    try:
        return training.validate(net, "validating the best model", lambda: signals.received)
    except StoppedEvaluationError:
        raise InterruptedTrainingError(
            f"stopped before the report; the training is done, and {training.run.best} is its model. "
            f"To get the report: resnetkit train --resume {shell(training.run.path)}",
            signals.received,
        ) from None
