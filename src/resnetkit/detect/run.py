"""Start the training of a detector, or resume one: the data, the first weights, and what the run depends on."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit.data.detection.anchors import Anchors, fit_anchors
from resnetkit.data.detection.dataset import open_detection
from resnetkit.data.detection.division import Kept
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.computing import use_kernels
from resnetkit.detect.files import DetectorModel, empty_detector, header_of, load_detector
from resnetkit.detect.model import Detector, map_strides
from resnetkit.detect.pictures import TrainingPictures
from resnetkit.detect.recipe import DetectionRecipe
from resnetkit.detect.spec import DetectorSpec, find_detector
from resnetkit.detect.task import DetectionTask
from resnetkit.device import choose_device
from resnetkit.display import shell
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.files import expanded
from resnetkit.location import short_name
from resnetkit.modelfile import Header, Model, inspect, load
from resnetkit.models.freezing import freeze
from resnetkit.models.spec import ModelSpec, parse_spec
from resnetkit.train.checkpoint import load_state
from resnetkit.train.lifecycle import DETECTION, TrainResult, arithmetic_of, train_task
from resnetkit.train.network import trunk as body_of
from resnetkit.train.recipe import Recipe, read_recipe
from resnetkit.train.run import default_folder, pictures_of, process_kept, remarks_on
from resnetkit.train.run_folder import RunFolder
from resnetkit.version import __version__

USUAL_SIZE = 320
ANCHORS = "anchors"
"""Entry of `Header.data`: what fitted anchors reach, as `fit` returns it."""
PREDICTOR = "roi_heads.box_predictor."
"""Begin of the names of the tensors that belong to the classes."""


@process_kept()
def start(
    recipe: DetectionRecipe,
    data: str | Path | DetectionDataset,
    *,
    out: str | Path | None = None,
    quiet: bool = False,
    began: float | None = None,
    command: str | None = None,
) -> TrainResult:
    """Train a detector on `data`, write a run folder, and return the result.

    `data` is a folder or file with boxes that `open_detection` reads, or a DetectionDataset. `out` is the run folder,
    by default runs/<model>-<data>-<time>. `began` is the time.monotonic() from which the recipe's minutes count.
    `command` is what a person typed; recipe.yaml and the report contain it.

    Raises the errors of `resnetkit.train`.
    """
    started = time.monotonic() if began is None else began
    run = RunFolder(expanded(out)) if out else None
    if run:
        run.refuse_existing()
    dataset = data if isinstance(data, DetectionDataset) else open_for(recipe, str(data))
    task = prepare(recipe, dataset)
    about: dict[str, Any] = {
        "version": __version__,
        **arithmetic_of(task),
        **pictures_of(dataset),
        "data": None if isinstance(data, DetectionDataset) else str(expanded(data).resolve()),
        DETECTION: recipe.to_dict(),
    }
    about |= {"command": command} if command else {}
    if run:
        run.create()
    else:
        run = default_folder(f"{recipe.model}-{recipe.detector}", dataset.name).create_beside()
    return train_task(
        task,
        task.recipe,
        run,
        about=about,
        remarks=_remarks_on(dataset, task.header),
        started=started,
        quiet=quiet,
        fresh=True,
    )


@process_kept()
def resume(
    run_folder: str | Path,
    data: str | Path | DetectionDataset | None = None,
    *,
    lengths: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Resume a stopped training of a detector; the weights at the end are those of a run that never stopped.

    `data` is needed if the pictures have moved. `lengths` are new epochs, iterations or minutes for the whole run.
    Raises the errors of `resnetkit.resume`.
    """
    started = time.monotonic()
    run = RunFolder(expanded(run_folder))
    if not run.recipe.is_file():
        raise TrainingError(f"{run.path} is not a run folder (no recipe.yaml)")
    _, about = read_recipe(run.recipe, Recipe())
    if DETECTION not in about:
        raise TrainingError(f"{run.path} trained no detector; go on with: resnetkit train --resume {shell(run.path)}")
    recipe = DetectionRecipe.from_dict(about[DETECTION]).replace(**(lengths or {}))
    data = data if data is not None else about.get("data")
    if data is None:
        raise TrainingError(f"{run.recipe} does not name the run's data; give the data, too")
    dataset = data if isinstance(data, DetectionDataset) else open_for(recipe, str(data), split=about.get("split"))
    now = pictures_of(dataset)
    if other := [name for name in now if about.get(name, now[name]) != now[name] and name.endswith("fingerprint")]:
        raise TrainingError(
            f"{run.path} can't go on: the pictures or boxes of {dataset.name} differ from those of its start "
            f"({other[0].replace('_', ' ')} {about[other[0]]}, now {now[other[0]]}). Give the same ones, or "
            "start a new run"
        )
    state = load_state(run.state) if run.state.is_file() else None
    task = prepare(recipe, dataset, state.header if state else None, computed_by=about.get("computed_by"))
    arithmetic = arithmetic_of(task)
    if changed := [name for name in arithmetic if about.get(name, arithmetic[name]) != arithmetic[name]]:
        raise TrainingError(
            f"{run.path} can't go on to the same weights: its {changed[0].replace('_', ' ')} was {about[changed[0]]} "
            f"and is {arithmetic[changed[0]]} now; go on on a machine like the first one"
        )
    return train_task(
        task,
        task.recipe,
        run,
        about=about | {DETECTION: recipe.to_dict()},
        state=state,
        remarks=_remarks_on(dataset, task.header),
        started=started,
        quiet=quiet,
    )


