"""Evaluation of a model in float32: on the centre crop, on ten crops, or on whole pictures at several scales."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnetkit.calibration import Calibration
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.loader import Loader
from resnetkit.data.parts import Part, choose_part, open_as_trained, recognise
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.device import choose_device
from resnetkit.display import type_of
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.batches import evaluation_batch
from resnetkit.evaluation.metrics import Evaluation, mean_log_probabilities
from resnetkit.evaluation.multilabel import MultiLabelEvaluation, mean_logits
from resnetkit.evaluation.records import Records, joined
from resnetkit.modelfile import Model, load
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance, ignore

logger = logging.getLogger("resnetkit")

Views = Literal["single", "ten-crop", "multi-scale"]
Pixels = list[NDArray[np.uint8]]

PICTURES_AHEAD = 8  # decoded pictures per worker that wait in memory, so that no worker waits for a slow picture

SCALES = (224, 256, 384, 480, 640)
"""Shorter sides of pictures in multi-scale testing (Table 4), for networks of 224 pixels; in proportion for others."""


def evaluate(
    model: Model | str | Path,
    data: Dataset | Part | Samples | str | Path,
    *,
    split: str = "auto",
    views: Views = "single",
    batch_size: int | None = None,
    workers: int = 2,
    strict: bool = False,
    records: int = 0,
    device: str = "auto",
    see: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    advance: Advance = ignore,
) -> Evaluation:
    """Measure the errors of `model` on labelled pictures; each picture is counted once.

    `model` is a loaded model, or an argument for `load`. `data` is cifar10, cifar100, a folder, a CSV file or a
    Dataset. `split` names the part of the data: train, val, test or all. auto is test, else val, else all, and never
    pictures that trained the model. Samples, or a Part, are evaluated whole. The result contains the name of the part
    and the reason for it. A warning is logged if some of the pictures trained the model.

    `views` is single, the centre crop; ten-crop, the mean probability over ten crops (Sec. 3.4); or multi-scale, the
    mean probability over the whole picture at five scales. Classes are matched by name, in any order. `batch_size` is
    by default `evaluation_batch`: 250, or as many as fit into half a GiB. The errors do not depend on it or on
    `workers`, the threads that decode pictures. `records` is the number of most probable classes to keep for each
    picture, in `Evaluation.records`; 0 keeps no records, and then the result has no calibration. Probabilities in
    records of a single view are those of `predict`, at the model's temperature; the loss is always that of the network
    itself, at temperature 1, as in training. `see` is called with the logits (n, classes), the labels and the indices
    (n,) of each batch of a single view. `advance` is called after each batch with the number of its
    pictures.

    Raises UsageError for an argument that is not valid. Raises DataError if the pictures have a class that the model
    does not have, if no picture can be read, if auto finds only pictures that trained the model, and, with `strict`,
    at the first unreadable file.
    """
    model = model if isinstance(model, Model) else load(model)
    if model.header.multilabel:
        raise UsageError("the model gives several labels for a picture; use `evaluate_multilabel`")
    part = data if isinstance(data, Part) else _part(data, split, trained_on=model.header.data, strict=strict)
    result = evaluate_net(
        moved(model.net, choose_device(device)),
        part.samples.as_classes(model.header.classes),
        model.header.preprocess,
        views=views,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        records=records,
        calibration=model.header.calibration,
        see=see,
        advance=advance,
    )
    result.part, result.of, result.why, result.trained_on = part.name, part.of, part.why, part.trained_on
    if part.trained_on and not isinstance(data, Part):
        logger.warning("%s", result.notes[0])
    return result


def _part(data: Dataset | Samples | str | Path, split: str, *, trained_on: Mapping[str, Any], strict: bool) -> Part:
    if isinstance(data, Samples):
        known = int(recognise(data, trained_on).mask.sum())
        return Part("", "", data, "the pictures that were given", known)
    if isinstance(data, str | Path):
        data = open_as_trained(str(data), trained_on, strict=strict)
    if not isinstance(data, Dataset):
        raise UsageError(f"`data` is {type_of(data)}; give a name, a path, a Dataset or Samples")
    return choose_part(data, trained_on, split)


def moved(net: ResNet, device: torch.device) -> ResNet:
    """Return the network on `device`: `net` itself if it is on this device, else a copy."""
    return net if next(net.parameters()).device == device else deepcopy(net).to(device)


@torch.no_grad()
@exact_float32()
def evaluate_net(
    net: ResNet,
    samples: Samples,
    preprocess: Preprocess,
    *,
    views: Views = "single",
    batch_size: int | None = None,
    workers: int = 2,
    strict: bool = False,
    records: int = 0,
    calibration: Calibration | None = None,
    see: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    advance: Advance = ignore,
) -> Evaluation:
    """Measure the errors of a network, whose classes are those of `samples`. The network is left in evaluation mode.

    `calibration` gives the temperature of a single view's records. Other arguments are those of `evaluate`. An
    exception from `advance` ends the evaluation.
    """
    _check(views, records=records, batch_size=batch_size, workers=workers)
    if samples.several:
        raise DataError("these pictures have several labels each, and the model gives one class; give other data")
    device = next(net.parameters()).device
    result = Evaluation(samples.classes, calibration=calibration if views == "single" else None)
    kept: list[Records] = []
    for logits, labels, indices in each_batch(
        net,
        samples,
        preprocess,
        views=views,
        mean=mean_log_probabilities,
        unreadable=result.unreadable,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    ):
        if see and views == "single":
            see(logits, labels, indices)
        result.add(logits.log_softmax(dim=1) if views == "single" else logits, labels.to(device))
        if records:
            kept.append(Records.of(logits, labels, indices, top=records, calibration=result.calibration))
        advance(len(labels))
    if not result.images:
        raise DataError(f"none of the {len(samples)} pictures can be read; see resnetkit data check")
    result.records = joined(kept) if records else None
    return result


@torch.no_grad()
@exact_float32()
def evaluate_labels(
    net: ResNet,
    samples: Samples,
    preprocess: Preprocess,
    *,
    views: Views = "single",
    batch_size: int | None = None,
    workers: int = 2,
    strict: bool = False,
    calibration: Calibration | None = None,
    advance: Advance = ignore,
) -> MultiLabelEvaluation:
    """Measure a network whose classes are those of `samples`, where pictures have several labels.

    The network is left in evaluation mode. Arguments are those of `evaluate_multilabel`. An exception from `advance`
    ends the evaluation.
    """
    _check(views, batch_size=batch_size, workers=workers)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    unreadable: dict[Path, str] = {}
    for logits, labels, indices in each_batch(
        net,
        samples.with_several(),
        preprocess,
        views=views,
        mean=mean_logits,
        unreadable=unreadable,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    ):
        kept.append((logits.cpu(), labels, indices))
        advance(len(labels))
    if not kept:
        raise DataError(f"none of the {len(samples)} pictures can be read; see resnetkit data check")
    return MultiLabelEvaluation.of_batches(samples.classes, kept, calibration=calibration, unreadable=unreadable)


def evaluate_multilabel(
    model: Model | str | Path,
    data: Dataset | Part | Samples | str | Path,
    *,
    split: str = "auto",
    views: Views = "single",
    batch_size: int | None = None,
    workers: int = 2,
    strict: bool = False,
    device: str = "auto",
    advance: Advance = ignore,
) -> MultiLabelEvaluation:
    """Measure a multi-label `model` on labelled pictures; each picture is counted once.

    Arguments and errors are those of `evaluate`. Pictures with one label each are taken as pictures that have this
    label and no other. Raises UsageError for a model that gives one class for a picture.
    """
    model = model if isinstance(model, Model) else load(model)
    if not model.header.multilabel:
        raise UsageError("the model gives one class for a picture; use `evaluate`")
    part = data if isinstance(data, Part) else _part(data, split, trained_on=model.header.data, strict=strict)
    result = evaluate_labels(
        moved(model.net, choose_device(device)),
        part.samples.as_classes(model.header.classes),
        model.header.preprocess,
        views=views,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        calibration=model.header.calibration,
        advance=advance,
    )
    result = replace(result, part=part.name, of=part.of, why=part.why, trained_on=part.trained_on)
    if part.trained_on and not isinstance(data, Part):
        logger.warning("%s", result.notes[0])
    return result


def _check(views: str, **numbers: int | None) -> None:
    """Raise UsageError for views that there are not, and for numbers out of range."""
    if views not in get_args(Views):
        raise UsageError(f"`views` is {views!r}; choose one of {', '.join(get_args(Views))}")
    for name, value in numbers.items():
        least = 1 if name == "batch_size" else 0
        if value is not None and (not isinstance(value, int) or value < least):
            raise UsageError(f"`{name}` is {value!r}; it must be a whole number, at least {least}")


def each_batch(
    net: ResNet,
    samples: Samples,
    preprocess: Preprocess,
    *,
    views: Views,
    mean: Callable[[Tensor], Tensor],
    unreadable: dict[Path, str],
    batch_size: int | None,
    workers: int,
    strict: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield logits (n, classes), labels and indices of each batch of readable pictures, in order.

    With several views, a batch is one picture, and its logits are `mean` of those of the views, (views, 1, classes).
    Files that can't be read are added to `unreadable`, with the reason.
    """
    device = next(net.parameters()).device
    normalize = Normalize(preprocess, device)
    net.eval()
    if views == "single":
        if batch_size is None:
            batch_size = evaluation_batch(net, preprocess.size)
        loader = Loader(samples, preprocess, batch_size=batch_size, workers=workers, strict=strict)
        for batch in loader.epoch():
            yield net(normalize(batch.images)), batch.labels, batch.indices
        unreadable.update(loader.unreadable)
        return
    cut = ten_crops(preprocess) if views == "ten-crop" else scales(preprocess)
    for pictures, index in each_picture(samples, preprocess, cut, unreadable, workers=workers, strict=strict):
        logits = [net(normalize(as_batch(pixels))) for pixels in pictures]
        label, place = torch.from_numpy(samples.labels[[index]]), torch.tensor([index])
        yield mean(torch.cat(logits)[:, None]), label, place


