"""What a recipe and a data set come to: the network, how pictures reach it, and where and how it computes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit import modelfile
from resnetkit.data.decoding.pictures import ColorMode
from resnetkit.data.loader import Loader
from resnetkit.data.parts import record
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.augment import SIZED, Augment
from resnetkit.data.transforms.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resnetkit.device import choose_device, choose_precision
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.modelfile import Header, Model, short_name
from resnetkit.models.freezing import freeze
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
from resnetkit.precision import unfolds_bfloat16
from resnetkit.train.compute import Forward, choose_forward, refuse_single_values
from resnetkit.train.memory import available_memory, choose_recompute, training_need
from resnetkit.train.recipe import Recipe


@dataclass(frozen=True)
class Task:
    """One training run, ready to start."""

    net: ResNet
    header: Header
    """What the run's model files will say, but for the metrics."""
    loader: Loader
    """Training batches."""
    val: Samples | None
    skipped: tuple[tuple[Path, str], ...]
    """Files of the data set that are not taken, each with the reason."""
    device: torch.device
    precision: str
    """float32 or bfloat16."""
    forward: Forward
    """The net in training: normalised images to logits."""
    computed_by: str
    """What runs it: kernels, torch.compile or eager."""
    recompute: bool
    """Whether blocks compute their maps again for the gradient, to save memory."""


def prepare(recipe: Recipe, dataset: Dataset, header: Header | None = None) -> Task:
    """Build the network, the preprocessing and the loader that `recipe` asks for on `dataset`.

    `header` is that of a run that goes on: its network and preprocessing hold, and `recipe.init` is not read again.
    """
    if dataset.train is None or not len(dataset.train):
        raise DataError(f"{dataset.name} has no training pictures; expected {dataset.name}/train/<class>/<image>")
    if len(dataset.classes) < 2:
        only = f"{dataset.name} has one class ({dataset.classes[0]})"
        raise DataError(f"{only}; a classifier needs two or more")
    if recipe.schedule == "plateau" and (dataset.val is None or not len(dataset.val)):
        raise UsageError("--schedule plateau watches the validation error, and there are no validation pictures")
    device = choose_device(recipe.device)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = modelfile.load(str(expanded(recipe.init))) if recipe.init and header is None else None
    spec = header.spec if header else choose_spec(recipe, dataset, start)
    preprocess = header.preprocess if header else choose_preprocess(recipe, dataset.train, spec, start)
    augment = choose_augment(recipe, preprocess)
    if (smallest := augment.side(preprocess)) < spec.least_size:
        setting = (
            f"--size {smallest}" if smallest == preprocess.size else f"crops of {smallest} pixels by --early-scale"
        )
        raise UsageError(f"{setting}: {recipe.model} takes pictures of {spec.least_size} pixels or more")
    torch.manual_seed(recipe.seed)
    net = build(spec, zero_init_residual=recipe.zero_init_residual)
    if start:
        copy_weights(start, net, dataset.classes)
    freeze(net, recipe.freeze)
    precision = choose_precision(recipe.precision, device)
    augment = choose_augment(recipe, preprocess)
    smallest = min(recipe.batch_size, len(dataset.train))  # of an epoch: a last batch that is not full is dropped
    refuse_single_values(net, batch_size=smallest, size=augment.side(preprocess))
    need = training_need(
        net,
        batch_size=recipe.batch_size,
        size=preprocess.size,
        precision=precision,
        unfolds=precision == "bfloat16" and unfolds_bfloat16(),
    )
    recompute = choose_recompute(need, recipe, available_memory() if device.type == "cpu" else None)
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)
    net = net.to(device)
    loader = Loader(
        dataset.train,
        preprocess,
        batch_size=recipe.batch_size,
        augment=augment,
        alternate_flip=recipe.flip and recipe.alternate_flip,
        shuffle=True,
        seed=recipe.seed,
        drop_last=len(dataset.train) >= recipe.batch_size,
        workers=recipe.workers,
        strict=recipe.strict,
    )
    forward, computed_by = choose_forward(
        net, recipe, device, precision, recompute=recompute, steps=recipe.total_steps(len(loader))
    )
    return Task(
        net=net,
        header=Header(
            spec,
            preprocess,
            dataset.classes,
            recipe=recipe.to_dict() | {"init": recipe.init and short_name(recipe.init)},
            data={
                "name": short_name(dataset.name),
                "fingerprint": dataset.train.fingerprint(),
                "split": dict(dataset.split),
                "pictures": (header and header.data.get("pictures")) or _pictures(dataset.train, start),
            },
        ),
        loader=loader,
        val=dataset.val if dataset.val is not None and len(dataset.val) else None,
        skipped=dataset.skipped,
        device=device,
        precision=precision,
        forward=forward,
        computed_by=computed_by,
        recompute=recompute,
    )


def _pictures(train: Samples, start: Model | None) -> dict[str, Any]:
    """What the model file keeps to recognise what trained it: these pictures, and those of the first weights."""
    earlier = start.header.data.get("pictures") if start else None
    return record(train, *([earlier] if earlier else []))