def is_detection(run_folder: str | Path) -> bool:
    """Whether a run folder is that of a detector's training."""
    recipe = RunFolder(expanded(run_folder)).recipe
    return recipe.is_file() and DETECTION in read_recipe(recipe, Recipe())[1]


def open_for(recipe: DetectionRecipe, data: str, *, split: Mapping[str, Any] | None = None) -> DetectionDataset:
    """Open the data, divided into training and validation pictures as the recipe requires.

    `split` is the record of an earlier division, which is repeated.
    """
    kept = Kept(recipe.group_alike, recipe.group_by, (split or {}).get("drawn"))
    return open_detection(
        data, val_fraction=recipe.val_fraction, seed=recipe.seed, annotations=recipe.annotations, kept=kept
    )


def open_as_trained(data: str, header: Header, *, annotations: str | None = None) -> DetectionDataset:
    """Open data for the evaluation of a detector; a val part is drawn as it was for its training.

    If there are several forms of annotations, `annotations` chooses one; unset: the one that was chosen for training.
    """
    split = header.data.get("split", {})
    used = {name: split[name] for name in ("val_fraction", "seed") if name in split}
    return open_detection(
        data,
        **used,
        annotations=annotations,
        usual=header.recipe.get("annotations"),
        kept=Kept(drawn=split.get("drawn")),
    )


def prepare(
    recipe: DetectionRecipe, dataset: DetectionDataset, header: Header | None = None, *, computed_by: str | None = None
) -> DetectionTask:
    """Build the task of `recipe` on `dataset`. With the `header` of a run's state, no first weights are read.

    `computed_by` is the way in which a resumed run was computed until now: kernels or eager.

    Raises UsageError and DataError if recipe, first weights and data do not fit together.
    """
    if dataset.train is None or not len(dataset.train):
        raise DataError(f"{dataset.name} has no training pictures; it has {', '.join(dataset.parts) or 'no parts'}")
    if not any(objects.trained.any() for objects in dataset.train.objects):
        raise DataError(f"{dataset.name} has no boxes in its {len(dataset.train):,} training pictures")
    device = choose_device(recipe.device)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    if header is None:
        net, origin, anchors = _first(recipe, dataset)
        header = header_of(
            net,
            dataset.classes,
            recipe=recipe.to_dict() | {"init": short_name(origin)},
            data={
                "name": short_name(dataset.name),
                "fingerprint": dataset.train.fingerprint(),
                "split": dict(dataset.split),
                "shorter_side": round(float(np.median([min(size) for size in dataset.train.sizes]))),
                **({ANCHORS: anchors} if anchors else {}),
            },
        )
    else:
        net = empty_detector(header, source="the state of the run").to_empty(device="cpu")
        header = replace(header, recipe={**recipe.to_dict(), "init": header.recipe.get("init")})
    freeze(net.body, recipe.freeze)
    net = net.to(memory_format=torch.channels_last).to(device)
    by_kernels = device.type == "cpu" and computed_by in (None, "kernels") and use_kernels(net)
    return DetectionTask(
        net=net,
        computed_by="kernels" if by_kernels else "eager",
        header=header,
        recipe=recipe.for_loop(),
        pictures=TrainingPictures(
            dataset.train, recipe, net.preprocess.size, net.resized, workers_change=device.type != "cpu"
        ),
        val=dataset.val if dataset.val is not None and len(dataset.val) else None,
        device=device,
        frozen=recipe.freeze,
    )


