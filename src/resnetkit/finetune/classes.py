"""Change the classes of a trained model: rename, merge, remove, add. The trunk stays; the head is fitted again.

Features that are on disk are not computed again, so only the pictures of a new class take time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit.data.dataset import open_dataset
from resnetkit.data.division import Labelled, divided
from resnetkit.data.folders.listing import loose_pictures, subfolders
from resnetkit.data.parts import record
from resnetkit.data.reading import NOTHING
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import shell
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.files import expanded
from resnetkit.finetune.features import FeatureCache, Features
from resnetkit.finetune.head_choice import fit_head
from resnetkit.finetune.rungs import VIEWS
from resnetkit.finetune.stage import measured
from resnetkit.finetune.views import training_views
from resnetkit.modelfile import Model, load, save
from resnetkit.models.resnet import build
from resnetkit.models.spec import nearest_name
from resnetkit.progress import Advance
from resnetkit.train.recipe import Recipe, read_recipe, write_recipe
from resnetkit.train.run import open_again
from resnetkit.train.run_folder import RunFolder

CHANGES = "class_changes"
"""The entry of recipe.yaml with the changes so far, in order; they are repeated when the run's data are opened."""


@dataclass(frozen=True)
class ChangedClasses:
    """A model with other classes."""

    run: Path
    """Its run folder."""
    model: Path
    """Its model file."""
    classes: tuple[str, ...]
    top1_error_percent: float | None
    """On the validation pictures of the new classes; None if it was not measured, because only names changed."""
    computed: int
    """Pictures whose features were not on disk."""
    seconds: float


def change_classes(
    run: str | Path,
    *,
    rename: Mapping[str, str] | None = None,
    merge: Sequence[str] = (),
    into: str | None = None,
    remove: Sequence[str] = (),
    add: Sequence[str | Path] = (),
    out: str | Path | None = None,
    in_place: bool = False,
    data: str | Path | None = None,
    cache_gb: float = 4.0,
    progress: Callable[[str, int], Advance] | None = None,
) -> ChangedClasses:
    """Write a run folder with a model of other classes; the old run is not changed, unless `in_place`.

    The changes are made in this order: `rename` maps old names to new ones; the classes in `merge` become one, which is
    called `into`, by default the first of them; those in `remove` go, and their pictures with them; each folder in
    `add` is a new class of this name, or contains class folders. A class that is there already gets more pictures. A
    fifth of the new pictures, or the run's `val_fraction`, is used for validation.

    `out` is the new run folder, by default RUN-classes. `data` are the run's pictures, if they have moved. `progress`
    shows the computing of features: it gets a text and a number of pictures, and returns an Advance.

    Raises UsageError for classes that do not exist, names that are taken, and fewer than two classes; DataError for
    pictures that can't be read; TrainingError for a folder that is not a run, and an `out` that exists.
    """
    began = time.monotonic()
    old = RunFolder(expanded(run))
    if not old.recipe.is_file() or not old.best.is_file():
        raise TrainingError(f"{old.path} is not a finished run (no {old.recipe.name} or {old.best.name})")
    if in_place and out is not None:
        raise UsageError("`in_place` changes the run itself; leave `out` out")
    changes: dict[str, Any] = {
        "rename": dict(rename or {}),
        "merge": list(merge),
        "into": into,
        "remove": list(remove),
        "add": [str(expanded(folder).resolve()) for folder in add],
    }
    if not any(changes[name] for name in ("rename", "merge", "remove", "add")):
        raise UsageError("nothing to change; give `add`, `merge`, `rename` or `remove`")
    if into and not merge:
        raise UsageError("`into` is the name of merged classes; give `merge`, too, or `rename`")
    new = old if in_place else RunFolder(expanded(out) if out else old.path.with_name(f"{old.path.name}-classes"))
    if not in_place:
        new.refuse_existing()
    model = load(old.best)
    recipe, about = read_recipe(old.recipe, Recipe())
    earlier = list(about.get(CHANGES) or [])
    names = _checked(model.header.classes, changes)
    if names is None and model.header.multilabel:
        raise UsageError(
            f"{old.path} gives several labels for a picture, and classes of such a run can only be renamed (`rename`); "
            f"change the list, and fit the head again on the kept features: "
            f"resnetkit train LIST --init {shell(old.path)} --rung head"
        )
    result = None
    computed = 0
    if names is not None:  # only the names change: the same weights under other names
        made = Model(model.net, replace(model.header, classes=names))
    else:
        dataset = open_changed(recipe, about, [*earlier, changes], data=data)
        made, result, computed = _fitted(model, recipe, dataset, cache_gb=cache_gb, progress=progress)
    about = dict(about) | {CHANGES: [*earlier, changes]}
    if data is not None:
        about["data"] = str(expanded(data).resolve())
    new.create()
    with new.locked():
        save(new.best, made.net, made.header)
        save(new.last, made.net, made.header)
        write_recipe(new.recipe, recipe, about)
    return ChangedClasses(
        run=new.path,
        model=new.best,
        classes=made.header.classes,
        top1_error_percent=None if result is None else result.top1_error_percent,
        computed=computed,
        seconds=time.monotonic() - began,
    )


