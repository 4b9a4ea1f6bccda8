"""Start a run or resume one: open the data, prepare the classification task, and record what the run depends on."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from resnetkit.data.dataset import open_read
from resnetkit.data.detection.samples import DetectionDataset
from resnetkit.data.division import NOT_KEPT, Keeping
from resnetkit.data.first_look import FirstLook
from resnetkit.data.published.cifar import CIFARS
from resnetkit.data.reading import NOTHING as NOTHING_SAID
from resnetkit.data.reading import Reading, reading_of
from resnetkit.data.samples import Dataset
from resnetkit.display import shell, type_of
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.files import expanded
from resnetkit.train.checkpoint import load_state
from resnetkit.train.classification import Classification, prepare
from resnetkit.train.effects import check_effects
from resnetkit.train.fitting import describe, expected_error, fit, work_of
from resnetkit.train.lifecycle import TrainResult, arithmetic_of, length_before, train_on, train_task
from resnetkit.train.recipe import Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.version import __version__

MOST_NAMED = 10  # at most this many of the files that are left out are named
NOTHING: Mapping[str, str] = MappingProxyType({})


@contextmanager
def process_kept() -> Iterator[None]:
    """Restore torch's number of threads and random state at the end; a run sets both for the whole process."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


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
    fitted_before: bool = False,
) -> TrainResult:
    """Train as documented at `resnetkit.train`.

    `asked` maps each field of the recipe that a person gave to the place where they gave it; a field without effect is
    an error or a remark (see `check_effects`). `reading` describes the layout of the data. `began` is the
    time.monotonic() from which the recipe's minutes count, by default now. `command` is what a person typed;
    recipe.yaml and the report contain it. With `fitted_before`, the network knows its classes already, so
    that no run is too short.
    """
    started = time.monotonic() if began is None else began
    if not isinstance(recipe, Recipe):
        first = repr(recipe) if isinstance(recipe, str) else type_of(recipe)
        raise UsageError(f"train takes a Recipe first and then the data, not {first}; RECIPES contains recipes by name")
    run = RunFolder(as_path(out, "out", "a path")) if out else None
    if run:
        run.refuse_existing()
    reading = reading.settled()
    dataset, seen = open_new(recipe, data, reading)
    remarks = check_effects(recipe, dataset, asked)
    work = work_of(recipe, len(dataset.train or ()))
    fitted = recipe if work is None else fit(recipe, work)  # with `minutes`, when the time of a step is measured
    task = prepare(fitted, dataset)
    if work is not None:
        steps, error = fitted.total_steps(task.batches_per_epoch) or 0, expected_error(recipe, dataset.name, work)
        remarks += [line] if (line := describe(recipe, fitted, steps=steps, error=error)) else []
    about = {"version": __version__, **arithmetic_of(task), **pictures_of(dataset), "data": place_of(data)}
    about |= {"read_as": reading.given()} if reading.given() else {}
    about |= {"command": command} if command else {}
    if run:
        run.create()
    else:
        run = default_folder(recipe.model, dataset.name).create_beside()
    return train_task(
        task,
        fitted,
        run,
        prepare=lambda smaller: prepare(smaller, dataset, computed_before=task.computed_by),
        about=about,
        remarks=(*remarks, *seen),
        started=started,
        quiet=quiet,
        fresh=True,
        fitted_before=fitted_before,
    )


