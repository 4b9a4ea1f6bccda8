"""The ladder: the head, then the last stage, then the whole network; each rung is kept if validation improves.

With few pictures, after LP-FT (Kumar et al. 2022, arXiv:2202.10054): a head that fits the features first, so that the
steps of the whole network do not spoil them. With many, the third rung begins anew.
"""

import json
import logging
import signal
import time
from collections.abc import Collection, Mapping
from math import inf
from pathlib import Path
from typing import Any

from resnetkit.data.first_look import FirstLook
from resnetkit.data.reading import NOTHING as NOTHING_SAID
from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset, joined
from resnetkit.display import shell
from resnetkit.errors import DataError, ModelFileError, TrainingError, UsageError
from resnetkit.files import write_whole
from resnetkit.finetune import trust
from resnetkit.finetune.features import FeatureCache
from resnetkit.finetune.lengths import why_no_stage, why_no_whole
from resnetkit.finetune.rungs import Climb, Rung, first_rung, second_rung, task_of, third_rung, write_state
from resnetkit.finetune.views import PLAIN
from resnetkit.modelfile import Model, load
from resnetkit.models.published import IN_TORCHVISION
from resnetkit.train.classification import Classification
from resnetkit.train.effects import check_effects
from resnetkit.train.lifecycle import TrainResult, arithmetic_of
from resnetkit.train.loop import InterruptedTrainingError
from resnetkit.train.monitor import Monitor, draw_curves, read_metrics
from resnetkit.train.recipe import FLAG, LENGTHS, RECIPES, Recipe, read_recipe, write_recipe
from resnetkit.train.run import (
    NOTHING,
    as_path,
    default_folder,
    open_again,
    open_for,
    open_new,
    pictures_of,
    place_of,
    process_kept,
    refuse_other_pictures,
)
from resnetkit.train.run import resume as resume_whole
from resnetkit.train.run import start as start_whole
from resnetkit.train.run_folder import RunFolder
from resnetkit.version import __version__

logger = logging.getLogger("resnetkit")

MOST_SECONDS = 3.0
"""With `minutes`: so long the end of a run may take for label errors and the learning curve."""
MOST_COMPARED = 3000
"""With `minutes`: so many pictures are compared with each other for the report, in about a second."""
KNOWN = 0.9
"""Least share of pictures with kept features: of fewer, they would be computed again for the report."""
FIRST_WEIGHTS = "IMAGENET1K_V1"
"""Published weights to start from if none are given. Their features suit a head better than those of later recipes,
whose regularisation helps the whole network (Kornblith et al. 2019, arXiv:1805.08974)."""


@process_kept()
def start(
    recipe: Recipe,
    data: str | Path | Dataset,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    asked: Mapping[str, str] = NOTHING,
    began: float | None = None,
    reading: Reading = NOTHING_SAID,
    command: str | None = None,
    chosen: Collection[str] = (),
) -> TrainResult:
    """Train as documented at `resnetkit.train`: up the ladder if the recipe has a `rung`, else the network at once.

    Arguments and errors are those of `train.run.start`. `chosen` are fields that a person gave, besides those that
    differ from the recipe for folders; the rungs keep their values. A recipe with a `rung` and without `init` gets
    published weights of its network, if there are any within reach; without them it is trained at once, and a line says
    so.
    """
    began = time.monotonic() if began is None else began
    remark = ""
    if isinstance(recipe, Recipe) and recipe.rung != "off" and not recipe.init:
        recipe, remark = settled(recipe, open_for(recipe, data, reading.settled()), asked)
    if not isinstance(recipe, Recipe) or recipe.rung == "off" or not recipe.init:
        if remark and not quiet:
            logger.warning("%s", remark)
        return start_whole(
            recipe, data, out=out, quiet=quiet, asked=asked, began=began, reading=reading, command=command
        )
    run = RunFolder(as_path(out, "out", "a path")) if out else None
    if run:
        run.refuse_existing()
    reading = reading.settled()
    dataset, seen = open_new(recipe, data, reading)
    remarks = [*([remark] if remark else []), *check_effects(recipe, dataset, asked)]
    given = (
        frozenset(asked)
        | frozenset(chosen)
        | {name for name, value in vars(recipe).items() if value != getattr(RECIPES["folder"], name)}
    )
    task = task_of(recipe, dataset)  # refuses what does not fit together before a folder is made
    about = {"version": __version__, **arithmetic_of(task), **pictures_of(dataset), "data": place_of(data)}
    about |= {"read_as": reading.given()} if reading.given() else {}
    about |= {"command": command} if command else {}
    about |= {"asked": sorted(given & set(vars(recipe)))}
    if run:
        run.create()
    else:
        run = default_folder(recipe.model, dataset.name).create_beside()
    climb = Climb(recipe, dataset, run, about, given, began, quiet, remarks=(*remarks, *seen))
    write_recipe(run.recipe, recipe, about)
    write_state(climb)
    return _climb(climb, task)


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
    """Resume a stopped run, also one on the ladder: at the rung, and the step, where it stopped.

    Arguments and errors are those of `train.run.resume`. A new length makes the last rung longer: `epochs` and
    `iterations` are those of the whole network, `minutes` those of all rungs together.
    """
    run = RunFolder(as_path(run_folder, "run_folder", "a path"))
    if not run.ladder.is_file():
        return resume_whole(
            run_folder,
            data,
            epochs=epochs,
            iterations=iterations,
            minutes=minutes,
            allow_other_arithmetic=allow_other_arithmetic,
            quiet=quiet,
            reading=reading,
        )
    length = {name: value for name, value in zip(LENGTHS, (epochs, iterations, minutes), strict=True) if value}
    return _resume(
        run, data, quiet=quiet, reading=reading, length=length, allow_other_arithmetic=allow_other_arithmetic
    )