def choose_spec(recipe: Recipe, dataset: Dataset, start: Model | None) -> ModelSpec:
    """The recipe's network with the classes of `dataset`; UsageError where it is not the one of the first weights."""
    asked = parse_spec(recipe.model)
    spec = replace(asked, classes=len(dataset.classes))
    if "classes=" in recipe.model and asked != spec:
        raise UsageError(f"--model {recipe.model}: {dataset.name} has {spec.classes} classes; leave classes= out")
    if start and trunk(start.header.spec) != trunk(spec):
        rows = [name for name, row in SPECS.items() if trunk(row) == trunk(start.header.spec)]
        name = start.header.recipe.get("model") or (rows[0] if rows else "with the same changes")
        raise UsageError(f"{recipe.init} does not hold a {recipe.model}; give --model {name}")
    return spec


def trunk(spec: ModelSpec) -> ModelSpec:
    """The spec without what may differ between networks with the same weights: classes, and how they are run."""
    norm = "batch" if spec.norm == "frozen" else spec.norm
    return replace(spec, classes=1, dilated=(), drop_path=0.0, norm=norm)


def choose_preprocess(recipe: Recipe, train: Samples, spec: ModelSpec, start: Model | None) -> Preprocess:
    """How pictures reach the network: as for the first weights, or as the recipe says, measured on `train`."""
    modes: dict[int, ColorMode] = {1: "L", 3: "RGB"}
    mode = modes.get(spec.in_channels)
    if mode is None:
        raise UsageError(f"--model {recipe.model}: pictures have 1 or 3 channels, not {spec.in_channels}")
    if train.images is not None and train.images.shape[-1] != spec.in_channels:
        raise UsageError(f"--model {recipe.model}: these pictures have {train.images.shape[-1]} channels")
    first = start.header.preprocess if start else None
    own_size = None if train.images is None else train.images.shape[1]
    size = recipe.size or (first.size if first else own_size or 224)
    if first and size == first.size:
        resize = recipe.resize or first.resize
    else:
        resize = recipe.resize or (None if size == own_size else round(size / 0.875))
    mean, std = (first.mean, first.std) if first else mean_and_std(recipe, train, spec)
    interpolation = recipe.interpolation or (first.interpolation if first else "bilinear")
    return Preprocess(size=size, resize=resize, interpolation=interpolation, mean=mean, std=std, mode=mode)


def choose_augment(recipe: Recipe, preprocess: Preprocess, progress: float = 0.0) -> Augment:
    """The recipe's augmentation at `progress` (0 to 1) of the run.

    Raises UsageError where it does not go with how pictures reach the network.
    """
    if recipe.crop == "scale-jitter" and recipe.jitter[0] < preprocess.size:
        raise UsageError(f"--jitter {recipe.jitter[0]} is less than the crop; give at least --size {preprocess.size}")
    if recipe.pca_color and preprocess.channels != 3:
        raise UsageError("--pca-color shifts three channels, and these pictures have one; give --pca-color 0")
    centred = progress >= recipe.center_crop_from
    early = not centred and progress < recipe.early_until and recipe.crop in SIZED
    side = max(1, round(recipe.early_scale * preprocess.size)) if early else preprocess.size
    return Augment(
        crop="none" if centred else recipe.crop,
        size=None if side == preprocess.size else side,
        padding=recipe.padding,
        padding_mode=recipe.padding_mode,
        flip=recipe.flip and not recipe.alternate_flip,
        scale=(recipe.min_area, 1.0),
        jitter=recipe.jitter,
        pca_color=recipe.pca_color,
    )


def mean_and_std(recipe: Recipe, train: Samples, spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation in the 0-to-1 scale; the mean has a value for each channel, or for each pixel and channel."""
    if recipe.normalize == "imagenet":
        if spec.in_channels == 1:
            return (0.449,), (0.226,)  # the averages of the three channels
        return IMAGENET_MEAN, IMAGENET_STD
    if train.images is None:
        raise UsageError(f"--normalize {recipe.normalize} needs pictures in memory (CIFAR); give --normalize imagenet")
    if recipe.normalize == "per-pixel":
        if recipe.size not in (None, train.images.shape[1]):
            raise UsageError("--normalize per-pixel needs the pictures' own --size")
        mean = train.images.mean(axis=0, dtype=np.float64).transpose(2, 0, 1) / 255
        return tuple(np.round(mean.ravel(), 6).tolist()), (1.0,) * spec.in_channels
    histogram = np.stack([np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(spec.in_channels)])
    share, level = histogram / histogram.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    std = np.sqrt(share @ level**2 - mean**2)
    return tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist())


def copy_weights(start: Model, net: ResNet, classes: tuple[str, ...]) -> None:
    """Start from the weights of `start`; the last layer stays new where the classes are not the same."""
    weights = start.net.state_dict()
    if start.header.classes != classes:
        weights |= {name: tensor for name, tensor in net.state_dict().items() if name.startswith("fc.")}
    net.load_state_dict(weights)