@process_kept()
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
    fitted_before: bool = False,
) -> TrainResult:
    """Resume a stopped run from its last checkpoint; the weights at the end are those of a run that never stopped.

    `data` is needed if the run was started on a Dataset, or if its pictures have moved; the pictures must be the same.
    `epochs`, `iterations` or `minutes` gives the whole run a new length. If no setting of the recipe depends on the
    length (see `Recipe.bound_to_length`), the weights are those of a run that had this length from the start.
    Otherwise, from this step on, learning rate and crops are those of a run of the new length at the same step; the
    model file and recipe.yaml record the earlier length as `earlier_lengths`.

    With `allow_other_arithmetic`, the run also continues if the network is now computed in another way, for example
    without the kernels; the weights then differ slightly. `reading` describes the layout of the data, by default the
    layout at the start. `fitted_before` is as for `start`.

    Raises the same errors as `train`.
    """
    started = time.monotonic()
    run = RunFolder(as_path(run_folder, "run_folder", "a path"))
    if not run.recipe.is_file():
        raise TrainingError(f"{run.path} is not a run folder (no recipe.yaml). Start a run with: resnetkit train DATA")
    recipe, about = read_recipe(run.recipe, Recipe())
    lengths = {"epochs": epochs, "iterations": iterations, "minutes": minutes}
    longer = recipe.replace(**lengths)
    data = data if data is not None else about.get("data")
    if data is None:
        raise TrainingError(f"{run.recipe} does not name the run's data; give `data` to resnetkit.resume")
    state = load_state(run.state) if run.state.is_file() else None
    try:
        dataset = open_again(recipe, data, about, reading)
    except DataError as error:
        if data != about.get("data"):
            raise
        moved = f"If the pictures have moved: resnetkit train --resume {shell(run.path)} DATA"
        raise DataError(f"{error}. {moved}") from error
    refuse_other_pictures(run, recipe, about, dataset)
    task = prepare(longer, dataset, state.header if state else None, computed_before=about.get("computed_by"))
    if state and (before := length_before(state)) != longer.length and longer.bound_to_length():
        earlier = {name: value for name, value in before.items() if value is not None}
        earlier["until_step"] = state.position.step
        others = [one for one in about.get("earlier_lengths", []) if one != earlier]
        about |= {"earlier_lengths": [*others, earlier]} if state.position.step else {}
    task = _with_lengths(task, about.get("earlier_lengths"))
    remarks: list[str] = []
    now = arithmetic_of(task)
    if other := {name: value for name, value in now.items() if about.get(name, value) != value}:
        named = " and ".join(f"its {n.replace('_', ' ')} was {about[n]} and is {v} now" for n, v in other.items())
        if not allow_other_arithmetic:
            raise TrainingError(
                f"{run.path} can't go on to exactly the same weights: {named}. Go on on a machine like the first one, "
                f"or accept other weights with: resnetkit train --resume {shell(run.path)} --allow-other-arithmetic"
            )
        remarks.append(f"other arithmetic: {named}; the weights differ from those of a run without this change")
        before = {name: about[name] for name in other} | {"until_step": state.position.step if state else 0}
        about |= now | {"earlier_arithmetic": [*about.get("earlier_arithmetic", []), before]}
    return train_task(
        task,
        longer,
        run,
        prepare=lambda smaller: prepare(smaller, dataset, computed_before=task.computed_by),
        about=about,
        state=state,
        remarks=(*remarks, *remarks_on(dataset)),
        started=started,
        quiet=quiet,
        fitted_before=fitted_before,
    )


def _with_lengths(task: Classification, earlier: object) -> Classification:
    """Return the task, with the earlier lengths of the run, if there were any, in the header of its model files."""
    if not earlier:
        return task
    return replace(task, header=replace(task.header, recipe={**task.header.recipe, "earlier_lengths": earlier}))


