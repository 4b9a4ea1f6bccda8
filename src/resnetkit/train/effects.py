"""Which fields of a recipe have no use beside the others: what somebody asked for is never ignored in silence."""

from collections.abc import Callable, Mapping

from resnetkit.data.samples import Dataset
from resnetkit.data.transforms.augment import SIZED
from resnetkit.errors import UsageError
from resnetkit.train.recipe import FLAG, Recipe, flag

SCALED = ("random-resized", "scale-jitter")


def _resizes(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether a picture is ever resized: CIFAR's are not, at their own size."""
    pictures = None if dataset.train is None else dataset.train.images
    if pictures is None or recipe.init or recipe.resize or recipe.crop in SCALED:
        return True
    return recipe.size not in (None, pictures.shape[1])


USES: dict[str, tuple[Callable[[Recipe, Dataset], bool], str]] = {
    "zero_init_residual": (lambda r, _: not (r.zero_init_residual and r.init), "with --init the first weights hold"),
    "freeze": (
        lambda r, _: not r.freeze or r.init is not None,
        "it goes with --init, for random weights are not worth keeping",
    ),
    "least_batch_size": (lambda r, _: r.minutes is not None, "it goes with --minutes"),
    "train_split": (lambda _, d: "train_split" in d.split, "it divides CIFAR"),
    "val_fraction": (
        lambda r, d: not r.val_fraction or "val_fraction" in d.split,
        "it divides folders and CSV files that have no val part of their own",
    ),
    "muon_lr": (lambda r, _: r.optimizer == "muon", "it goes with --optimizer muon"),
    "decay_norm_and_bias": (
        lambda r, _: not r.decay_norm_and_bias or r.weight_decay > 0,
        "it goes with a --weight-decay over 0",
    ),
    "peak_at": (lambda r, _: r.schedule == "one-cycle", "it goes with --schedule one-cycle"),
    "milestones": (lambda r, _: r.schedule == "step", "it goes with --schedule step"),
    "lr_drop": (lambda r, _: r.schedule in ("step", "plateau"), "it goes with --schedule step or plateau"),
    "plateau_patience": (lambda r, _: r.schedule == "plateau", "it goes with --schedule plateau"),
    "warmup_error_percent": (lambda r, _: r.warmup_lr > 0, "it goes with a --warmup-lr over 0"),
    "interpolation": (_resizes, "these pictures are not resized"),
    "normalize": (lambda r, _: r.init is None, "with --init, what was subtracted for the first weights holds"),
    "padding": (lambda r, _: not r.padding or r.crop == "pad", "it goes with --crop pad"),
    "padding_mode": (lambda r, _: r.crop == "pad" and r.padding > 0, "it goes with --crop pad and a --padding over 0"),
    "early_scale": (
        lambda r, _: r.early_scale == 1 or r.crop in SIZED,
        "it goes with --crop pad or random-resized",
    ),
    "early_until": (
        lambda r, _: r.early_scale < 1 and r.crop in SIZED,
        "it goes with an --early-scale under 1 and --crop pad or random-resized",
    ),
    "center_crop_from": (
        lambda r, _: r.center_crop_from == 1 or r.crop != "none",
        "it ends random crops, and there are none with --crop none",
    ),
    "min_area": (lambda r, _: r.crop == "random-resized", "it goes with --crop random-resized"),
    "jitter": (lambda r, _: r.crop == "scale-jitter", "it goes with --crop scale-jitter"),
    "alternate_flip": (lambda r, _: not r.alternate_flip or r.flip, "it goes with --flip"),
}
"""For each field that not every run uses: whether this recipe on this data does, and the reason where it does not.

A value that switches something off has its use everywhere.
"""


def check_effects(recipe: Recipe, dataset: Dataset, asked: Mapping[str, str]) -> list[str]:
    """Refuse flags that have no use, and return a line for each field of a file that has none.

    `asked` says of the fields that somebody asked for where they did: FLAG, or the name of a file. Raises UsageError.
    """
    idle = {name: why for name, (used, why) in USES.items() if name in asked and not used(recipe, dataset)}
    for name, why in idle.items():
        if asked[name] == FLAG:
            raise UsageError(f"{flag(name)} has no use here: {why}; leave it out")
    return [f"{asked[name]}: {name} has no use here: {why}" for name, why in idle.items()]