def ten_crops(preprocess: Preprocess) -> Callable[[Image.Image], Pixels]:
    """Return a function that cuts a picture into its corners, its centre and their mirror images: one batch of ten.

    Raises UsageError if a crop would be the whole picture.
    """
    if preprocess.shorter_side == preprocess.size:
        raise UsageError(
            f"`views` ten-crop: this model uses whole pictures of {preprocess.size} pixels; give `views` single"
        )
    return lambda picture: [preprocess.views(picture, "ten-crop")]


def scales(preprocess: Preprocess) -> Callable[[Image.Image], Pixels]:
    """Return a function that resizes a whole picture to each scale: a batch of one picture for each scale.

    Raises UsageError for a `fit` other than crop: the network knows pictures of one size only.
    """
    if preprocess.fit != "crop":
        raise UsageError(f"`views` multi-scale: this model has `fit` {preprocess.fit}; give `views` single")
    sides = [round(scale * preprocess.size / SCALES[0]) for scale in SCALES]
    return lambda picture: [preprocess.scaled(picture, side)[None] for side in sides]


def as_batch(pixels: NDArray[np.uint8]) -> Tensor:
    """Return pixels, uint8 (n, height, width, channels), as a tensor (n, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def each_picture(
    samples: Samples,
    preprocess: Preprocess,
    cut: Callable[[Image.Image], Pixels],
    unreadable: dict[Path, str],
    *,
    workers: int,
    strict: bool,
) -> Iterator[tuple[Pixels, int]]:
    """Yield the views of each readable picture and its index in `samples`, in order.

    `cut` returns the views of a picture. Other files are added to `unreadable`, with the reason. Raises DataError for
    an unreadable picture in memory, and with `strict` for every unreadable picture.
    """

    def read(index: int) -> Pixels:
        return cut(open_picture(samples.source(index), mode=preprocess.mode))

    indices = range(len(samples))
    reading = prefetch(read, indices, workers=workers, ahead=PICTURES_AHEAD * workers, path_of=samples.path)
    with closing(reading):
        for index, views in zip(indices, reading, strict=True):
            if not isinstance(views, Failure):
                yield views, index
            elif views.path is None:
                raise DataError(f"picture {index}: {views.reason}")
            elif strict:
                raise DataError(views.reason, name=str(views.path))
            else:
                unreadable[views.path] = views.reason
                logger.warning("skipped %s", views)
