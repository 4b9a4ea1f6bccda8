"""The three rungs of the ladder: the head, the last stage, the whole network. Each is kept if validation improves."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch

from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count
from resnetkit.errors import DataError
from resnetkit.files import write_whole
from resnetkit.finetune import heads
from resnetkit.finetune.features import FeatureCache, Features
from resnetkit.finetune.head_choice import fit_head, softer_head
from resnetkit.finetune.in_time import Enough, drawn_evenly
from resnetkit.finetune.lengths import (
    Costs,
    early_crops,
    epochs,
    small_batches,
    stage_seconds,
    trained_plainly,
    whole_epochs,
)
from resnetkit.finetune.stage import StageTask, measured
from resnetkit.finetune.views import training_views
from resnetkit.location import short_name
from resnetkit.modelfile import Model, inspect, load, save
from resnetkit.models.resnet import ResNet
from resnetkit.progress import Advance
from resnetkit.train.checkpoint import load_state
from resnetkit.train.classification import Classification, calibration_in, prepare
from resnetkit.train.lifecycle import TrainResult, train_task
from resnetkit.train.loop import InterruptedTrainingError
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import LENGTHS, Recipe, read_recipe
from resnetkit.train.run import resume as resume_whole
from resnetkit.train.run import start as start_whole
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.signals import Signals
from resnetkit.train.task import Measured

VIEWS = 2
"""Views of each training picture: as in validation, and mirrored."""
EVALUATE_EVERY = 1.6
"""Epochs between two evaluations in the second and third rung: one costs a tenth of an epoch."""
STAGE_RATE, WHOLE_RATE, PLAIN_RATE = 0.005, 0.005, 0.01
"""Highest learning rates of the second and third rung, and of plain fine-tuning, for batches of 16."""
LONGEST_GRADIENT = 1.0
"""Largest norm of a gradient: a head that was fitted to its end gives large ones for the few pictures it gets wrong."""
GENTLE = {"keep_statistics": True, "gradient_clip": LONGEST_GRADIENT, "layer_decay": 0.7}
"""What keeps the steps of the whole network from spoiling the features that a fitted head relies on."""
CLOSING_SECONDS = 6.0
"""With `minutes`: kept for the report."""
FEATURES_SHARE = 0.8
"""With `minutes`: the most of the time that the features get; half of that if a later rung was asked for."""
MEASURED_PICTURES = 32
"""Features of so many pictures measure what the other rungs cost."""


@dataclass
class Rung:
    """The result of one rung."""

    rung: str
    seconds: float
    top1_error_percent: float | None
    kept: bool

    def to_dict(self, *, multilabel: bool = False) -> dict[str, Any]:
        """Return the fields for JSON; the error of a multi-label model, which is 100 - mAP, is `error_percent`."""
        name = "error_percent" if multilabel else "top1_error_percent"
        error = {name: self.top1_error_percent}
        return {"rung": self.rung, "seconds": self.seconds, **error, "kept": self.kept}

    def __str__(self) -> str:
        error = "not validated" if self.top1_error_percent is None else f"{self.top1_error_percent:.2f} % error"
        kept = "kept" if self.kept else "not kept: no better"
        return f"rung {self.rung}: {error} after {self.seconds:,.0f} s, {kept}"


@dataclass
class Climb:
    """A ladder in progress."""

    recipe: Recipe
    dataset: Dataset
    run: RunFolder
    about: Mapping[str, Any]
    asked: frozenset[str]
    """Fields of the recipe that a person gave."""
    started: float
    quiet: bool
    rungs: list[Rung] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    """Metrics of the best model file."""
    best_measured: Measured | None = None
    images: int = 0
    training_seconds: float = 0.0
    remarks: Sequence[str] = ()
    allow_other_arithmetic: bool = False
    penalty: float = 0.0
    """The penalty of the first rung's head."""
    behind: int = 0
    """How many more pictures the best regression gets wrong than the first rung's head."""
    costs: Costs | None = None
    """What the other rungs cost; None if the features were there already, so that nothing was measured."""

    @property
    def end(self) -> float | None:
        """The time.monotonic() at which training must be over; None without `minutes`."""
        return None if self.recipe.minutes is None else self.started + 60 * self.recipe.minutes - CLOSING_SECONDS

    def left(self) -> float:
        """Return the seconds until `end`."""
        return inf if self.end is None else self.end - time.monotonic()


