"""Which fields of a recipe have no use beside the others. What somebody asked for is never ignored in silence."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from resnetkit.data.samples import Dataset
from resnetkit.data.transforms.augment import SIZED
from resnetkit.errors import UsageError
from resnetkit.train.recipe import FLAG, Recipe, changed

SCALED = ("random-resized", "scale-jitter")


@dataclass(frozen=True)
class Pictures:
    """What the use of a field depends on beside the recipe."""

    split: Mapping[str, Any]
    """How the pictures are divided: `Dataset.split`."""
    size: int | None = None
    """Height and width of pictures in memory; None for files, which have many sizes, and where it is not known."""


@dataclass(frozen=True)
class Use:
    """When a field of a recipe has a use."""

    when: Callable[[Recipe, Pictures], bool]
    """Whether the field has a use in this recipe on these pictures."""
    why: str
    """The reason why it has none elsewhere."""
    off: Any = None
    """The value that switches the field off, and may be asked for anywhere. None, which is unset, always may."""


def _resizes(recipe: Recipe, pictures: Pictures) -> bool:
    """Whether a picture is ever resized. CIFAR's pictures are not, at their own size."""
    if pictures.size is None or recipe.init or recipe.resize or recipe.crop in SCALED:
        return True
    return recipe.size not in (None, pictures.size)


USES: dict[str, Use] = {
    "zero_init_residual": Use(
        lambda r, _: r.init is None, "with `init` the first weights are those of that model", off=False
    ),
    "freeze": Use(
        lambda r, _: r.init is not None, "it goes with `init`, for random weights are not worth keeping", off=0
    ),
    "least_batch_size": Use(lambda r, _: r.minutes is not None, "it goes with `minutes`"),
    "train_split": Use(lambda _, p: "train_split" in p.split, "it divides CIFAR"),
    "val_fraction": Use(
        lambda _, p: "val_fraction" in p.split,
        "it divides folders and CSV files that have no val part of their own",
        off=0,
    ),
    "muon_lr": Use(lambda r, _: r.optimizer == "muon", "it goes with `optimizer` muon"),
    "decay_norm_and_bias": Use(lambda r, _: r.weight_decay > 0, "it goes with a `weight_decay` over 0", off=False),
    "peak_at": Use(lambda r, _: r.schedule == "one-cycle", "it goes with `schedule` one-cycle"),
    "milestones": Use(lambda r, _: r.schedule == "step", "it goes with `schedule` step"),
    "lr_drop": Use(lambda r, _: r.schedule in ("step", "plateau"), "it goes with `schedule` step or plateau"),
    "plateau_patience": Use(lambda r, _: r.schedule == "plateau", "it goes with `schedule` plateau"),
    "warmup_error_percent": Use(lambda r, _: r.warmup_lr > 0, "it goes with a `warmup_lr` over 0"),
    "interpolation": Use(_resizes, "these pictures are not resized"),
    "normalize": Use(
        lambda r, _: r.init is None, "with `init`, what is subtracted is what that model was trained with"
    ),
    "padding": Use(lambda r, _: r.crop == "pad", "it goes with `crop` pad", off=0),
    "padding_mode": Use(
        lambda r, _: r.crop == "pad" and r.padding > 0, "it goes with `crop` pad and a `padding` over 0"
    ),
    "early_scale": Use(lambda r, _: r.crop in SIZED, "it goes with `crop` pad or random-resized", off=1),
    "early_until": Use(
        lambda r, _: r.early_scale < 1 and r.crop in SIZED,
        "it goes with an `early_scale` under 1 and `crop` pad or random-resized",
    ),
    "center_crop_from": Use(
        lambda r, _: r.crop != "none", "it ends random crops, and there are none with `crop` none", off=1
    ),
    "min_area": Use(lambda r, _: r.crop == "random-resized", "it goes with `crop` random-resized"),
    "jitter": Use(lambda r, _: r.crop == "scale-jitter", "it goes with `crop` scale-jitter"),
    "alternate_flip": Use(lambda r, _: r.flip, "it goes with `flip`", off=False),
}
"""The fields that not every run uses. Every run uses the others."""


def check_effects(recipe: Recipe, dataset: Dataset, asked: Mapping[str, str]) -> list[str]:
    """Refuse flags that have no use, and return a line for each field of a file that has none.

    `asked` has the fields that somebody asked for, and where: FLAG, or the name of a file. Raises UsageError.
    """
    images = None if dataset.train is None else dataset.train.images
    pictures = Pictures(dataset.split, None if images is None else images.shape[1])
    idle = {
        name: use.why
        for name, use in USES.items()
        if name in asked and getattr(recipe, name) not in (None, use.off) and not use.when(recipe, pictures)
    }
    for name, why in idle.items():
        if asked[name] == FLAG:
            raise UsageError(f"`{name}` has no use here: {why}; leave it out")
    return [f"{asked[name]}: {name} has no use here: {why}" for name, why in idle.items()]


def effective_fields(recipe: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model file's recipe that had an effect: one length, none that is unset, none without a use.

    `recipe` and `split` are what the file's header says. What is no field of this version's recipes stays; so does
    everything where the values are no recipe.
    """
    there = {name: value for name, value in recipe.items() if value is not None}
    known = {field.name for field in fields(Recipe)}
    try:
        whole = changed(Recipe(), {name: value for name, value in recipe.items() if name in known}, source="the model")
    except UsageError:
        return there
    idle = {name for name, use in USES.items() if not use.when(whole, Pictures(split))}
    idle |= {name for name, value in whole.length.items() if value is None}
    return {name: value for name, value in there.items() if name not in idle}