@process_kept()
def _resume(
    run: RunFolder,
    data: str | Path | Dataset | None,
    *,
    quiet: bool,
    reading: Reading | None,
    length: Mapping[str, float],
    allow_other_arithmetic: bool,
) -> TrainResult:
    began = time.monotonic()
    recipe, about = read_recipe(run.recipe, Recipe())
    data = data if data is not None else about.get("data")
    if data is None:
        raise TrainingError(f"{run.recipe} does not name the run's data; give `data` to resnetkit.resume")
    dataset = open_again(recipe, data, about, reading)
    refuse_other_pictures(run, recipe, about, dataset)
    state = _read_state(run)
    kept = {file: file.read_bytes() for file in (run.recipe, run.ladder)}
    if length:
        recipe, about, state = _longer(run, recipe, about, state, length)
    climb = Climb(recipe, dataset, run, about, frozenset(about.get("asked", ())), began - state["seconds"], quiet)
    climb.allow_other_arithmetic = allow_other_arithmetic
    climb.rungs = [Rung(**row) for row in state["rungs"]]
    climb.images, climb.training_seconds = state["images"], state["training_seconds"]
    climb.penalty, climb.behind = state.get("penalty", 0.0), state.get("behind", 0)
    if any(rung.kept for rung in climb.rungs):
        climb.best = dict(load(run.best).header.metrics)
        errors = [rung.top1_error_percent for rung in climb.rungs if rung.top1_error_percent is not None]
        if climb.best.get("rung") not in {rung.rung for rung in climb.rungs} and errors:
            climb.best = {"error_percent": min(errors)}  # the file is that of the rung that goes on
    task = task_of(recipe, dataset)
    if not length:
        return _climb(climb, task)
    try:
        write_recipe(run.recipe, recipe, about)
        write_state(climb)
        return _climb(climb, task)
    except UsageError:  # the length is over already
        for file, content in kept.items():
            write_whole(file, content)
        raise