def open_changed(
    recipe: Recipe, about: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, data: str | Path | None = None
) -> Dataset:
    """Open the data of a run, divided as in its training, and make changes of the classes in their order."""
    place = data if data is not None else about.get("data")
    if place is None:
        raise TrainingError("the run does not name its data; give `data`")
    dataset = open_again(recipe, place, about)
    for change in changes:
        dataset = _changed(dataset, change, val_fraction=recipe.val_fraction, seed=recipe.seed)
    return dataset


def _checked(classes: tuple[str, ...], changes: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the new names if only names change, else None. Raises UsageError for names that do not fit."""
    renamed = _renamed(classes, changes["rename"])
    for field in ("merge", "remove"):
        for name in changes[field]:
            _place_of(renamed, name, field)
    if changes["merge"] and len(set(changes["merge"])) < 2:
        raise UsageError("`merge` takes two classes or more")
    return renamed if not changes["merge"] and not changes["remove"] and not changes["add"] else None


def _renamed(classes: tuple[str, ...], rename: Mapping[str, str]) -> tuple[str, ...]:
    for name in rename:
        _place_of(classes, name, "rename")
    names = tuple(rename.get(name, name) for name in classes)
    if len(set(names)) < len(names):
        taken = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"`rename`: there would be two classes {taken!r}; to make them one, give `merge`")
    if "" in names:
        raise UsageError("`rename`: a class needs a name")
    return names


def _place_of(classes: Sequence[str], name: str, field: str) -> int:
    if name not in classes:
        near = nearest_name(name, classes)
        hint = f"; did you mean {near!r}?" if near else f"; there are {', '.join(map(repr, classes[:10]))}"
        raise UsageError(f"`{field}`: no class is called {name!r}{hint}")
    return list(classes).index(name)


def _changed(dataset: Dataset, change: Mapping[str, Any], *, val_fraction: float, seed: int) -> Dataset:
    """Return the data with other classes."""
    classes = _renamed(dataset.classes, change["rename"])
    names: list[str | None] = list(classes)  # the new name of each old class; None for a removed one
    if change["merge"]:
        target = change["into"] or change["merge"][0]
        if target in classes and target not in change["merge"]:
            raise UsageError(f"`into`: there is a class {target!r} already; name it in `merge`, too")
        names = [target if name in change["merge"] else name for name in names]
    names = [None if name in change["remove"] else name for name in names]
    fresh = [_new_pictures(Path(folder), val_fraction=val_fraction, seed=seed) for folder in change["add"]]
    kept = {name for name in names if name is not None} | {name for one in fresh for name in one.classes}
    if len(kept) < 2:
        raise UsageError(f"{len(kept)} class would be left; a classifier needs two or more")
    final = tuple(sorted(kept))
    index = {name: place for place, name in enumerate(final)}

    def part(name: str) -> Samples | None:
        old: Samples | None = getattr(dataset, name)
        pieces: list[tuple[list[Path], list[int]]] = []
        if old is not None:
            new_names = [names[label] for label in old.labels]
            rows = [(old.path(i), index[new]) for i, new in enumerate(new_names) if new is not None]
            pieces.append(([path for path, _ in rows if path is not None], [label for _, label in rows]))
        for one in fresh:
            own: Samples | None = getattr(one, name)
            if own is not None:
                pieces.append((list(own.paths or ()), [index[own.classes[label]] for label in own.labels]))
        paths, labels = [p for piece, _ in pieces for p in piece], [label for _, piece in pieces for label in piece]
        return Samples(final, np.array(labels, np.int64), paths=tuple(paths)) if paths else None

    if any(samples.images is not None for samples in dataset.parts.values()):
        raise UsageError("classes can be changed for pictures in files, not for CIFAR")
    return replace(dataset, classes=final, train=part("train"), val=part("val"), test=part("test"))


def _new_pictures(folder: Path, *, val_fraction: float, seed: int) -> Dataset:
    """Return the pictures of a folder that is a class, or contains class folders, divided into train and val."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}; give a folder of pictures"
        )
    if subfolders(folder):
        return open_dataset(folder, val_fraction=val_fraction, seed=seed)
    pictures = [Labelled(f"{folder.name}/{path.name}", path, folder.name, str(path)) for path in loose_pictures(folder)]
    if not pictures:
        raise DataError(f"{folder} contains no pictures")
    return divided(str(folder), {"train": pictures}, val_fraction=val_fraction, seed=seed, reading=NOTHING)