def task_of(recipe: Recipe, dataset: Dataset) -> Classification:
    """Return the task of the whole network, computed without kernels: its network, preprocessing and validation."""
    return prepare(recipe.replace(compile="off"), dataset)


class _Stopped:
    """An Advance that ends the work when a signal has come."""

    def __init__(self, advance: Advance, signals: Signals) -> None:
        self.advance, self.signals = advance, signals

    def __call__(self, done: int) -> None:
        self.advance(done)
        if self.signals.received:
            raise InterruptedTrainingError("stopped", self.signals.received)


def first_rung(
    climb: Climb, task: Classification, planned: Sequence[str], done: set[str]
) -> tuple[Features, Features | None]:
    """Compute or find the features; fit the head, if this is not done yet. Return those of training and validation."""
    began, recipe, dataset, run = time.monotonic(), climb.recipe, climb.dataset, climb.run
    if dataset.train is None:
        raise DataError(f"{dataset.name} has no training pictures")
    pictures = len(dataset.train) + task.validation_pictures
    with run.locked(), Monitor(run, quiet=climb.quiet) as monitor, Signals() as signals:
        for remark in climb.remarks:
            monitor.say(remark)
        cache = FeatureCache(
            Model(task.net, task.header), cache_gb=recipe.cache_gb, device=str(task.device), workers=recipe.workers
        )
        maps = "stage" in planned and "stage" not in done
        views = cache.affordable_views(pictures, views=VIEWS, maps=maps)
        if maps and not views:
            monitor.say(
                f"no rung stage: its inputs take {cache.needed_bytes(pictures, views=1, maps=True) / 1e9:.1f} GB on "
                f"disk, and `cache_gb` is {recipe.cache_gb:g}"
            )
            maps, views = False, cache.affordable_views(pictures, views=VIEWS)
        if views < VIEWS:
            monitor.say(f"one view of each picture: more do not fit into `cache_gb` {recipe.cache_gb:g}")
        chosen = training_views(max(views, 1), seed=recipe.seed, flip=recipe.flip)
        total = len(dataset.train) * len(chosen) + task.validation_pictures
        monitor.say(f"{recipe.model}: features of {count(pictures, 'picture')} by {cache.computed_by.split()[0]}")
        advance = _Stopped(monitor.doing("features", total, "pictures"), signals)
        val, tick = None, time.monotonic()
        if task.val is not None:
            val = cache.compute(task.val, maps=maps, strict=recipe.strict, advance=advance)
        until, order, enough = None, None, None
        if climb.end is not None:
            until = began + 0.5 * climb.left()
            order = drawn_evenly(dataset.train.strata, seed=recipe.seed)
            enough = _enough(climb, dataset.train, began, cache, monitor, advance)
        train = cache.compute(
            dataset.train,
            views=chosen,
            maps=maps,
            strict=recipe.strict,
            until=until,
            order=order,
            at_least=len(dataset.classes),
            enough=enough,
            advance=advance,
        )
        if cache.computed >= MEASURED_PICTURES:
            climb.costs = Costs.estimate(
                task.net.spec,
                size=task.header.preprocess.size,
                feature_seconds=(time.monotonic() - tick) / cache.computed,
                train=len(train),
                val=task.validation_pictures,
            )
        if "head" not in done:
            monitor.doing("fitting the head")
            head, behind = fit_head(
                train,
                val,
                balanced=recipe.balance != "off",
                stop=lambda: climb.left() <= 0,
            )
            put_head(task, head)
            climb.penalty, climb.behind = head.penalty, behind
            result = None if val is None else measured(head.batches(val.pool()), val)
            _keep(climb, task, "head", time.monotonic() - began, result, row={"step": 0, "epoch": 0.0}, say=monitor.say)
    return train, val


