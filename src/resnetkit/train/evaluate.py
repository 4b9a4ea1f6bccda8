"""The one evaluation, always in float32: a single view, ten crops, or fully convolutional at several scales."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnetkit.data.dataset import open_dataset
from resnetkit.data.loader import Loader, open_sample
from resnetkit.data.normalize import Normalize
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import DataError, UsageError
from resnetkit.modelfile import Header, Model, load
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance, ignore
from resnetkit.train.metrics import Evaluation, mean_log_probabilities
from resnetkit.train.task import choose_device

logger = logging.getLogger("resnetkit")

Views = Literal["single", "ten-crop", "multi-scale"]
Pixels = list[NDArray[np.uint8]]

SCALES = (224, 256, 384, 480, 640)
"""Shorter sides of fully convolutional testing for networks of 224 pixels (Table 4); in proportion for other sizes."""


def evaluate(
    model: Model | str | Path,
    data: Samples | str,
    *,
    split: str = "auto",
    views: Views = "single",
    batch_size: int = 250,
    workers: int = 2,
    strict: bool = False,
    device: str = "auto",
    advance: Advance = ignore,
) -> Evaluation:
    """Count the errors of `model` on every one of some pictures once, whatever the batch size and the workers.

    `model` is a loaded one or whatever `load` takes; `data` is samples, or cifar10, cifar100, a folder or a CSV file,
    of which `split` names the part (auto: test, else val, else all). `views`: the centre crop; the mean probability of
    ten crops (Sec. 3.4); or that of the whole picture at five scales. Classes are matched by name, in any order.
    `advance` is called after each batch with its pictures.

    Raises DataError where there is a class that the model does not know, where nothing can be read, or, with `strict`,
    at the first unreadable file.
    """
    model = model if isinstance(model, Model) else load(model)
    if isinstance(data, Samples):
        samples = data
    else:
        _, samples = open_as_trained(model.header, data, strict=strict).part(split)
    return evaluate_net(
        moved(model.net, choose_device(device)),
        samples.as_classes(model.header.classes),
        model.header.preprocess,
        views=views,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        advance=advance,
    )


def open_as_trained(header: Header, data: str, *, strict: bool = False) -> Dataset:
    """Open `data`, with training and validation pictures divided as they were when the model was trained."""
    recorded = header.data.get("split", {})
    division = {name: recorded[name] for name in ("train_split", "val_fraction", "seed") if name in recorded}
    return open_dataset(data, strict=strict, **division)


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
    batch_size: int = 250,
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
                    path = (samples.paths or ())[index]
                    unreadable[path] = str(views).removeprefix(f"{path}: ")
                    logger.warning("skipped %s: %s", path, unreadable[path])
                else:
                    yield views, int(samples.labels[index])
