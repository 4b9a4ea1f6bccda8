"""Evaluation of a model in float32: on the centre crop, on ten crops, or on whole pictures at several scales."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from copy import deepcopy
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
    if views not in get_args(Views):
        raise UsageError(f"`views` is {views!r}; choose one of {', '.join(get_args(Views))}")
    for name, value, least in (("records", records, 0), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise UsageError(f"`{name}` is {value!r}; it must be a whole number, at least {least}")
    device = next(net.parameters()).device
    normalize = Normalize(preprocess, device)
    result = Evaluation(samples.classes)
    kept: list[Records] = []

    def add(logits: Tensor, log_probabilities: Tensor, labels: Tensor, indices: Tensor) -> None:
        result.add(log_probabilities, labels.to(device))
        if records:
            kept.append(Records.of(logits, labels, indices, top=records, calibration=result.calibration))
        advance(len(labels))

    net.eval()
    if views == "single":
        result.calibration = calibration
        if batch_size is None:
            batch_size = evaluation_batch(net, preprocess.size)
        loader = Loader(samples, preprocess, batch_size=batch_size, workers=workers, strict=strict)
        for batch in loader.epoch():
            logits = net(normalize(batch.images))
            if see:
                see(logits, batch.labels, batch.indices)
            add(logits, logits.log_softmax(dim=1), batch.labels, batch.indices)
        result.unreadable = loader.unreadable
    else:
        cut = ten_crops(preprocess) if views == "ten-crop" else scales(preprocess)
        for pictures, index in each_picture(
            samples, preprocess, cut, result.unreadable, workers=workers, strict=strict
        ):
            logits = [net(normalize(as_batch(pixels))) for pixels in pictures]
            log_probabilities = mean_log_probabilities(torch.cat(logits)[:, None])
            label, place = torch.tensor([samples.labels[index]]), torch.tensor([index])
            add(log_probabilities, log_probabilities, label, place)
    if not result.images:
        raise DataError(f"none of the {len(samples)} pictures can be read; see resnetkit data check")
    result.records = joined(kept) if records else None
    return result


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
