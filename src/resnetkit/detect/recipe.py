"""How a detector is trained: the settings that `resnetkit detect train` has as flags. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from resnetkit.errors import UsageError
from resnetkit.train.recipe import LENGTHS, Recipe


@dataclass(frozen=True)
class DetectionRecipe:
    """The settings of a run. The settings, the data and the seed together decide every weight."""

    detector: str = "fpn-small"
    """The detector around the trunk: fpn-small, for CPUs; fpn and fpn-v2, torchvision's; c4, the paper's."""
    model: str = "resnet18"
    """The trunk: a network that `resnetkit models` lists, with its normalisation frozen."""
    init: str | None = None
    """Model with the trunk's first weights, or a detector to go on from: a model file, a run folder, NAME:WEIGHTS.
    Unset: the published ImageNet weights of `model`."""
    freeze: int = 2
    """Number of the trunk's parts that keep their weights: 1 the stem, 2 the stem and the first stage, and so on."""
    size: int | None = None
    """Shorter side of a picture after resizing, in pixels; unset: as for `init` if it is a detector, else 320."""
    context: bool = False
    """Join the features of the whole picture to those of each region (the paper's global context)."""
    fit_anchors: bool = False
    """Fit the sizes and shapes of the anchors to the boxes of the training pictures."""

    epochs: float | None = None
    """Length of the run, in passes over the training pictures; 30 if no length is given."""
    iterations: int | None = None
    """Length of the run in optimiser steps, instead of epochs."""
    minutes: float | None = None
    """Length of the run in minutes, instead of epochs: the whole schedule is fitted into this time."""
    annotations: Literal["voc", "coco", "yolo"] | None = None
    """Form of the boxes if DATA has several; unset: what it has."""
    batch_size: int = 4
    """Number of pictures in a batch."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one optimiser step."""
    val_fraction: float = 0.2
    """Data without a val part: the share of the pictures that is used for validation."""
    group_alike: bool = True
    """Data without a val part: keep pictures that are alike in one part."""
    group_by: str | None = None
    """Data without a val part: also keep together what has the same parent folder (parent), was taken within a minute
    by one camera (exif-time), or has the same match of a regular expression in its path."""

    lr: float = 0.01
    """Highest learning rate."""
    momentum: float = 0.9
    """Momentum of SGD, 0 to 1."""
    weight_decay: float = 1e-4
    """L2 penalty on the weights, without normalisation and biases."""
    gradient_clip: float = 10.0
    """Longest gradient, as the L2 norm over all weights; 0 is no limit."""
    schedule: Literal["one-cycle", "cosine", "step", "plateau", "constant"] = "one-cycle"
    """Schedule of the learning rate."""
    peak_at: float = 0.1
    """one-cycle: the share of the run after which the rate is highest."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, which is then evaluated and saved. 0 is off."""
    patience: int | None = None
    """Stop the run after so many evaluations in a row without a higher AP. Unset: train to the end."""

    flip: bool = True
    """Mirror half of the training pictures."""
    vertical_flip: bool = False
    """Mirror half of the training pictures top to bottom; for pictures that have no upper side."""
    jitter: tuple[float, ...] = (0.8, 1.25)
    """Range of the random factor on the size of training pictures."""
    color: float = 0.2
    """Largest random change of brightness, contrast and saturation of training pictures, as a share; 0 is off."""

    cache_gb: float = 1.0
    """Largest memory for decoded training pictures, in 10⁹ bytes; the others are decoded again in each epoch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto uses a GPU if there is one."""
    threads: int = 0
    """Threads that compute; 0 is one per core."""
    workers: int = 2
    """Threads that prepare pictures."""
    seed: int = 0
    """Decides the first weights, the order of the pictures, their augmentation and the split."""
    strict: bool = False
    """Fail on an unreadable picture, instead of naming, counting and skipping it."""
    evaluate_every: float = 1.0
    """Epochs between evaluations on the validation pictures."""
    log_every: int = 20
    """Steps between two lines of training metrics."""
    save_every: float = 60.0
    """Seconds between two checkpoints."""

    def __post_init__(self) -> None:
        """Raise UsageError, which names the field, for values that are not valid."""
        self.for_loop()  # refuses what a Recipe refuses
        object.__setattr__(self, "jitter", tuple(self.jitter))
        if len(self.jitter) != 2 or not 0 < self.jitter[0] <= self.jitter[1]:
            raise UsageError(f"`jitter` is {list(self.jitter)}; give the smallest and the largest factor, over 0")
        if not 0 <= self.color <= 1:
            raise UsageError(f"`color` is {self.color}; it must be from 0 to 1")

    def for_loop(self) -> Recipe:
        """Return the recipe for the training loop, which has the same values in the fields that both have."""
        both = {field.name for field in fields(Recipe)} & {field.name for field in fields(self)} - {"jitter"}
        values = {name: getattr(self, name) for name in both}
        if all(values[name] is None for name in LENGTHS):
            values["epochs"] = 30.0
        return Recipe(
            **values,
            rung="off",
            precision="float32",
            nesterov=False,
            least_batch_size=None,
            normalize="imagenet",
            compile="off",
            recompute="off",
        )

    def replace(self, **changes: Any) -> "DetectionRecipe":
        """Return the recipe with other values in some fields; a new length replaces the old one."""
        changes = {name: value for name, value in changes.items() if name not in LENGTHS or value is not None}
        lengths = dict.fromkeys(LENGTHS) if changes.keys() & set(LENGTHS) else {}
        return replace(self, **lengths | changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for YAML and JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DetectionRecipe":
        """Return the recipe with these values. Raises UsageError for a field that does not exist."""
        if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
            raise UsageError(f"no field is called {unknown[0]!r}")
        plain: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**plain)
