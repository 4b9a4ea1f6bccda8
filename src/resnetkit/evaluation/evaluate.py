"""The one evaluation, always in float32: a single view, ten crops, or fully convolutional at several scales."""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnetkit.data.loader import Loader, open_sample
from resnetkit.data.parts import Part, choose_part, open_as_trained, recognise
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.device import choose_device
from resnetkit.display import type_of
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.batches import evaluation_batch
from resnetkit.evaluation.metrics import Evaluation, mean_log_probabilities
from resnetkit.modelfile import Model, load
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance, ignore

logger = logging.getLogger("resnetkit")

Views = Literal["single", "ten-crop", "multi-scale"]
Pixels = list[NDArray[np.uint8]]

SCALES = (224, 256, 384, 480, 640)
"""Shorter sides of fully convolutional testing for networks of 224 pixels (Table 4); in proportion for other sizes."""


def evaluate(
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
) -> Evaluation:
    """Count the errors of `model` on every one of some pictures once, whatever the batch size and the workers.

    `model` is a loaded one or whatever `load` takes. `data` is cifar10, cifar100, a folder, a CSV file or a Dataset, of
    which `split` names the part: train, val, test, all; or auto, which is test, else val, else all, and never pictures
    that trained the model. Samples, or a Part, are counted as they are. The result says which part was taken and why;
    a warning is logged where pictures trained the model.

    `views`: the centre crop; the mean probability of ten crops (Sec. 3.4); or that of the whole picture at five scales.
    Classes are matched by name, in any order. `batch_size` is by default `evaluation_batch`: 250, or as many as fit
    into half a GiB. `advance` is called after each batch with its pictures.

    Raises DataError where there is a class that the model does not know, where nothing can be read, where auto finds
    nothing but what trained the model, or, with `strict`, at the first unreadable file.
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
    """The network on `device`: itself if it is there, else a copy."""
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
    advance: Advance = ignore,
) -> Evaluation:
    """Like `evaluate`, for a network in memory whose classes are those of `samples`. Leaves it in evaluation mode.

    `advance` is called after each batch with its pictures; what it raises ends the evaluation.
    """
    device = next(net.parameters()).device
    normalize = Normalize(preprocess, device)
    result = Evaluation(samples.classes)
    net.eval()
    if views == "single":
        if batch_size is None:
            batch_size = evaluation_batch(net, preprocess.size)
        loader = Loader(samples, preprocess, batch_size=batch_size, workers=workers, strict=strict)
        for batch in loader.epoch():
            result.add(net(normalize(batch.images)).log_softmax(dim=1), batch.labels.to(device))
            advance(len(batch.labels))
        result.unreadable = loader.unreadable
    else:
        cut = ten_crops(preprocess) if views == "ten-crop" else scales(preprocess)
        for pictures, label in each_picture(
            samples, preprocess, cut, result.unreadable, workers=workers, strict=strict
        ):
            logits = [net(normalize(as_batch(pixels))) for pixels in pictures]
            result.add(mean_log_probabilities(torch.cat(logits)[:, None]), torch.tensor([label], device=device))
            advance(1)
    if not result.images:
        raise DataError(f"not one of the {len(samples)} pictures can be read; see resnetkit data check")
    return result


def ten_crops(preprocess: Preprocess) -> Callable[[Image.Image], Pixels]:
    """Four corners and the centre, and their mirror images, as one batch of ten."""
    if preprocess.shorter_side == preprocess.size:
        raise UsageError(
            f"--views ten-crop: this model sees whole pictures of {preprocess.size} pixels, so there is nothing to crop"
        )
    return lambda picture: [preprocess.views(picture, "ten-crop")]


def scales(preprocess: Preprocess) -> Callable[[Image.Image], Pixels]:
    """The whole picture at each scale."""
    sides = [round(scale * preprocess.size / SCALES[0]) for scale in SCALES]
    return lambda picture: [preprocess.scaled(picture, side)[None] for side in sides]


def as_batch(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, height, width, channels) to the (n, channels, height, width) of a Batch."""
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
    """Yield the views of each readable picture, and its label, in order; note the others in `unreadable`."""

    def read(index: int) -> Pixels | DataError:
        try:
            return cut(open_sample(samples, index, mode=preprocess.mode))
        except DataError as error:
            if samples.paths is None:
                raise DataError(f"picture {index}: {error}") from error
            if strict:
                raise
            return error

    if workers < 0:
        raise UsageError(f"workers is {workers}; it must be at least 0")
    workers = max(workers, 1)
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(samples), 8 * workers):  # a window at a time: memory stays flat
            window = range(first, min(first + 8 * workers, len(samples)))
            for index, views in zip(window, pool.map(read, window), strict=True):
                if isinstance(views, DataError):
                    path = Path(samples.place(index))
                    unreadable[path] = str(views).removeprefix(f"{path}: ")
                    logger.warning("skipped %s: %s", path, unreadable[path])
                else:
                    yield views, int(samples.labels[index])