def _longer(
    run: RunFolder, recipe: Recipe, about: Mapping[str, Any], state: Mapping[str, Any], length: Mapping[str, float]
) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Return recipe, record and state of a run whose last rung, the whole network, gets another length.

    Epochs and iterations are those of this rung, minutes those of the whole run. Raises UsageError for a run that was
    not to take this rung.
    """
    (name,) = length
    if recipe.rung in ("head", "stage"):
        raise UsageError(
            f"{run.path} went up to the rung {recipe.rung}, which has no length; `{name}` is for the whole network. "
            f"Train it from these weights: resnetkit train DATA --init {shell(run.path)} --rung all"
        )
    rungs = [row for row in state["rungs"] if row["rung"] != "all"]
    own = dict(length)
    if name == "minutes":
        own["minutes"] = max(length["minutes"] - sum(row["seconds"] for row in rungs) / 60, 0.01)
    begun = RunFolder(run.path / "all").state.is_file()
    asked = {*about.get("asked", ()), name} - ({*LENGTHS} - {name})
    return (
        recipe.replace(**length),
        dict(about) | {"asked": sorted(asked), "longer": own if begun else {}},
        dict(state) | {"rungs": rungs},
    )


def settled(recipe: Recipe, dataset: Dataset, asked: Mapping[str, str]) -> tuple[Recipe, str]:
    """Return the recipe with the first weights that a run on `dataset` gets, and what to tell the person.

    Without such weights, and for pictures in memory as those of CIFAR, the recipe is as it was. `asked` is as for
    `start`.
    """
    train = dataset.train
    if recipe.rung == "off" or recipe.init or train is None or train.images is not None:
        return recipe, ""
    return with_first_weights(recipe, forced=asked.get("rung") == FLAG and recipe.rung != "auto")


def with_first_weights(recipe: Recipe, *, forced: bool = False) -> tuple[Recipe, str]:
    """Return the recipe with published weights as `init`, and what to tell the person; without, as it was.

    Raises UsageError if the weights can't be had and `forced`: the person asked for a rung.
    """
    if recipe.model not in IN_TORCHVISION:
        why = f"nobody is known to publish weights of {recipe.model}"
    else:
        init = f"{recipe.model}:{FIRST_WEIGHTS}"
        try:
            load(init)
        except (DataError, ModelFileError) as error:
            why = f"{init} can't be had ({error})"
        else:
            return recipe.replace(init=init), f"first weights: {init}"
    if forced:
        raise UsageError(f"`rung` needs first weights, and {why}; give `init`, a model file")
    return recipe, (
        f"from random weights, because {why}. With few pictures, expect a poor classifier; `init` with the file of "
        "trained weights makes a far better one, in less time (resnetkit convert makes a model file of other people's)"
    )


def _planned(recipe: Recipe, task: Classification) -> list[str]:
    """Return the rungs of a run: those that are asked for, without those that `freeze` leaves nothing to train."""
    wanted = {"head": ["head"], "stage": ["head", "stage"], "all": ["head", "all"]}
    before_head = len(task.net.parts) - 1
    stages = len(task.net.stage_names)
    trainable = ["head"] if recipe.freeze >= before_head else ["head", "stage"]
    if recipe.freeze < before_head - 1:
        trainable.append("all")
    planned = wanted.get(recipe.rung, trainable)
    if recipe.rung in wanted and not set(planned) <= set(trainable):
        raise UsageError(f"`freeze` {recipe.freeze} leaves nothing for `rung` {recipe.rung} to train; leave one out")
    return [rung for rung in planned if rung != "stage" or stages > 1]


def _climb(climb: Climb, task: Classification) -> TrainResult:
    """Take the rungs that are not done yet, and write the report."""
    planned = _planned(climb.recipe, task)
    done = {rung.rung for rung in climb.rungs}
    try:
        if "head" not in done or "stage" in set(planned) - done:
            train, val = first_rung(climb, task, planned, done)
            if "stage" in planned and "stage" not in done and train.with_maps and _goes_on(climb, "stage", task):
                second_rung(climb, train, val, more="all" in planned)
        if "all" in planned and "all" not in done and _goes_on(climb, "all", task):
            third_rung(climb, task)
    except InterruptedTrainingError as error:
        raise InterruptedTrainingError(
            f"stopped; everything is saved. Go on with: resnetkit train --resume {shell(climb.run.path)}",
            error.exit_code - 128,
        ) from None
    except KeyboardInterrupt:
        raise InterruptedTrainingError(
            "stopped immediately; what was saved before is intact. "
            f"Go on with: resnetkit train --resume {shell(climb.run.path)}",
            signal.SIGINT,
        ) from None
    return _finish(climb, task)


def _goes_on(climb: Climb, rung: str, task: Classification) -> bool:
    """Whether a rung can bring something: there are errors left, and time, and pictures that judge it.

    A line says why not. A rung that was asked for is always taken.
    """
    if climb.recipe.rung != "auto" or "longer" in climb.about:
        return True
    if not climb.best.get("error_percent", 0.0) or climb.left() <= 0:
        return False
    pictures = task.validation_pictures
    wrong = round(climb.best.get("error_percent", 0.0) / 100 * pictures)
    if rung == "stage":
        why = why_no_stage(climb.left(), climb.costs, wrong=wrong, behind=climb.behind)
    else:
        # The error of several labels is no count of pictures, so it does not say what would be a clear gain.
        done = () if task.header.multilabel else climb.rungs
        rows, bounded = [vars(row) for row in done], climb.end is not None
        no_stage = why_no_stage(inf, None, wrong=wrong, behind=climb.behind) is not None
        why = why_no_whole(rows, climb.left(), climb.costs, pictures=pictures, bounded=bounded, no_stage=no_stage)
    if why:
        with Monitor(climb.run, quiet=climb.quiet) as monitor:
            monitor.say(why)
    return not why


def _read_state(run: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads(run.ladder.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{run.ladder} is broken; start a new run with another `out`") from error


def _finish(climb: Climb, task: Classification) -> TrainResult:
    """Join the metrics and logs of the rungs, draw the curves, and write the report of the best model."""
    run = climb.run
    rows: list[dict[str, Any]] = []
    offset: int = 0
    for rung in climb.rungs:
        own: list[dict[str, Any]] = read_metrics(run.path / rung.rung / run.metrics.name)
        if rung.rung == "head" and rung.top1_error_percent is not None:
            own = [{"part": "val", "step": 0, "epoch": 0.0, "error_percent": rung.top1_error_percent}]
        rows += [row | {"rung": rung.rung, "step": row["step"] + offset} for row in own]
        offset = max((row["step"] for row in rows), default=0)
    write_whole(run.metrics, "".join(json.dumps(row) + "\n" for row in rows))
    with Monitor(run, quiet=climb.quiet) as monitor:
        monitor.doing("writing the report")
        draw_curves(rows, run.curves, score=task.score, title=task.title)
        model = load(run.best)
        if climb.best_measured is None and task.val is not None:
            advance = monitor.doing("validating the best model", task.validation_pictures, "pictures")
            climb.best_measured = task.validate(model.net, advance)
        sections = _on_the_data(climb, task, monitor)
        task.report(
            run.report, model, climb.best_measured, curves=run.curves.read_bytes(), about=climb.about, sections=sections
        )
        if found := task.unreadable(climb.best_measured):
            monitor.say(f"{len(found)} pictures could not be read; their names are in {run.log}")
    return TrainResult(
        run=run.path,
        model=run.best,
        best=climb.best,
        images_per_second=climb.images / max(climb.training_seconds, 1e-9),
        seconds=time.monotonic() - climb.started,
        score=task.score,
        rungs=tuple(rung.to_dict(multilabel=task.header.multilabel) for rung in climb.rungs),
        measured=climb.best_measured,
    )


def _on_the_data(climb: Climb, task: Classification, monitor: Monitor) -> dict[str, str]:
    """Return the parts of the report about the pictures: leaks, shortcuts, label errors, the learning curve.

    They cost little, because looks and features are kept. What would take long is left out, and the report says so.
    """
    monitor.doing("examining the pictures")
    recipe, dataset = climb.recipe, climb.dataset
    looked_at = recipe.group_alike or "folds" in dataset.split
    looked_at &= climb.end is None or sum(map(len, dataset.parts.values())) <= MOST_COMPARED
    sections = trust.look_sections(dataset, FirstLook(workers=recipe.workers)) if looked_at else {}
    if dataset.several:
        return sections  # label errors and learning curves are for one label
    pictures = joined([part for part in (dataset.train, dataset.val) if part is not None])
    seconds = trust.seconds_of(len(pictures), task.net.spec.channels[-1], len(dataset.classes))
    cache = FeatureCache(
        Model(task.net, task.header), cache_gb=recipe.cache_gb, device=str(task.device), workers=recipe.workers
    )
    too_long = seconds is None or (climb.end is not None and seconds > MOST_SECONDS)
    if too_long or cache.share(pictures, PLAIN) < KNOWN:
        return sections | trust.left_out(climb.run.path, climb.about.get("data") or "DATA")
    return sections | trust.feature_sections(cache.compute(pictures))
