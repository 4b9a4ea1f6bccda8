"""The only training loop."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnetkit.display import count, shell
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.modelfile import inspect
from resnetkit.train.checkpoint import Position, State, save_state
from resnetkit.train.computing.optim import (
    evaluations_without_better,
    learning_rate,
    make_optimizer,
    moving_average,
    plateaus,
)
from resnetkit.train.divergence import mend
from resnetkit.train.monitor import PERCENT, Monitor, draw_curves, read_metrics, spoken
from resnetkit.train.pace import Cost, Pace, Plan
from resnetkit.train.recipe import Recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.signals import CLOSED_PIPE, Signals
from resnetkit.train.task import Batch, Measured, Task

WARMUP_STEPS = 50  # the training error that ends a warm-up is measured over this many steps
DRAW_EVERY = 30.0  # seconds between two drawings of the curves
SAVE_APART = 10.0  # seconds; after an evaluation, a state is saved if the last one is at least this old


class InterruptedTrainingError(TrainingError):
    """The run was stopped, by a signal or because nobody reads its output."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StoppedEvaluationError(Exception):
    """An evaluation ended early because the run must stop."""


class Training:
    """A run in progress: its task, its optimiser, and its position."""

    def __init__(
        self,
        task: Task[Any],
        recipe: Recipe,
        run: RunFolder,
        monitor: Monitor,
        *,
        started: float,
        cost: Cost | None = None,
    ) -> None:
        """Begin at step 0; `restore` goes to a saved state.

        `started` is the time.monotonic() from which the recipe's minutes count. `cost` holds the times that were
        measured before a run with `minutes`, if they were measured.
        """
        self.task, self.recipe, self.run, self.monitor = task, recipe, run, monitor
        self.optimizer = make_optimizer(task.net, recipe, kernels=task.computed_by == "kernels")
        self.ema = (
            AveragedModel(task.net, multi_avg_fn=moving_average(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        self.parameters = [p for p in task.net.parameters() if p.requires_grad]
        steps_per_epoch = max(1, math.ceil(task.batches_per_epoch / recipe.accumulate))
        self.steps_per_evaluation = max(1, round(recipe.evaluate_every * steps_per_epoch))
        total = recipe.total_steps(task.batches_per_epoch)
        plan = Pace.UNKNOWN if total is None else Plan.of_length(total)
        if recipe.warmup_lr and not task.counts:
            raise UsageError("`warmup_lr` needs a count in training, and this task has none; give `warmup_lr` 0")
        self.position = Position(plan, warming_up=recipe.warmup_lr > 0)
        # An evaluation runs forward only, in float32: about half the cost of training on the same pictures.
        evaluation_share = 0.5 * task.validation_pictures / (recipe.batch_size * recipe.accumulate)
        early_until, early_cost = task.early_steps
        self.pace = (
            Pace(
                recipe.minutes,
                steps_per_evaluation=self.steps_per_evaluation,
                evaluation_share=evaluation_share,
                early_until=early_until,
                early_cost=early_cost,
                step_seconds=cost.step_seconds if cost else 0.0,
            )
            if recipe.minutes
            else None
        )
        if cost:
            self.position.evaluation_seconds = cost.picture_seconds * task.validation_pictures
        self.best_measured: Measured | None = None
        """Validation result of the best model file; None if it is not known."""
        self.lr = recipe.lr
        """Learning rate of the last step."""
        self.row: dict[str, Any] = {}
        self.measured: Measured | None = None
        """Metrics of the last evaluation, and its result; None without a validation."""
        self.started = started
        self.went_on = self.started, 0
        """Time (time.monotonic()) and step at which this process began to train."""
        self.saved_at, self.save_seconds = time.monotonic(), 0.0
        self.drawn_at = -math.inf

    def go_on(self, signals: Signals) -> None:
        """Train from the present position to the end of the plan.

        Raises InterruptedTrainingError, after the state is saved, when `signals` received a signal or standard error is
        closed; TrainingError when the loss or the weights are not finite.
        """
        here = self.position
        self.monitor.say(
            f"{self.recipe.model}: {sum(p.numel() for p in self.task.net.parameters()):,} parameters, "
            f"{self.task.training_pictures:,} training pictures, {self.task.precision} on {self.task.device}, "
            f"{self.task.computed_by}{', recomputing' if self.task.recompute else ''}"
        )
        batches = draw(self.task, here, self.recipe.accumulate, progress=self.progress)
        self.task.train_mode()
        if self.pace and here.plan == Pace.UNKNOWN:
            here.evaluation_seconds += 2 * self.save_seconds
            here.plan = self.pace.begin(elapsed_seconds=self.elapsed(), evaluation_seconds=here.evaluation_seconds)
        self.went_on = time.monotonic(), here.step
        self.monitor.doing("training", None if here.plan == Pace.UNKNOWN else here.plan.total_steps, "steps")

        def asked_to_stop() -> int:
            return signals.received or (CLOSED_PIPE if self.monitor.closed else 0)

        # A run that was stopped during an evaluation, or just before it, continues with this evaluation.
        while here.evaluation_due or not self.ended:
            evaluating = here.evaluation_due
            if evaluating:
                with suppress(StoppedEvaluationError):
                    self.evaluate(asked_to_stop)
            elif not asked_to_stop():
                self.take_step(next(batches))
            evaluated = evaluating and not here.evaluation_due
            done = evaluated and self.ended
            number = asked_to_stop()
            apart = min(SAVE_APART, self.recipe.save_every) if evaluated else self.recipe.save_every
            late = time.monotonic() - self.saved_at >= apart and not here.evaluation_due
            if done or number or late:
                if evaluated:
                    self.write_last()
                self.save()
            if number and not done:
                batches.close()
                of = "" if here.plan == Pace.UNKNOWN else f" of {here.plan.total_steps}"
                raise InterruptedTrainingError(
                    f"stopped after step {here.step}{of}; everything is saved. "
                    f"Go on with: resnetkit train --resume {shell(self.run.path)}",
                    number,
                )
        batches.close()

    def take_step(self, batches: list[Batch]) -> None:
        """Take one step, fit the plan to the clock, set `evaluation_due`, and log."""
        here, tick, self.lr = self.position, time.monotonic(), self.learning_rate()
        self.descend(batches, self.lr)
        took = time.monotonic() - tick
        here.training_seconds += took
        if self.pace:
            self.pace.step(took, here.plan.progress(here.step - 1))
            here.plan = self.pace.fit(
                here.plan,
                here.step,
                elapsed_seconds=self.elapsed(),
                evaluation_seconds=here.evaluation_seconds,
            )
            here.evaluation_due = self.pace.evaluates(here.plan, here.step, evaluation_seconds=here.evaluation_seconds)
        else:
            here.evaluation_due = here.step % self.steps_per_evaluation == 0 or here.step >= here.plan.total_steps
        self.show()
        if here.warming_up:
            self.reconsider_warmup()
        # The first step and each evaluation are logged too, so that short runs have curves.
        if here.evaluation_due or here.step == 1 or here.step % self.recipe.log_every == 0:
            self.log()

    def descend(self, batches: list[Batch], lr: float) -> None:
        """Take one optimiser step on the gradients of `batches`, and add it to the counts of the position."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        here, pictures = self.position, sum(map(len, batches))
        for batch in batches:
            step = self.task.step(batch, pictures=pictures)
            step.loss.backward()
            self.refuse_infinite(step.loss.item(), lr)
            here.window_loss += step.loss.item() * pictures
            for name, more in step.counts.items():
                here.window_counts[name] = here.window_counts.get(name, 0) + more
                here.warmup_counts[name] = here.warmup_counts.get(name, 0) + more
        if self.recipe.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(self.task.net)
        here.step += 1
        here.images += pictures
        here.window_images += pictures
        here.warmup_images += pictures

    @property
    def ended(self) -> bool:
        """Whether no more steps follow."""
        return self.position.stopped_early or self.position.step >= self.position.plan.total_steps

    def progress(self) -> float:
        """Return the share of the run that is done, 0 to 1."""
        return self.position.plan.progress(self.position.step)

    def learning_rate(self) -> float:
        """Return the learning rate of the next step."""
        here = self.position
        if here.warming_up:
            return self.recipe.warmup_lr
        drops = plateaus(here.scores, patience=self.recipe.plateau_patience)
        return learning_rate(self.recipe, self.progress(), drops=drops)

    def reconsider_warmup(self) -> None:
        """End the warm-up when the training error over the last WARMUP_STEPS steps is low enough."""
        here = self.position
        if here.step % WARMUP_STEPS:
            return
        name = self.task.counts[0]
        error = 100 * here.warmup_counts[name] / here.warmup_images
        here.warmup_images = 0
        here.warmup_counts.clear()
        if error < self.recipe.warmup_error_percent:
            here.warming_up = False
            self.monitor.say(f"warm-up over at step {here.step}: training {name} {error:.1f} %")

    def refuse_infinite(self, loss: float, lr: float) -> None:
        """Raise TrainingError when the loss is not finite, before the optimiser's step."""
        if not math.isfinite(loss):
            self.diverged(f"the loss is {loss}", self.position.step + 1, lr)

    def refuse_broken_weights(self) -> None:
        """Raise TrainingError when weights are not finite; they must not be saved."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            self.diverged("weights are no longer finite", self.position.step, self.lr)

    def diverged(self, what: str, step: int, lr: float) -> None:
        """Raise TrainingError with a suggested fix."""
        first = step == 1 and what.startswith("the loss")
        kept = f" The last saved state is intact: {self.run.path}" if self.run.state.exists() else ""
        raise TrainingError(
            f"{what} at step {step}, with learning rate {lr:.4g}. "
            f"{mend(self.recipe, self.task.precision, first=first)}{kept}"
        )

    def elapsed(self) -> float:
        """Return the seconds since the run began, including the time in earlier processes."""
        return self.position.seconds + time.monotonic() - self.started

    def show(self) -> None:
        """Bring the progress bar up to date."""
        here = self.position
        self.monitor.show(
            here.step,
            None if here.plan == Pace.UNKNOWN else here.plan.total_steps,
            self.trained(),
            images_per_second=here.images / max(here.training_seconds, 1e-9),
            left_seconds=self.left_seconds(),
        )

    def trained(self) -> dict[str, float]:
        """Return the mean loss and the counts in percent, over the steps since the last line of training metrics."""
        here = self.position
        counts = {name: here.window_counts.get(name, 0) for name in self.task.counts}
        shares = {f"{name}_percent": 100 * wrong / here.window_images for name, wrong in counts.items()}
        return {"loss": here.window_loss / here.window_images, **shares}

    def left_seconds(self) -> float | None:
        """Return the estimated seconds until the run is done."""
        if self.recipe.minutes:
            return 60 * self.recipe.minutes - self.elapsed()
        began, first = self.went_on
        here = self.position
        each = (time.monotonic() - began) / max(here.step - first, 1)
        return each * (here.plan.total_steps - here.step)

    def log(self) -> None:
        """Write a line of training metrics over the steps since the last line, and begin a new window."""
        here = self.position
        if not here.window_images:
            return
        row = {
            "part": "train",
            "step": here.step,
            "epoch": self.epochs(),
            "lr": self.lr,
            **{name: round(value, 6 if name == "loss" else 4) for name, value in self.trained().items()},
            "images_per_second": round(here.images / max(here.training_seconds, 1e-9), 1),
            "seconds": round(self.elapsed(), 1),
        }
        self.monitor.record(row)
        here.window_loss, here.window_images = 0.0, 0
        here.window_counts.clear()

    def evaluate(self, asked_to_stop: Callable[[], int]) -> None:
        """Measure the weights on the validation pictures; write best.safetensors if they are the best so far.

        Also draws the curves, at most every DRAW_EVERY seconds. `asked_to_stop` returns the number of a received
        signal, or 0. Raises StoppedEvaluationError between two batches; the run is then as it was before.
        """
        here, task, began = self.position, self.task, time.monotonic()
        self.refuse_broken_weights()
        row: dict[str, Any] = {"part": "val", "step": here.step, "epoch": self.epochs()}
        measured = self.validate(self.averaged(), "validating", asked_to_stop)
        if measured is not None:
            task.train_mode()
            here.scores.append(measured.values[task.score])
            row |= measured.values
            self.monitor.record(row | {"seconds": round(self.elapsed(), 1)})
            self.monitor.say(f"step {here.step}: validation {spoken(measured.values, first=task.score)}")
        self.row, self.measured = row, measured
        here.evaluation_due = False
        here.evaluation_seconds = time.monotonic() - began + 2 * self.save_seconds
        if measured is None or row[task.score] <= here.best.get(task.score, math.inf):
            task.save(self.run.best, self.averaged(), row, measured)
            here.best, self.best_measured = row, measured
        if measured is not None and self.recipe.patience and not self.ended:
            here.stopped_early = evaluations_without_better(here.scores) >= self.recipe.patience
            if here.stopped_early:
                self.monitor.say(
                    f"stopped after step {here.step}: {count(self.recipe.patience, 'evaluation')} in a row without a "
                    f"lower {task.score.removesuffix(PERCENT)}; the best model is that of step {here.best['step']}"
                )
        if time.monotonic() - self.drawn_at >= DRAW_EVERY and not self.ended:
            self.draw()

    def validate(self, net: nn.Module, doing: str, asked_to_stop: Callable[[], int]) -> Measured | None:
        """Measure `net`; the progress bar shows the text `doing`. Raises StoppedEvaluationError between two batches."""
        if not self.task.validation_pictures:
            return None
        seen = self.monitor.doing(doing, self.task.validation_pictures, "pictures")

        def advance(count: int) -> None:
            seen(count)
            if asked_to_stop():
                raise StoppedEvaluationError

        return self.task.validate(net, advance)

    def averaged(self) -> nn.Module:
        """Return the network to evaluate and save: the moving average if there is one, else the network in training."""
        return self.task.net if self.ema is None else self.ema.module

    def draw(self) -> None:
        """Draw the curves so far."""
        draw_curves(read_metrics(self.run.metrics), self.run.curves, score=self.task.score, title=self.task.title)
        self.drawn_at = time.monotonic()

    def write_last(self) -> None:
        """Write last.safetensors with the metrics of the last evaluation."""
        self.task.save(self.run.last, self.averaged(), self.row, self.measured)

    def save(self) -> None:
        """Write state.pt, the training state."""
        self.refuse_broken_weights()
        began = time.monotonic()
        save_state(
            self.run.state,
            replace(self.position, seconds=self.elapsed()),
            header=self.task.header,
            net=self.task.net,
            optimizer=self.optimizer,
            ema=self.ema,
            best=self.best_measured,
        )
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - began

    def restore(self, state: State) -> None:
        """Go back to a saved state."""
        state.restore(net=self.task.net, optimizer=self.optimizer, ema=self.ema)
        here = self.position = state.position
        self.best_measured = state.best
        if self.pace and here.step:
            self.pace.step_seconds = here.training_seconds / here.step
        # best.safetensors may be from a later evaluation than the state. It is kept: a run with `minutes` may not reach
        # that step again, and every other run reaches it with the same weights.
        in_file = inspect(self.run.best).metrics if self.run.best.exists() else {}
        if in_file != here.best:
            here.best, self.best_measured = dict(in_file), None
        self.monitor.forget_after(here.step, evaluated=not here.evaluation_due)
        self.monitor.say(f"going on after step {here.step}")

    def epochs(self) -> float:
        """Return the passes over the training pictures so far, as a fraction."""
        return round(self.position.epoch + self.position.next_batch / self.task.batches_per_epoch, 3)


def draw(task: Task[Any], here: Position, count: int, *, progress: Callable[[], float]) -> Generator[list[Batch]]:
    """Yield lists of `count` batches without end, from position `here` on; `here` is moved forward with each batch.

    Raises DataError when no training picture can be read.
    """
    group: list[Batch] = []
    while True:
        began = here.next_batch
        for batch in task.batches(here.epoch, here.next_batch, progress):
            here.next_batch = batch.number + 1
            group.append(batch)
            if len(group) == count:
                yield group
                group = []
        if not here.next_batch:
            raise DataError(
                f"none of the {task.training_pictures} training pictures can be read; see resnetkit data check"
            )
        if here.next_batch in (began, task.batches_per_epoch):  # else the generator ended early, within the epoch
            here.epoch, here.next_batch = here.epoch + 1, 0