def _first(recipe: DetectionRecipe, dataset: DetectionDataset) -> tuple[Detector, str, dict[str, float]]:
    """Return the detector with its first weights, where these are from, and what its fitted anchors reach."""
    init = recipe.init or recipe.model
    try:
        kind = inspect(init).kind
    except (DataError, UsageError) as error:
        if recipe.init:
            raise
        raise type(error)(
            f"{error}. A detector begins with the weights of a classifier; give them with `init`"
        ) from error
    if kind == "detector":
        if recipe.fit_anchors:
            raise UsageError(
                f"{init} is a detector, whose weights are for its own anchors; leave out `fit_anchors`, or give a "
                "classifier as `init`"
            )
        if recipe.context and not load_detector(init).net.spec.context:
            raise UsageError(f"{init} is a detector without `context`; leave it out, or give a classifier as `init`")
        return _from_detector(recipe, dataset, load_detector(init)), init, {}
    net, anchors = _from_classifier(recipe, dataset, load(init), init)
    return net, init, anchors


def _from_detector(recipe: DetectionRecipe, dataset: DetectionDataset, first: DetectorModel) -> Detector:
    """Return the detector of another one's weights; the outputs for classes are new if the classes differ."""
    preprocess = first.header.preprocess
    preprocess = preprocess if recipe.size is None else replace(preprocess, size=recipe.size, resize=None)
    net = Detector(first.net.trunk, first.net.spec, preprocess, classes=len(dataset.classes))
    own, weights = net.state_dict(), first.net.state_dict()
    if first.header.classes != dataset.classes:
        weights |= {name: tensor for name, tensor in own.items() if name.startswith(PREDICTOR)}
    net.load_state_dict(weights)
    return net


def _from_classifier(
    recipe: DetectionRecipe, dataset: DetectionDataset, first: Model, init: str
) -> tuple[Detector, dict[str, float]]:
    """Return a detector on the trunk of a classifier, and what its anchors reach if they are fitted."""
    asked = parse_spec(recipe.model)
    if body_of(asked) != body_of(first.header.spec):
        raise UsageError(f"{init} does not contain a {recipe.model}; give its network as `model`")
    given = first.header.preprocess
    if len(given.mean) != 3:
        raise UsageError(f"{init} subtracts a mean per pixel, which fits one picture size only; give another `init`")
    preprocess = Preprocess(recipe.size or USUAL_SIZE, mean=given.mean, std=given.std, mode=given.mode)
    trunk = replace(asked, norm="frozen", classes=len(dataset.classes))
    spec = replace(find_detector(recipe.detector), context=recipe.context)
    anchors: dict[str, float] = {}
    if recipe.fit_anchors and dataset.train is not None:
        spec, anchors = fit(spec, trunk, dataset.train, shorter_side=preprocess.size)
    net = Detector(trunk, spec, preprocess, classes=len(dataset.classes))
    weights = {name: tensor for name, tensor in first.net.state_dict().items() if not name.startswith("fc.")}
    net.body.load_state_dict(weights)
    return net, anchors


def fit(
    spec: DetectorSpec, trunk: ModelSpec, samples: DetectionSamples, *, shorter_side: int
) -> tuple[DetectorSpec, dict[str, float]]:
    """Return the detector with anchors that fit the boxes of `samples`, and which share of the boxes they reach.

    The shares, in percent, are before_percent and after_percent; boxes is the number of boxes. `shorter_side` is that
    of a resized picture, in pixels.
    """
    given = Anchors(spec.anchor_sizes, spec.anchor_ratios)
    fitted = fit_anchors(samples, given, map_strides(trunk, spec), shorter_side=shorter_side, longest_side=spec.longest)
    reached = {
        "before_percent": 100 * fitted.recall_before,
        "after_percent": 100 * fitted.recall,
        "boxes": fitted.boxes,
    }
    return replace(spec, anchor_sizes=fitted.anchors.sizes, anchor_ratios=fitted.anchors.ratios), reached


def _remarks_on(dataset: DetectionDataset, header: Header) -> list[str]:
    """Return the lines to print about the data when a run begins."""
    counted = (
        f"{name}: {sum(map(len, samples.objects)):,} boxes in {len(samples):,} pictures"
        for name, samples in dataset.parts.items()
    )
    lines = [*counted, *remarks_on(dataset)]
    if anchors := header.data.get(ANCHORS):
        lines.append(
            f"anchors: at their places they overlap {anchors['after_percent']:.1f} % of {anchors['boxes']:,} boxes by "
            f"half or more, fitted to them; {anchors['before_percent']:.1f} % before"
        )
    return lines