def _fitted(
    model: Model,
    recipe: Recipe,
    dataset: Dataset,
    *,
    cache_gb: float,
    progress: Callable[[str, int], Advance] | None,
) -> tuple[Model, Evaluation | None, int]:
    """Return the model with a new head for the classes of `dataset`, its validation, and the pictures computed."""
    if dataset.train is None:
        raise DataError(f"{dataset.name} has no training pictures")
    cache = FeatureCache(model, cache_gb=cache_gb, workers=recipe.workers)
    views = training_views(VIEWS, seed=recipe.seed, flip=recipe.flip)
    # A further view costs seconds where most of it is on disk, and else as much as the first one.
    views = views[:1] + tuple(view for view in views[1:] if cache.share(dataset.train, view) >= 0.5)
    total = len(dataset.train) * len(views) + len(dataset.val or ())
    counts = progress("features", total) if progress else (lambda done: None)
    val: Features | None = None
    if dataset.val is not None and len(dataset.val):
        val = cache.compute(dataset.val, strict=recipe.strict, advance=counts)
    train = cache.compute(dataset.train, views=views, strict=recipe.strict, advance=counts)
    head = fit_head(train, val, balanced=recipe.balance != "off").head
    net = build(replace(model.net.spec, classes=len(dataset.classes)))
    weights = {name: tensor for name, tensor in model.net.state_dict().items() if not name.startswith("fc.")}
    weights |= {"fc.weight": torch.from_numpy(head.weight), "fc.bias": torch.from_numpy(head.bias)}
    net.load_state_dict(weights)
    found = None if val is None else measured(head.batches(val.pool()), val)
    evaluation = Evaluation.from_state(found.details) if found else None
    header = replace(
        model.header,
        spec=net.spec,
        classes=dataset.classes,
        metrics={"part": "val", "step": 0, "epoch": 0.0} | dict(found.values) if found else {},
        data=dict(model.header.data)
        | {
            "fingerprint": dataset.train.fingerprint(),
            "pictures": record(dataset.train, *filter(None, [model.header.data.get("pictures")])),
        },
        calibration=evaluation.calibration if evaluation else None,
    )
    return Model(net.eval(), header), evaluation, cache.computed