def _enough(
    climb: Climb, train: Samples, began: float, cache: FeatureCache, monitor: Monitor, advance: _Stopped
) -> Enough:
    """Return what ends the features of the training pictures early if all would take longer than `minutes`.

    Those of the validation pictures, which come before them, are always computed. The rung `began` with these.
    """
    share = FEATURES_SHARE if climb.recipe.rung in ("auto", "head") else FEATURES_SHARE / 2

    def tell(fitting: int, seconds: float) -> None:
        if fitting < len(train):
            monitor.say(
                f"the head is fitted to about {fitting:,} of the {len(train):,} training pictures, drawn evenly from "
                f"the classes: the features of all take longer than `minutes` {climb.recipe.minutes:g}"
            )
            advance.advance = monitor.doing("features", fitting, "pictures")
        if seconds > climb.left():
            monitor.say(
                f"even so the features take about {max(seconds / 60, 0.1):.1f} minutes more, because one picture of "
                "each class is needed"
            )

    end = began + share * (climb.left() + time.monotonic() - began)
    return Enough(cache, end, least=len(train.classes), tell=tell)


def put_head(task: Classification, head: heads.Head) -> None:
    """Make `head` the last layer of the task's network."""
    with torch.no_grad():
        task.net.fc.weight.copy_(torch.from_numpy(head.weight))
        task.net.fc.bias.copy_(torch.from_numpy(head.bias))


def second_rung(climb: Climb, train: Features, val: Features | None, *, more: bool) -> None:
    """Train the last stage and the head from the kept maps, beginning with the head of the first rung.

    With `more`, a third rung is planned.
    """
    began, folder = time.monotonic(), RunFolder(climb.run.path / "stage")
    length: dict[str, float | None] = {"epochs": epochs(len(train))}
    if folder.state.is_file():
        length = read_recipe(folder.recipe, climb.recipe)[0].length
    elif climb.end is not None:
        length = {"minutes": stage_seconds(climb.left(), climb.costs, pictures=len(train), more=more) / 60}
    recipe = climb.recipe.replace(
        **length,
        schedule="one-cycle",
        optimizer="sgd",
        label_smoothing=0.0,
        ema_decay=0.0,
        keep_statistics=True,
        gradient_clip=climb.recipe.gradient_clip or LONGEST_GRADIENT,
        early_scale=1.0,
        evaluate_every=EVALUATE_EVERY,
        rung="off",
        init=str(climb.run.best),
        **small_batches(climb.recipe, len(train), STAGE_RATE, climb.asked),
    )
    whole = task_of(recipe, climb.dataset)
    head = softer_head(train, climb.penalty, balanced=climb.recipe.balance != "off")
    if head is not None:
        put_head(whole, head)
    header = replace(whole.header, recipe=recipe.to_dict())

    def make(fitted: Recipe) -> StageTask:
        return StageTask(whole, train, val, header=header, batch_size=fitted.batch_size, seed=fitted.seed)

    state = load_state(folder.state) if folder.state.is_file() else None
    folder.create()
    task = make(recipe)
    result = train_task(
        task,
        recipe,
        folder,
        about=climb.about,
        started=began,
        prepare=make,
        state=state,
        quiet=climb.quiet,
        fitted_before=True,
    )
    model = load(result.model)
    found = None
    if val is not None:  # the maps are rounded to float16, so the one evaluation judges
        whole = replace(whole, net=model.net)
        with Monitor(climb.run, quiet=climb.quiet) as monitor:
            found = whole.validate(model.net, monitor.doing("validating", whole.validation_pictures, "pictures"))
    _keep(climb, whole, "stage", time.monotonic() - began, found, row=result.best, net=model.net, result=result)


