"""The preprocessing, the augmentation and the batches of a recipe, at any point of a run."""

import numpy as np

from resnetkit.data.decoding.pictures import ColorMode
from resnetkit.data.loader import Loader
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.augment import SIZED, Augment
from resnetkit.data.transforms.mixing import Mixing
from resnetkit.data.transforms.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resnetkit.errors import UsageError
from resnetkit.modelfile import Model
from resnetkit.models.spec import ModelSpec
from resnetkit.train.recipe import Recipe


def choose_preprocess(recipe: Recipe, train: Samples, spec: ModelSpec, start: Model | None) -> Preprocess:
    """Return the preprocessing of the recipe; mean and deviation come from the first weights, ImageNet or `train`.

    `start` is the model with the first weights; its preprocessing replaces the recipe's defaults. Raises UsageError if
    the network and the pictures differ in their channels.
    """
    modes: dict[int, ColorMode] = {1: "L", 3: "RGB"}
    mode = modes.get(spec.in_channels)
    if mode is None:
        raise UsageError(f"`model` {recipe.model}: pictures have 1 or 3 channels, not {spec.in_channels}")
    if train.images is not None and train.images.shape[-1] != spec.in_channels:
        raise UsageError(f"`model` {recipe.model}: these pictures have {train.images.shape[-1]} channels")
    first = start.header.preprocess if start else None
    own_size = None if train.images is None else train.images.shape[1]
    size = recipe.size or (first.size if first else own_size or 224)
    fit = recipe.fit or (first.fit if first else "crop")
    if fit != "crop":
        resize = recipe.resize
    elif first and size == first.size and fit == first.fit:
        resize = recipe.resize or first.resize
    else:
        resize = recipe.resize or (None if size == own_size else round(size / 0.875))
    mean, std = (first.mean, first.std) if first else mean_and_std(recipe, train, spec)
    interpolation = recipe.interpolation or (first.interpolation if first else "bilinear")
    return Preprocess(size, resize, interpolation, mean, std, mode, fit)


def choose_augment(recipe: Recipe, preprocess: Preprocess, progress: float = 0.0) -> Augment:
    """Return the recipe's augmentation at `progress` (0 to 1) of the run.

    Raises UsageError if it does not fit the preprocessing.
    """
    if recipe.crop == "scale-jitter" and recipe.jitter[0] < preprocess.size:
        raise UsageError(
            f"`jitter` begins at {recipe.jitter[0]}, which is smaller than the crop; begin at {preprocess.size} or more"
        )
    if recipe.pca_color and preprocess.channels != 3:
        raise UsageError("`pca_color` shifts three channels, and these pictures have one; give `pca_color` 0")
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
        vertical_flip=recipe.vertical_flip,
        rotation=recipe.rotation,
        trivial=recipe.trivial_augment,
        pca_color=recipe.pca_color,
        erase=recipe.erase,
        blank=preprocess.bar_color,
    )


def training_loader(recipe: Recipe, train: Samples, preprocess: Preprocess, augment: Augment) -> Loader:
    """Return the loader of a recipe's training batches."""
    return Loader(
        train,
        preprocess,
        batch_size=recipe.batch_size,
        augment=augment,
        mixing=Mixing(recipe.mixup, recipe.cutmix),
        balanced=recipe.balance == "sampling",
        alternate_flip=recipe.flip and recipe.alternate_flip,
        shuffle=True,
        seed=recipe.seed,
        drop_last=len(train) >= recipe.batch_size,
        workers=recipe.workers,
        strict=recipe.strict,
    )


def mean_and_std(recipe: Recipe, train: Samples, spec: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels from 0 to 1.

    The mean has a value for each channel, or for each channel, row and column (per-pixel, flattened in this order).
    Raises UsageError if the recipe's `normalize` needs pictures in memory, or pictures at their own size.
    """
    if recipe.normalize == "imagenet":
        if spec.in_channels == 1:
            return (0.449,), (0.226,)  # the averages of the three channels
        return IMAGENET_MEAN, IMAGENET_STD
    if train.images is None:
        raise UsageError(f"`normalize` {recipe.normalize} needs pictures in memory (CIFAR); give `normalize` imagenet")
    if recipe.normalize == "per-pixel":
        if recipe.size not in (None, train.images.shape[1]):
            raise UsageError("`normalize` per-pixel needs the pictures' own `size`")
        mean = train.images.mean(axis=0, dtype=np.float64).transpose(2, 0, 1) / 255
        return tuple(np.round(mean.ravel(), 6).tolist()), (1.0,) * spec.in_channels
    histogram = np.stack([np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(spec.in_channels)])
    share, level = histogram / histogram.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ level
    std = np.sqrt(share @ level**2 - mean**2)
    return tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist())
