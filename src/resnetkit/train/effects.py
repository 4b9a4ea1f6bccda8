"""Recipe fields without effect, given the other fields and the data. A person who gave such a field gets a message."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from resnetkit.data.samples import Dataset
from resnetkit.data.transforms.augment import SIZED
from resnetkit.errors import UsageError
from resnetkit.train.fitting import LONG_BATCH
from resnetkit.train.recipe import FLAG, Recipe, changed

SCALED = ("random-resized", "scale-jitter")


@dataclass(frozen=True)
class Pictures:
    """The properties of the data on which the effect of a field depends."""

    split: Mapping[str, Any]
    """How the pictures are divided: `Dataset.split`."""
    size: int | None = None
    """Height and width of pictures in memory; None for files, which have many sizes, or if it is not known."""


@dataclass(frozen=True)
class Use:
    """The condition under which a field of a recipe has an effect."""

    when: Callable[[Recipe, Pictures], bool]
    """Returns whether the field has an effect in this recipe on these pictures."""
    why: str
    """The reason why it has no effect otherwise, for messages."""
    off: Any = None
    """The value that switches the field off. It may always be given, as may None, which means unset."""


def _resizes(recipe: Recipe, pictures: Pictures) -> bool:
    """Return whether pictures are resized. Pictures of CIFAR at their own size are not."""
    if pictures.size is None or recipe.init or recipe.resize or recipe.crop in SCALED:
        return True
    return recipe.size not in (None, pictures.size)


def _has_rungs(recipe: Recipe, pictures: Pictures) -> bool:
    """Return whether there may be first weights: `rung` auto looks for published ones."""
    return recipe.init is not None or recipe.rung == "auto"


USES: dict[str, Use] = {
    "zero_init_residual": Use(
        lambda r, _: r.init is None, "with `init` the first weights are those of that model", off=False
    ),
    "freeze": Use(lambda r, _: r.init is not None, "it needs `init`, since random weights should not be frozen", off=0),
    "keep_statistics": Use(
        lambda r, _: r.init is not None, "it needs `init`: random weights have no statistics to keep", off=False
    ),
    "rung": Use(_has_rungs, "it needs `init`: random weights are trained at once", off="off"),
    "cache_gb": Use(lambda r, p: r.rung != "off" and _has_rungs(r, p), "it needs a `rung`"),
    "batch_by_length": Use(
        lambda r, _: r.iterations is None and r.batch_size == LONG_BATCH,
        f"it needs `epochs` or `minutes`, and a `batch_size` of {LONG_BATCH}",
        off=False,
    ),
    "least_batch_size": Use(lambda r, _: r.minutes is not None, "it needs `minutes`"),
    "train_split": Use(lambda _, p: "train_split" in p.split, "it divides CIFAR"),
    "val_fraction": Use(
        lambda _, p: "val_fraction" in p.split,
        "it divides folders and CSV files that have no val part",
        off=0,
    ),
    "group_alike": Use(
        lambda _, p: "train_split" not in p.split,
        "it is for folders and lists; CIFAR's parts are published",
        off=False,
    ),
    "muon_lr": Use(lambda r, _: r.optimizer == "muon", "it needs `optimizer` muon"),
    "decay_norm_and_bias": Use(lambda r, _: r.weight_decay > 0, "it needs a `weight_decay` over 0", off=False),
    "peak_at": Use(lambda r, _: r.schedule == "one-cycle", "it needs `schedule` one-cycle"),
    "milestones": Use(lambda r, _: r.schedule == "step", "it needs `schedule` step"),
    "lr_drop": Use(lambda r, _: r.schedule in ("step", "plateau"), "it needs `schedule` step or plateau"),
    "plateau_patience": Use(lambda r, _: r.schedule == "plateau", "it needs `schedule` plateau"),
    "label_smoothing": Use(
        lambda _, p: p.split.get("labels") != "several", "pictures have several labels, each of them 0 or 1", off=0
    ),
    "balance": Use(
        lambda r, p: r.balance != "sampling" or p.split.get("labels") != "several",
        "pictures have several labels, so that no drawing makes all of them equally frequent; weights does",
        off="off",
    ),
    "warmup_error_percent": Use(lambda r, _: r.warmup_lr > 0, "it needs a `warmup_lr` over 0"),
    "fit": Use(lambda r, p: p.size is None, "these pictures are square", off="crop"),
    "interpolation": Use(_resizes, "these pictures are not resized"),
    "normalize": Use(lambda r, _: r.init is None, "with `init`, pictures are normalised as for that model"),
    "padding": Use(lambda r, _: r.crop == "pad", "it needs `crop` pad", off=0),
    "padding_mode": Use(lambda r, _: r.crop == "pad" and r.padding > 0, "it needs `crop` pad and a `padding` over 0"),
    "early_scale": Use(lambda r, _: r.crop in SIZED, "it needs `crop` pad or random-resized", off=1),
    "early_until": Use(
        lambda r, _: r.early_scale < 1 and r.crop in SIZED,
        "it needs an `early_scale` under 1 and `crop` pad or random-resized",
    ),
    "center_crop_from": Use(
        lambda r, _: r.crop != "none", "it ends random crops, and `crop` none has no random crops", off=1
    ),
    "min_area": Use(lambda r, _: r.crop == "random-resized", "it needs `crop` random-resized"),
    "jitter": Use(lambda r, _: r.crop == "scale-jitter", "it needs `crop` scale-jitter"),
    "alternate_flip": Use(lambda r, _: r.flip, "it needs `flip`", off=False),
}
"""The fields that have an effect only in some runs. All other fields have an effect in every run."""


def check_effects(recipe: Recipe, dataset: Dataset, asked: Mapping[str, str]) -> list[str]:
    """Return a line for each field from a file that has no effect. Raises UsageError for such a field from a flag.

    `asked` maps each field that a person gave to its place: FLAG, or the name of a file.
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
            raise UsageError(f"`{name}` has no effect here: {why}; leave it out")
    return [f"{asked[name]}: {name} has no effect here: {why}" for name, why in idle.items()]


def effective_fields(recipe: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model file's recipe that had an effect in its run; fields that are None are left out.

    `recipe` and `split` are those of the file's header. Fields that this version's Recipe does not have are kept. If
    the values are not a valid recipe, all fields are kept.
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
