"""The only training loop."""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from resnetkit import modelfile
from resnetkit.data.augment import Augment
from resnetkit.data.loader import Batch, Loader
from resnetkit.data.normalize import Normalize
from resnetkit.errors import DataError, TrainingError
from resnetkit.models.resnet import ResNet
from resnetkit.train.checkpoint import Position, RunFolder, State, save_state
from resnetkit.train.evaluate import evaluate_net
from resnetkit.train.monitor import Monitor, draw_curves, read_metrics
from resnetkit.train.optim import Pace, Plan, learning_rate, make_optimizer, moving_average, plateaus
from resnetkit.train.recipe import Recipe
from resnetkit.train.signals import Signals
from resnetkit.train.task import Task, choose_augment, freeze

WARMUP_STEPS = 50  # over which the training error that ends a warm-up is counted
DRAW_EVERY = 30.0  # seconds between two drawings of the curves


class InterruptedTrainingError(TrainingError):
    """The run was asked to stop, and saved its state first."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class Training:
    """One run: its network, its optimiser, and how far it is."""

    def __init__(self, task: Task, recipe: Recipe, run: RunFolder, monitor: Monitor, *, started: float) -> None:
        self.task, self.recipe, self.run, self.monitor = task, recipe, run, monitor
        self.optimizer = make_optimizer(task.net, recipe, kernels=task.computed_by == "kernels")
        self.ema = (
            AveragedModel(task.net, multi_avg_fn=moving_average(recipe.ema_decay), use_buffers=True)
            if recipe.ema_decay
            else None
        )
        self.normalize = Normalize(task.header.preprocess, task.device)
        self.parameters = [p for p in task.net.parameters() if p.requires_grad]
        steps_per_epoch = max(1, math.ceil(len(task.loader) / recipe.accumulate))
        self.steps_per_evaluation = max(1, round(recipe.evaluate_every * steps_per_epoch))
        total = recipe.total_steps(len(task.loader))
        plan = Pace.UNKNOWN if total is None else Plan.of_length(total)
        self.position = Position(plan, warming_up=recipe.warmup_lr > 0)
        # An evaluation runs forward only, in float32: about half the cost of training on the same pictures.
        val_images = len(task.val) if task.val is not None else 0
        evaluation_share = 0.5 * val_images / (recipe.batch_size * recipe.accumulate)
        # A step is taken to cost as its pixels, until the full size is there.
        early_cost = (self.augment().side(task.header.preprocess) / task.header.preprocess.size) ** 2
        self.pace = (
            Pace(
                recipe.minutes,
                steps_per_evaluation=self.steps_per_evaluation,
                evaluation_share=evaluation_share,
                early_until=min(recipe.early_until, recipe.center_crop_from) if early_cost < 1 else 0.0,
                early_cost=early_cost,
            )
            if recipe.minutes
            else None
        )
        self.started = started
        self.saved_at = time.monotonic()
        self.drawn_at = -math.inf

    def go_on(self, signals: Signals) -> None:
        """Train from the present position to the end of the plan."""
        here = self.position
        self.monitor.say(
            f"{self.recipe.model}: {sum(p.numel() for p in self.task.net.parameters()):,} parameters, "
            f"{len(self.task.loader.samples):,} training pictures, {self.task.precision} on {self.task.device}, "
            f"{self.task.computed_by}{', recomputing' if self.task.recompute else ''}"
        )
        done = here.step >= here.plan.total_steps
        batches = draw(self.task.loader, here, self.recipe.accumulate, augment=self.augment)
        self.train_mode()
        while not done:
            tick = time.monotonic()
            lr = self.learning_rate()
            self.descend(next(batches), lr)
            took = time.monotonic() - tick
            here.training_seconds += took
            self.show()
            if self.pace:
                self.pace.step(took, here.plan.progress(here.step - 1))
                here.plan = self.pace.fit(
                    here.plan,
                    here.step,
                    elapsed_seconds=self.elapsed(),
                    evaluation_seconds=here.evaluation_seconds,
                )
            done = here.step >= here.plan.total_steps
            if here.warming_up:
                self.reconsider_warmup()
            if done or here.step % self.recipe.log_every == 0:
                self.log(lr)
            evaluate = done or here.step % self.steps_per_evaluation == 0
            if evaluate or signals.received or time.monotonic() - self.saved_at >= self.recipe.save_every:
                self.refuse_broken_weights(lr)
                began = time.monotonic()
                if evaluate:
                    self.evaluate()
                self.save()
                if evaluate:
                    here.evaluation_seconds = time.monotonic() - began
            if signals.received and not done:
                batches.close()
                raise InterruptedTrainingError(
                    f"stopped after step {here.step} of {here.plan.total_steps}; everything is saved. "
                    f"Go on with: resnetkit train --resume {self.run.path}",
                    signals.received,
                )
        batches.close()

    def descend(self, batches: list[Batch], lr: float) -> None:
        """Take one step of the optimiser on the gradients of `batches`, and count it."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        here, images_in_step, wrong = self.position, sum(len(batch.labels) for batch in batches), 0
        for batch in batches:
            labels = batch.labels.to(self.task.device)
            logits = self.task.forward(self.normalize(batch.images))
            share = len(labels) / images_in_step
            loss = share * F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
            loss.backward()
            self.refuse_infinite(loss.item(), lr)
            here.window_loss += loss.item() * images_in_step
            wrong += int((logits.argmax(dim=1) != labels).sum())
        if self.recipe.gradient_clip:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update_parameters(self.task.net)
        here.step += 1
        here.images += images_in_step
        here.window_images += images_in_step
        here.window_wrong += wrong
        here.warmup_images += images_in_step
        here.warmup_wrong += wrong

    def train_mode(self) -> None:
        """Batch norm takes its statistics from the batch, but for what is frozen."""
        self.task.net.train()
        freeze(self.task.net, self.recipe.freeze)

    def learning_rate(self) -> float:
        """The rate of the next step."""
        here = self.position
        if here.warming_up:
            return self.recipe.warmup_lr
        drops = plateaus(here.errors, patience=self.recipe.plateau_patience)
        return learning_rate(self.recipe, here.plan.progress(here.step), drops=drops)

    def augment(self) -> Augment:
        """How the pictures of the next step are varied."""
        here = self.position
        return choose_augment(self.recipe, self.task.header.preprocess, here.plan.progress(here.step))

    def reconsider_warmup(self) -> None:
        """End the warm-up when the training error over the last WARMUP_STEPS is low enough."""
        here = self.position
        if here.step % WARMUP_STEPS:
            return
        error = 100 * here.warmup_wrong / here.warmup_images
        here.warmup_wrong = here.warmup_images = 0
        if error < self.recipe.warmup_error_percent:
            here.warming_up = False
            self.monitor.say(f"warm-up over at step {here.step}: training error {error:.1f} %")

    def refuse_infinite(self, loss: float, lr: float) -> None:
        """Stop, before anything of it is saved, when the loss is not finite."""
        if not math.isfinite(loss):
            self.diverged(f"the loss is {loss}", self.position.step + 1, lr)

    def refuse_broken_weights(self, lr: float) -> None:
        """Stop when the last step left weights that are not finite, which must not be saved."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            self.diverged("weights are no longer finite", self.position.step, lr)

    def diverged(self, what: str, step: int, lr: float) -> None:
        """Raise TrainingError with the mend."""
        kept = f" What was saved last is whole: {self.run.path}" if self.run.state.exists() else ""
        raise TrainingError(
            f"{what} at step {step}, with learning rate {lr:.4g}. "
            f"Lower --lr, clip with --gradient-clip 1, or give --precision float32.{kept}"
        )

    def elapsed(self) -> float:
        """Seconds since the run began, those of earlier processes included."""
        return self.position.seconds + time.monotonic() - self.started

    def show(self) -> None:
        """Bring the progress bar up to date."""
        here = self.position
        self.monitor.show(
            here.step,
            None if here.plan == Pace.UNKNOWN else here.plan.total_steps,
            loss=here.window_loss / here.window_images,
            error_percent=100 * here.window_wrong / here.window_images,
            images_per_second=here.images / max(here.training_seconds, 1e-9),
        )

    def log(self, lr: float) -> None:
        """Write a line of training metrics over the steps since the last one, and begin a new window."""
        here = self.position
        if not here.window_images:
            return
        error = 100 * here.window_wrong / here.window_images
        row = {
            "part": "train",
            "step": here.step,
            "epoch": self.epochs(),
            "lr": lr,
            "loss": round(here.window_loss / here.window_images, 6),
            "error_percent": round(error, 4),
            "images_per_second": round(here.images / max(here.training_seconds, 1e-9), 1),
            "seconds": round(self.elapsed(), 1),
        }
        self.monitor.record(row)
        here.window_loss, here.window_wrong, here.window_images = 0.0, 0, 0

    def evaluate(self) -> None:
        """Measure the weights on the validation pictures; write last.safetensors, best if it is, curves at times."""
        here, task = self.position, self.task
        row: dict[str, Any] = {"part": "val", "step": here.step, "epoch": self.epochs()}
        if task.val is not None:
            measured = evaluate_net(
                self.averaged(),
                task.val,
                task.header.preprocess,
                workers=self.recipe.workers,
                strict=self.recipe.strict,
            )
            self.train_mode()
            error = measured.top1_error_percent
            here.errors.append(error)
            row |= {"loss": round(measured.loss, 6), "error_percent": error, "images": measured.images}
            self.monitor.record(row | {"seconds": round(self.elapsed(), 1)})
            self.monitor.say(f"step {here.step}: validation error {error:.2f} %, loss {measured.loss:.4f}")
        modelfile.save(self.run.last, self.averaged(), replace(task.header, metrics=row))
        if task.val is None or row["error_percent"] <= here.best.get("error_percent", math.inf):
            modelfile.save(self.run.best, self.averaged(), replace(task.header, metrics=row))
            here.best = row
        if time.monotonic() - self.drawn_at >= DRAW_EVERY:
            self.draw()

    def averaged(self) -> ResNet:
        """The network to keep: the moving average if there is one."""
        if self.ema is None:
            return self.task.net
        if not isinstance(self.ema.module, ResNet):
            raise TypeError(f"the average is of a {type(self.ema.module).__name__}")
        return self.ema.module

    def draw(self) -> None:
        """Draw the curves so far."""
        draw_curves(read_metrics(self.run.metrics), self.run.curves, title=self.title())
        self.drawn_at = time.monotonic()

    def save(self) -> None:
        """Write the training state."""
        saved = replace(self.position, seconds=self.elapsed())
        save_state(
            self.run.state, saved, header=self.task.header, net=self.task.net, optimizer=self.optimizer, ema=self.ema
        )
        self.saved_at = time.monotonic()

    def restore(self, state: State) -> None:
        """Go back to a saved state."""
        state.restore(net=self.task.net, optimizer=self.optimizer, ema=self.ema)
        self.position = state.position
        self.monitor.forget_after(self.position.step)
        self.monitor.say(f"going on after step {self.position.step}")

    def epochs(self) -> float:
        """Passes over the training pictures so far."""
        return round(self.position.epoch + self.position.next_batch / len(self.task.loader), 3)

    def title(self) -> str:
        """What the curves and the report are called."""
        return f"{self.recipe.model} on {self.task.header.data['name']}"


def draw(loader: Loader, here: Position, count: int, *, augment: Callable[[], Augment]) -> Generator[list[Batch]]:
    """Yield `count` batches at a time, for ever, from `here` on, varied as `augment` says; `here` moves with them."""
    group: list[Batch] = []
    while True:
        variation = augment()
        for batch in loader.epoch(here.epoch, here.next_batch, augment=variation):
            here.next_batch = batch.number + 1
            group.append(batch)
            if len(group) == count:
                yield group
                group = []
                if augment() != variation:
                    break
        else:
            if not here.next_batch:
                raise DataError(
                    f"not one of {len(loader.samples)} training pictures can be read; see resnetkit data check"
                )
            here.epoch, here.next_batch = here.epoch + 1, 0