def third_rung(climb: Climb, task: Classification) -> None:
    """Train the whole network: with layer-wise rates from the best rung before, or plainly.

    With `lengths.PLAIN_FROM` pictures or more, it is plain fine-tuning from the first weights, with a new head if their
    classes are others. On 1,651 hand signs, which ImageNet has none of, it made 1.9 % errors after 4 epochs, and the
    other way 5.8 % after 3. With a few hundred pictures, it spoils features that fit already.
    """
    began, folder = time.monotonic(), RunFolder(climb.run.path / "all")
    pictures = len(climb.dataset.train or ())
    plain = trained_plainly(pictures)
    scale, until = early_crops(pictures, task.header.preprocess.size)
    fitted = {
        "schedule": "one-cycle",
        "label_smoothing": 0.0,
        "early_scale": scale,
        "early_until": until,
        "min_area": 0.5,
        "evaluate_every": EVALUATE_EVERY,
        **small_batches(climb.recipe, pictures, PLAIN_RATE if plain else WHOLE_RATE, climb.asked),
        **({} if plain else GENTLE),
    }
    changes = {name: value for name, value in fitted.items() if name not in climb.asked}
    if climb.end is not None:
        changes["minutes"] = max(climb.left() + CLOSING_SECONDS, 1.0) / 60
    elif not climb.asked & set(LENGTHS):
        changes["epochs"] = whole_epochs(pictures)
    changes["group_alike"] = False  # the pictures were looked at, and divided, before the first rung
    init = climb.recipe.init if plain else str(climb.run.best)
    recipe = climb.recipe.replace(rung="off", init=init, **changes)
    fitted_before = not plain or inspect(str(init)).classes == climb.dataset.classes
    if folder.state.is_file():
        longer: Mapping[str, Any] = climb.about.get("longer") or {}
        result = resume_whole(
            folder.path,
            climb.dataset,
            **{name: longer.get(name) for name in LENGTHS},
            allow_other_arithmetic=climb.allow_other_arithmetic,
            quiet=climb.quiet,
            fitted_before=fitted_before,
        )
    else:
        shutil.rmtree(folder.path, ignore_errors=True)
        result = start_whole(
            recipe, climb.dataset, out=folder.path, quiet=climb.quiet, began=began, fitted_before=fitted_before
        )
    model, state = load(result.model), load_state(folder.state)
    task = replace(task, header=model.header)
    seconds = max(time.monotonic() - began, result.seconds)
    _keep(climb, task, "all", seconds, state.best, row=result.best, net=model.net, result=result)


def _keep(
    climb: Climb,
    task: Classification,
    rung: str,
    seconds: float,
    found: Measured | None,
    *,
    row: Mapping[str, Any],
    net: ResNet | None = None,
    result: TrainResult | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Record a rung, and keep its model if it is better; where nothing judges it, if it was asked for."""
    error = None if found is None else float(found.values["error_percent"])
    before = climb.best.get("error_percent")
    better = error < before if error is not None and before is not None else rung == "head" or error is None
    if result is not None:
        climb.images += round(result.images_per_second * _training_seconds(result))
        climb.training_seconds += _training_seconds(result)
    done = Rung(rung, round(seconds, 1), error, better)
    metrics = {"part": "val", "rung": rung, "step": row.get("step", 0), "epoch": row.get("epoch", 0.0)}
    metrics |= dict(found.values) if found else {}
    init = climb.recipe.init and short_name(climb.recipe.init)
    lengths = {name: value for name, value in task.header.recipe.items() if name == "earlier_lengths"}
    header = replace(task.header, recipe=climb.recipe.to_dict() | {"init": init} | lengths)
    whole = replace(header, metrics=metrics, calibration=calibration_in(found))
    trained = net or task.net
    save(climb.run.last, trained, whole)
    if better:
        save(climb.run.best, trained, whole)
        climb.best, climb.best_measured = metrics, found
    climb.rungs.append(done)
    write_state(climb)
    if say is not None:
        say(str(done))
    else:
        with Monitor(climb.run, quiet=climb.quiet) as monitor:
            monitor.say(str(done))


def _training_seconds(result: TrainResult) -> float:
    return load_state(result.run / "state.pt").position.training_seconds


def write_state(climb: Climb) -> None:
    values = {
        "rungs": [vars(rung) for rung in climb.rungs],
        "seconds": time.monotonic() - climb.started,
        "images": climb.images,
        "training_seconds": climb.training_seconds,
        "penalty": climb.penalty,
        "behind": climb.behind,
    }
    write_whole(climb.run.ladder, json.dumps(values, indent=1) + "\n")