def refuse_other_pictures(run: RunFolder, recipe: Recipe, about: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise TrainingError if the fingerprints of the pictures differ from those that recipe.yaml records."""
    present = pictures_of(dataset)
    for part, name, samples in (
        ("training", "fingerprint", dataset.train),
        ("validation", "validation_fingerprint", dataset.val),
    ):
        if about.get(name, present[name]) != present[name]:
            raise TrainingError(
                f"{run.path} can't go on: its {part} pictures (fingerprint {about[name]}) are not those of "
                f"{dataset.name} ({len(samples or ()):,} of {len(dataset.classes)} classes, fingerprint "
                f"{present[name]}). Give the same pictures, or start a new run: {train_on(recipe, run, 'DATA')}"
            )


def default_folder(model: str, data: str) -> RunFolder:
    """Return the default run folder: runs/<model>-<data>-<time>."""
    model = model.replace(",", "-").replace("=", "")
    return RunFolder(Path("runs") / f"{model}-{expanded(data).resolve().stem}-{datetime.now():%Y%m%d-%H%M%S}")


def open_for(
    recipe: Recipe, data: str | Path | Dataset, reading: Reading = NOTHING_SAID, keeping: Keeping = NOT_KEPT
) -> Dataset:
    """Open the data, divided into training and validation pictures as the recipe requires."""
    if isinstance(data, Dataset):
        return data
    as_path(data, "data", f"{', '.join(CIFARS)}, a folder, a .csv file or a Dataset")
    return open_read(
        str(data),
        reading,
        train_split=recipe.train_split,
        val_fraction=recipe.val_fraction,
        seed=recipe.seed,
        strict=recipe.strict,
        keeping=keeping,
    )


def open_new(recipe: Recipe, data: str | Path | Dataset, reading: Reading) -> tuple[Dataset, list[str]]:
    """Open the data of a new run, with alike pictures in one part, and return them with the lines to print on them."""
    look = FirstLook(workers=recipe.workers)
    dataset = open_for(recipe, data, reading, Keeping(look.alike_of if recipe.group_alike else None))
    if recipe.group_alike and recipe.strict and look.look_at(dataset) and look.unreadable:
        path, reason = next(iter(look.unreadable.items()))
        more = f" (and {len(look.unreadable) - 1:,} more)" if len(look.unreadable) > 1 else ""
        raise DataError(f"{path}: {reason}{more}. Remove such files, or leave out `strict` to skip them")
    return dataset, [*remarks_on(dataset), *(look.remarks(dataset) if recipe.group_alike else ())]


def open_again(
    recipe: Recipe, data: str | Path | Dataset, about: Mapping[str, Any], reading: Reading | None = None
) -> Dataset:
    """Open the data of a run as `about`, its record in recipe.yaml, says; `reading` replaces the recorded layout.

    The record of the first division is repeated, without looking at the pictures again.
    """
    reading = (reading or reading_of(about.get("read_as") or {})).settled()
    return open_for(recipe, data, reading, Keeping(moved=(about.get("split") or {}).get("moved", "")))


def as_path(given: object, name: str, wanted: str) -> Path:
    """Return the path that a person gave for the argument `name`. Raises UsageError for what is no path."""
    if not isinstance(given, str | Path):
        raise UsageError(f"`{name}` is {given!r:.50}; give {wanted}")
    return expanded(given)


def place_of(data: str | Path | Dataset) -> str | None:
    """Return the absolute path or name of the data, for a resumed run; None for a Dataset, which is in memory."""
    if isinstance(data, Dataset):
        return None
    if str(data) in CIFARS and not (isinstance(data, Path) and data.exists()):
        return str(data)
    return str(expanded(data).resolve())


def pictures_of(dataset: Dataset | DetectionDataset) -> dict[str, Any]:
    """Return the fingerprints and the split of a run's pictures. A resumed run compares them."""
    train, val = dataset.train, dataset.val
    return {
        "name": dataset.name,
        "fingerprint": train.fingerprint() if train is not None else None,
        "validation_fingerprint": val.fingerprint() if val is not None and len(val) else None,
        "split": dict(dataset.split),
    }


def remarks_on(dataset: Dataset | DetectionDataset) -> list[str]:
    """Return the lines to print about a data set when a run begins: its notes, and the files that are left out."""
    named = [f"left out: {path}: {reason}" for path, reason in dataset.skipped[:MOST_NAMED]]
    more = len(dataset.skipped) - len(named)
    rest = [f"left out: {more} more files; resnetkit data check names them"] if more else []
    return [*dataset.notes, *named, *rest]
