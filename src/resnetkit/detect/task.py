"""Detection as a training task: boxes in pictures. The loop is that of every task."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnetkit.data.detection.samples import DetectionSamples
from resnetkit.detect.evaluate import find, find_all
from resnetkit.detect.files import THRESHOLDS, DetectorModel, load_detector, save_detector, with_thresholds
from resnetkit.detect.model import Detector
from resnetkit.detect.pictures import DetectionBatch, TrainingPictures
from resnetkit.detect.report import write_detection_report
from resnetkit.evaluation.detection.measures import measure
from resnetkit.evaluation.detection.worst import as_plain, precision_curve, worst_pictures
from resnetkit.modelfile import Header
from resnetkit.models.freezing import freeze
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance
from resnetkit.train.recipe import Recipe
from resnetkit.train.task import Measured, Step

WORST = 8
"""Pictures with errors in the report."""
SCORE = "ap50_gap_percent"
"""100 minus AP at an intersection over union of 0.5, in percent; lower is better."""


@dataclass
class DetectionTask:
    """A Task that trains a detector; the best model is the one with the highest AP at 0.5 on the validation pictures.

    The loss of a batch is the sum of four: of the proposals' objectness and boxes, and of the regions' classes and
    boxes (arXiv:1506.01497, Sec. 3).
    """

    net: Detector
    header: Header
    recipe: Recipe
    pictures: TrainingPictures
    val: DetectionSamples | None
    device: torch.device
    frozen: int
    """Number of the trunk's parts that keep their weights."""
    unread: dict[Path, str] = field(default_factory=dict)
    """Validation pictures that could not be read."""
    counts: tuple[str, ...] = ()
    score: str = SCORE
    precision: str = "float32"
    computed_by: str = "eager"
    recompute: bool = False
    early_steps: tuple[float, float] = (0.0, 1.0)

    @property
    def title(self) -> str:
        """Title of the curves and of the report."""
        return f"{self.net.spec.head} on {self.recipe.model}, {self.header.data['name']}"

    @property
    def training_pictures(self) -> int:
        """Number of pictures in an epoch."""
        return len(self.pictures.samples)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.pictures.order)

    @property
    def validation_pictures(self) -> int:
        """Number of pictures in a validation."""
        return len(self.val) if self.val is not None else 0

    @property
    def validated_at_once(self) -> int:
        """Number of pictures that are validated together."""
        return 1

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[DetectionBatch]:
        """Yield batches of changed pictures."""
        with closing(self.pictures.epoch(epoch, first_batch)) as batches:
            yield from batches

    def train_mode(self) -> None:
        """Set training mode. The trunk's normalisation is fixed in every mode."""
        self.net.train()
        freeze(self.net.body, self.frozen)

    def step(self, batch: DetectionBatch, *, pictures: int) -> Step:
        """Return the sum of the four losses."""
        losses = self.net.losses(batch.images, batch.boxes, batch.labels)
        return Step(len(batch) / pictures * torch.stack(list(losses.values())).sum())

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Return AP at 0.5 in percent, as VOC measures it since 2010, and for each class the best threshold."""
        if self.val is None:
            return None
        found, self.unread = find_all(
            partial(find, _detector(net).eval()),
            self.val,
            workers=self.pictures.recipe.workers,
            strict=self.pictures.recipe.strict,
            advance=advance,
        )
        result = measure(found, self.val, coco=find_spec("faster_coco_eval") is not None)
        ap50 = 0.0 if isnan(result.ap50_percent) else result.ap50_percent  # NaN without any object
        values = {SCORE: 100 - ap50, "ap50_percent": ap50, "images": len(self.val)}
        thresholds = {name: threshold.score for name, threshold in result.thresholds.items()}
        worst = worst_pictures(found, self.val, thresholds, most=WORST)
        details = {
            "evaluation": result.to_dict(),
            THRESHOLDS: thresholds,
            "curves": {name: precision_curve(one) for name, one in zip(result.classes, result.matches, strict=True)},
            "worst": [as_plain(one, self.val) for one in worst],
        }
        return Measured(values, details)

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any], measured: Measured | None) -> None:
        """Write a model file with the weights of `net`, and the thresholds that its validation gave."""
        header = replace(self.header, metrics=metrics)
        if measured:
            header = with_thresholds(header, measured.details[THRESHOLDS])
        save_detector(path, _detector(net), header)

    def load(self, path: Path) -> DetectorModel:
        """Return the detector in a file that `save` wrote."""
        return load_detector(path)

    def report(
        self, path: Path, model: DetectorModel, measured: Measured | None, *, curves: bytes, about: Mapping[str, Any]
    ) -> None:
        """Write the HTML report."""
        write_detection_report(
            path,
            model.header,
            title=self.title,
            measured=measured.details if measured else None,
            curves=curves,
            about=about,
        )

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Return the files that could not be read."""
        return {**self.pictures.unreadable, **self.unread}

    def example(self, pictures: int) -> DetectionBatch:
        """Return a batch of noise, with one object in the middle of each picture."""
        noise = torch.Generator().manual_seed(0)
        side = self.net.preprocess.size
        images = [torch.rand(3, side, round(4 / 3 * side), generator=noise) for _ in range(pictures)]
        middle = torch.tensor([[side / 3, side / 3, side * 2 / 3, side * 2 / 3]])
        return DetectionBatch(images, [middle] * pictures, [torch.zeros(1, dtype=torch.int64)] * pictures, 0)

    def validate_example(self, pictures: int) -> None:
        """Find objects in pictures of noise."""
        self.net.eval()
        with torch.no_grad(), exact_float32():
            self.net(self.example(pictures).images)


def _detector(net: nn.Module) -> Detector:
    """Return `net` with the type Detector; AveragedModel declares its network as a plain module."""
    if not isinstance(net, Detector):
        raise TypeError(f"`net` must be a Detector, not a {type(net).__name__}")
    return net
