"""Recipes as data: the settings of a training run, and the published recipes and our own ones in the table RECIPES."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from resnetkit.display import MOST, cut, line, table
from resnetkit.errors import UsageError
from resnetkit.files import write_whole

LENGTHS = ("epochs", "iterations", "minutes")
"""The fields for the length of a run, in three units: exactly one of them has a value, the others are None."""


@dataclass(frozen=True)
class Recipe:
    """How to train a network. The recipe, the data and the seed together decide every weight."""

    model: str = "resnet20"
    """Network: a name that `resnetkit models` lists, with changes after commas: resnet20,shortcut=B,depths=5-5-5."""
    init: str | None = None
    """Model with the first weights: a model file, a run folder, NAME:WEIGHTS (resnet18:IMAGENET1K_V1, resnet20:cifar10)
    or hf:OWNER/NAME. The last layer starts at random if the classes differ."""
    zero_init_residual: bool = False
    """Start every residual branch at zero (Goyal et al. 2017, Sec. 5.1)."""
    freeze: int = 0
    """Number of parts that keep their weights and running statistics: 1 the stem, 2 stem and first stage, and so on."""
    keep_statistics: bool = False
    """With `init`: batch norm normalises by the running statistics of the first weights, and does not change them. Its
    factors and offsets are trained. Better for few pictures, or batches of few."""

    rung: Literal["auto", "head", "stage", "all", "off"] = "off"
    """With `init`: how much of the network is trained (docs/training.md). head: the last layer, on features that are
    computed once. stage: the last layer, then the last stage. all: the last layer, then the whole network. auto: all
    three, one after another; each is kept if the validation error is lower. off: the whole network at once."""
    cache_gb: float = 4.0
    """With `rung`: largest size of the kept features on disk, in 10⁹ bytes."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each part to the one before it; the head's is lr. 1: equal rates."""

    epochs: float | None = None
    """Length of the run, in passes over the training pictures; 30 if no length is given."""
    iterations: int | None = None
    """Length of the run in optimiser steps, instead of epochs."""
    minutes: float | None = None
    """Length of the run in minutes, instead of epochs: the whole schedule is fitted into this time."""
    batch_size: int = 128
    """Number of pictures in a batch."""
    batch_by_length: bool = False
    """Choose the batch size by the length of the run: smaller batches if it is short (docs/training.md). This is off
    if `batch_size` is given."""
    least_batch_size: int | None = None
    """With `minutes`: if the time is too short for 100 steps, batch size and learning rates are halved, until the batch
    size is this. Unset: they are not halved. They are not halved either if `batch_size` is given."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one optimiser step."""
    train_split: Literal["45k", "50k"] = "45k"
    """CIFAR: train on 45,000 pictures and validate on 5,000, or train on all 50,000 without validation."""
    val_fraction: float = 0.2
    """Data without a val part: the share of each class that is used for validation."""
    group_alike: bool = True
    """Look at all pictures first: keep alike ones together in a drawn val, and name leaks and contradictions."""

    optimizer: Literal["sgd", "muon"] = "sgd"
    """sgd: with momentum. muon: orthogonal steps for the convolutions (Jordan et al. 2024), SGD for the rest."""
    lr: float = 0.2
    """Highest learning rate."""
    muon_lr: float = 0.04
    """With `optimizer` muon: highest learning rate of the convolutions, on the same schedule as lr."""
    momentum: float = 0.9
    """Momentum of SGD, 0 to 1."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on the weights."""
    decay_norm_and_bias: bool = False
    """Apply the penalty to batch norm and biases, too."""
    gradient_clip: float = 0.0
    """Longest gradient, as the L2 norm over all weights; 0 is no limit."""
    schedule: Literal["one-cycle", "cosine", "step", "plateau", "constant"] = "one-cycle"
    """Schedule of the learning rate."""
    peak_at: float = 0.25
    """one-cycle: the share of the run after which the rate is highest. The rate rises and falls linearly."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """With `schedule` step: shares of the run after which the rate drops."""
    lr_drop: float = 0.1
    """With `schedule` step or plateau: the factor by which the rate is multiplied at a drop."""
    plateau_patience: int = 5
    """With `schedule` plateau: the rate drops after so many evaluations in a row without a lower validation error."""
    warmup_lr: float = 0.0
    """Learning rate until the training error is first under `warmup_error_percent`; 0 is no warm-up."""
    warmup_error_percent: float = 80.0
    """Training error over 50 steps, in percent, that ends the warm-up."""
    patience: int | None = None
    """Stop the run after so many evaluations in a row without a lower validation error. Unset: train to the end."""
    balance: Literal["off", "weights", "sampling"] = "off"
    """For classes of different sizes. weights: the loss of a picture is divided by the size of its class. sampling:
    every epoch has the same number of pictures of each class."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights. The average is then evaluated and saved. 0 is off."""

    size: int | None = None
    """Height and width of the network's input; unset: as for `init`, else 32 for CIFAR and 224 for others."""
    resize: int | None = None
    """With `fit` crop: shorter side of a picture before the centre crop in evaluation; unset: as for `init`, else
    size / 0.875."""
    fit: Literal["crop", "letterbox", "stretch"] | None = None
    """How a whole picture becomes the square input, in evaluation and prediction. crop: its centre; the edges of a long
    picture are lost. letterbox: all of it, between bars of the mean colour. stretch: all of it, with another aspect
    ratio. Unset: as for `init`, else crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """How pictures are resized; unset: as for `init`, else bilinear."""
    normalize: Literal["per-pixel", "per-channel", "imagenet"] = "per-channel"
    """How pictures are normalised: minus the mean picture of the training set, or minus a mean colour and divided by
    the standard deviation. With `init`, always as for the first weights."""
    crop: Literal["none", "pad", "random-resized", "scale-jitter"] = "pad"
    """Training crops: none; pad and crop at random; random area and ratio; random scale and place."""
    padding: int = 2
    """With `crop` pad: number of pixels that are added on each side of a picture before it is cropped."""
    padding_mode: Literal["constant", "reflect"] = "constant"
    """With `crop` pad: the added pixels. constant: black. reflect: the picture, mirrored at its edge."""
    early_scale: float = 1.0
    """Height and width of the crops in the first part of the run, as a share of the later size; these steps cost less.
    pad: smaller windows of the same picture. random-resized: the same areas, at fewer pixels (Tan and Le 2021,
    arXiv:2104.00298, Sec. 4). 1 is off."""
    early_until: float = 0.5
    """With `early_scale`: the share of the run after which crops have their full size."""
    center_crop_from: float = 1.0
    """Share of the run after which training pictures are cropped as in validation (CIFAR's not at all), not at random
    (after Touvron et al. 2019, arXiv:1906.06423); flips and colour shifts stay. 1 is never."""
    min_area: float = 0.08
    """random-resized: smallest share of the picture that a crop covers."""
    jitter: tuple[int, int] = (256, 480)
    """scale-jitter: range of the shorter side, in pixels."""
    flip: bool = True
    """Mirror half of the training pictures."""
    alternate_flip: bool = False
    """With `flip`: mirror every picture in every second epoch, instead of at random (Jordan 2024, arXiv:2404.00498)."""
    vertical_flip: bool = False
    """Mirror half of the training pictures top to bottom; for pictures that have no upper side, such as from above."""
    rotation: float = 0.0
    """Rotate training pictures at random by up to so many degrees, 0 to 180, in either direction; 0 is off."""
    trivial_augment: bool = False
    """Change each training picture by one random operation, such as contrast or shear, at a random strength (Müller and
    Hutter 2021, arXiv:2103.10158, the wide space)."""
    pca_color: float = 0.0
    """Standard deviation of the colour shift along ImageNet's principal components; 0 is off, AlexNet used 0.1."""
    erase: float = 0.0
    """Share of the training pictures in which a random box is erased (Zhong et al. 2017, arXiv:1708.04896)."""
    mixup: float = 0.0
    """Mix each training picture with another one; this is alpha of the Beta distribution of the shares, often 0.2
    (Zhang et al. 2017, arXiv:1710.09412). 0 is off."""
    cutmix: float = 0.0
    """Replace a box of each training picture by another one's; alpha of the Beta distribution of the box's area, often
    1 (Yun et al. 2019, arXiv:1905.04899). With `mixup`, each batch gets one of the two. 0 is off."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; auto is bfloat16 if the processor multiplies in it. Evaluation is always in float32."""
    channels_last: bool = True
    """Keep the channels of a pixel together in memory; faster on most processors."""
    compile: Literal["auto", "kernels", "inductor", "off"] = "auto"
    """How a step is computed: by our kernels, by torch.compile, or operation by operation. auto uses the kernels if
    they support the network and are not slower, which is measured once, before the first run of a minute or more; for
    other networks torch.compile, if the run is so long that compiling saves time."""
    recompute: Literal["auto", "on", "off"] = "auto"
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more time.
    auto does it if the maps do not fit into memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses a GPU if there is one."""
    threads: int = 0
    """Threads that compute; 0 is one per core."""
    workers: int = 2
    """Threads that decode pictures."""
    seed: int = 0
    """Decides the first weights, the order of the pictures, their augmentation and the split."""
    strict: bool = False
    """Fail on an unreadable picture, instead of naming, counting and skipping it."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation pictures."""
    log_every: int = 100
    """Steps between two lines of training metrics."""
    save_every: float = 60.0
    """Seconds between two checkpoints. One is also written after an evaluation, if the last one is 10 seconds old."""

    def __post_init__(self) -> None:
        """Raise UsageError, which names the field, for values that are not valid."""
        lengths = [f"`{name}`" for name in LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise UsageError(f"{' and '.join(lengths)} are all lengths of the run; give one of them")
        if not lengths:
            object.__setattr__(self, "epochs", 30.0)
        for name, hint in get_type_hints(Recipe).items():
            if not _is_a(getattr(self, name), hint):
                raise UsageError(f"`{name}` is {getattr(self, name)!r}; it takes {_words(hint)}")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageError(f"`{name}` is {value}; it must be from {least:g} to {most:g}")
        for name in ("momentum", "label_smoothing", "ema_decay", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}; it must be from 0 to under 1")
        for name in (
            "peak_at",
            "lr_drop",
            "min_area",
            "early_scale",
            "epochs",
            "minutes",
            "lr",
            "muon_lr",
            "layer_decay",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"`{name}` is {value}; it must be over 0")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise UsageError(f"`milestones` are {list(self.milestones)}; they must increase, between 0 and 1")
        if not 1 <= self.jitter[0] <= self.jitter[1]:
            raise UsageError(f"`jitter` is {list(self.jitter)}; give the smallest and the largest shorter side")
        if self.nesterov and not self.momentum:
            raise UsageError("`nesterov` needs a `momentum` over 0; or give `nesterov` false")
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < 1e-3:
                raise UsageError(f"`{name}` is {getattr(self, name)}; it must be 0, which is off, or at least 0.001")
        if self.optimizer == "muon" and not self.nesterov:
            raise UsageError("`optimizer` muon always uses Nesterov momentum; leave `nesterov` true")

    def replace(self, **changes: Any) -> "Recipe":
        """Return the recipe with other values in some fields; a new length replaces the old one.

        So `recipe.replace(minutes=3)` has no epochs. `dataclasses.replace` would leave two lengths, which is an error.
        A given `batch_size` switches `batch_by_length` off, unless that is given too. Raises UsageError for values that
        are not valid.
        """
        changes = {name: value for name, value in changes.items() if name not in LENGTHS or value is not None}
        lengths = dict.fromkeys(LENGTHS) if changes.keys() & set(LENGTHS) else {}
        own_batch = {"batch_by_length": False} if "batch_size" in changes else {}
        return replace(self, **lengths | own_batch | changes)

    @property
    def length(self) -> dict[str, float | None]:
        """The three lengths by name; exactly one is not None."""
        return {name: getattr(self, name) for name in LENGTHS}

    def bound_to_length(self) -> str | None:
        """Return the setting that makes a longer run differ from its first step on; None if there is no such setting.

        Such a setting depends on the share of the run that is done. Other settings depend only on the steps so far.
        """
        if self.batch_by_length and self.batch_size < Recipe.batch_size:
            return "`batch_by_length`"
        if self.schedule not in ("constant", "plateau"):
            return f"`schedule` {self.schedule}"
        if self.early_scale < 1 and self.crop in ("pad", "random-resized"):
            return "`early_scale`"
        return "`center_crop_from`" if self.center_crop_from < 1 and self.crop != "none" else None

    def __repr__(self) -> str:
        changed = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        parts = [cut(f"{name}={getattr(self, name)!r}", 60) for name in dict.fromkeys(["model", *changed])]
        while len(", ".join(parts)) > MOST:
            parts[-2:] = ["..."]
        return line(type(self), *parts)

    def _repr_html_(self) -> str:
        rows = [(name, str(value)) for name, value in self.to_dict().items() if value not in (None, False, 0, "off")]
        return table(("field", "value"), rows)

    def total_steps(self, batches: int) -> int | None:
        """Return the optimiser steps of the whole run with `batches` batches per epoch; None for a run with minutes."""
        if self.epochs is None:
            return self.iterations
        return max(1, round(self.epochs * max(1, ceil(batches / self.accumulate))))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for YAML and JSON, without the lengths that are None."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in LENGTHS or value is not None}


def _is_a(value: object, hint: Any) -> bool:
    """Return whether `value` has a field's type; a float field also accepts an int."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        item, rest = get_args(hint)
        fits = isinstance(value, tuple) and all(_is_a(v, item) for v in value)
        return fits and (rest is Ellipsis or len(value) == 2)
    if members := get_args(hint):
        return any(_is_a(value, member) for member in members)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _words(hint: Any) -> str:
    """Return a field's type in words, for messages."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers" if get_args(hint)[1] is Ellipsis else "two whole numbers"
    if members := get_args(hint):
        return " or ".join(_words(member) for member in members)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "nothing"}
    return names[hint]


_RANGES: dict[str, tuple[float, float]] = {
    "freeze": (0, 1000),
    "epochs": (0, 1e6),
    "iterations": (1, 10**9),
    "minutes": (0, 1e6),
    "batch_size": (1, 10**6),
    "least_batch_size": (1, 10**6),
    "accumulate": (1, 10**6),
    "lr": (0, 1e30),
    "muon_lr": (0, 1e30),
    "weight_decay": (0, 1e6),
    "gradient_clip": (0, 1e30),
    "peak_at": (0, 1),
    "lr_drop": (0, 1),
    "plateau_patience": (1, 10**6),
    "warmup_lr": (0, 1e30),
    "warmup_error_percent": (0, 100),
    "padding": (0, 10**4),
    "early_scale": (0, 1),
    "early_until": (0, 1),
    "cache_gb": (0, 1e6),
    "layer_decay": (0, 1),
    "center_crop_from": (0, 1),
    "min_area": (0, 1),
    "pca_color": (0, 1e6),
    "patience": (1, 10**6),
    "rotation": (0, 180),
    "erase": (0, 1),
    "mixup": (0, 1e6),
    "cutmix": (0, 1e6),
    "size": (1, 2**16),
    "resize": (1, 2**16),
    "threads": (0, 1024),  # far more make OpenMP end the process
    "workers": (0, 1024),
    "seed": (0, 2**63 - 1),
    "evaluate_every": (1e-3, 1e9),
    "log_every": (1, 10**9),
    "save_every": (0, 1e9),
}

_PAPER_CIFAR10 = Recipe(
    iterations=64_000,
    lr=0.1,
    nesterov=False,
    weight_decay=1e-4,
    decay_norm_and_bias=True,
    schedule="step",
    normalize="per-pixel",
    padding=4,
)

RECIPES: dict[str, Recipe] = {
    # docs/log.md lists the variants that were compared on the validation pictures.
    "cifar10": Recipe(
        optimizer="muon",
        muon_lr=0.03,
        epochs=30.0,
        batch_by_length=True,
        padding_mode="reflect",
        early_scale=0.75,
        center_crop_from=0.97,
        alternate_flip=True,
    ),
    "paper-cifar10": _PAPER_CIFAR10,
    "paper-cifar10-110": replace(_PAPER_CIFAR10, model="resnet110", warmup_lr=0.01),
    # The mean is subtracted per channel, not per pixel: a mean picture would not fit the sizes of multi-scale testing.
    "paper-imagenet": Recipe(
        model="resnet50_v1",
        iterations=600_000,
        batch_size=256,
        lr=0.1,
        nesterov=False,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        schedule="plateau",
        normalize="imagenet",
        crop="scale-jitter",
        pca_color=0.1,
    ),
    "folder": Recipe(
        model="resnet18",
        rung="auto",
        epochs=30.0,
        batch_size=32,
        least_batch_size=8,
        lr=0.05,
        weight_decay=1e-4,
        label_smoothing=0.1,
        normalize="imagenet",
        crop="random-resized",
        min_area=0.25,
        log_every=20,
    ),
}
PURPOSES: dict[str, str] = {
    "cifar10": "The default for CIFAR: one-cycle schedule, Muon for the convolutions, alternating flips, small crops "
    "in the first half and no crops in the last epoch. resnet20 has about 8.3 % test error after 30 epochs on all "
    "50,000 pictures; two cores take about 15 minutes.",
    "paper-cifar10": "The paper's recipe for CIFAR-10 (Sec. 4.2): 64k steps of 128 pictures, learning rate 0.1 divided "
    "by 10 at 32k and 48k, weight decay 1e-4 on everything; 4 px of padding, random crop and flip, per-pixel mean "
    "subtracted. Table 6: 8.75 % test error for resnet20; about 1.3 hours at 1,700 pictures a second.",
    "paper-cifar10-110": "The same for 110 layers; the learning rate is 0.01 until the training error is under 80 % "
    "(Sec. 4.2). Table 6: 6.61 +- 0.16 % test error, the best 6.43 %.",
    "paper-imagenet": "The paper's recipe for ImageNet (Sec. 3.4): up to 600k steps of 256 pictures, learning rate 0.1 "
    "divided by 10 when the error plateaus. For GPUs.",
    "folder": "The default for a folder or CSV file of your own pictures. From published weights of the network, or "
    "from `init`, it goes up a ladder: the last layer, the last stage, the whole network (docs/training.md). The "
    "learning rate is for random weights and batches of 32.",
}
"""The purpose of each recipe, with the expected result and its cost if they are known."""
DEFAULT_ROWS = ("cifar10", "folder")
"""The recipes that are used if no recipe is named: for CIFAR, and for other data."""
FLAG = "a flag"
"""The place that `check_effects` gets for a field that was given as a flag; for other fields, it gets a file name."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe called `name` in RECIPES. Raises UsageError with the nearest name if there is none."""
    if name in RECIPES:
        return RECIPES[name]
    near = get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
    raise UsageError(f"no recipe is called {name!r}; {hint}")


def changed(recipe: Recipe, changes: Mapping[str, Any], *, source: str) -> Recipe:
    """Return `recipe` with other values in some fields; lists become tuples.

    `source` is the origin of the changes for messages: a file name or "flags". Raises UsageError for values that are
    not valid and for a field that does not exist.
    """
    names = [field.name for field in fields(Recipe)]
    for key in changes:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            raise UsageError(f"{source}: no field is called {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    if all(name in values for name in LENGTHS) and [values["iterations"], values["minutes"]] != [None, None]:
        values["epochs"] = None  # earlier versions wrote a value of epochs in addition to the length that was used
    return recipe.replace(**values)


def read_recipe(path: Path, base: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """Read a YAML file and return `base` with its fields, and the file's `run` entry, which a run folder's file has.

    Raises UsageError if the file can't be read, is not YAML, or has fields or values that are not valid.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a list of `field: value` lines")
    run: object = content.pop("run", None)
    return changed(base, content, source=str(path)), run if isinstance(run, dict) else {}


def write_recipe(path: Path, recipe: Recipe, run: Mapping[str, Any]) -> None:
    """Write a recipe as YAML for read_recipe, with the dict `run` as an additional entry of this name."""
    write_whole(path, as_yaml(recipe.to_dict() | {"run": dict(run)}))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, in their order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
