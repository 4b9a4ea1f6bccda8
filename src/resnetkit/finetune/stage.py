"""The task of a network's last stage: it learns from kept inputs of that stage, and the parts before it are frozen."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resnetkit.data.order import Order
from resnetkit.evaluation.calibration import LogitSample
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.multilabel import MultiLabelEvaluation
from resnetkit.finetune.features import Features
from resnetkit.modelfile import Header, Model
from resnetkit.models.freezing import freeze
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32
from resnetkit.progress import Advance
from resnetkit.train.classification import Classification, measured_classes, measured_labels
from resnetkit.train.task import Measured, Step

VALIDATED_AT_ONCE = 64
LEAST_SIDE = 0.78
"""Smallest window of a map in training, as a share of its side."""


@dataclass(frozen=True)
class MapBatch:
    """Inputs of the last stage, with labels."""

    maps: Tensor
    """float16 (n, channels, h, w)."""
    labels: Tensor
    """int64 (n,)."""
    number: int

    def __len__(self) -> int:
        return len(self.labels)


class StageTask:
    """A Task that trains the last stage and the head by cross-entropy, on one view of each picture in an epoch.

    Batch normalisation keeps its statistics: with few pictures, those of ImageNet are better, and a picture's loss does
    not depend on its neighbours. Its gain and bias are trained.
    """

    score = "error_percent"
    precision = "float32"
    computed_by = "eager"
    recompute = False
    early_steps = (0.0, 1.0)

    def __init__(
        self,
        whole: Classification,
        train: Features,
        val: Features | None,
        *,
        header: Header,
        batch_size: int,
        seed: int,
    ) -> None:
        """Freeze all parts of the network of `whole` before its last stage. `header` is that of the model files."""
        self.net: ResNet = whole.net
        self.seed = seed
        freeze(self.net, len(self.net.parts) - 2)
        self.whole, self.train, self.val, self.header = whole, train, val, header
        self.counts: tuple[str, ...] = whole.counts
        self.last = self.net.stage_names[-1]
        self.order = Order(
            len(train), batch_size=batch_size, shuffle=True, seed=seed, drop_last=len(train) >= batch_size
        )

    @property
    def title(self) -> str:
        """Title of the curves and of the report."""
        return f"{self.whole.title}, last stage"

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.whole.device

    @property
    def training_pictures(self) -> int:
        """Number of pictures in an epoch."""
        return len(self.train)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.order)

    @property
    def validation_pictures(self) -> int:
        """Number of pictures in a validation."""
        return len(self.val) if self.val is not None else 0

    @property
    def validated_at_once(self) -> int:
        """Number of pictures in a batch of the validation."""
        return VALIDATED_AT_ONCE

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[MapBatch]:
        """Yield batches of maps. A picture's view changes from epoch to epoch, and pictures begin at different ones.

        Of each map, a random window is taken, in a batch of one size: a crop of the picture that costs nothing. The
        head makes hardly a mistake on the whole maps, which it was fitted to, so they alone would teach little.
        """
        views = len(self.train.views)
        for batch in self.order.batches(epoch, first_batch):
            view = (batch.indices + epoch) % views
            rows = [self.train.maps(v, batch.indices[[i]]) for i, v in enumerate(view.tolist())]
            rng = np.random.Generator(np.random.PCG64([self.seed, epoch, batch.number]))
            maps = torch.from_numpy(windows(np.concatenate(rows), rng))
            yield MapBatch(maps, torch.from_numpy(self.train.labels[batch.indices]), batch.number)

    def train_mode(self) -> None:
        """Leave evaluation mode on: normalisation by the running statistics."""
        self.net.eval()

    def logits(self, net: ResNet, maps: Tensor) -> Tensor:
        """Map inputs of the last stage, float16 (n, channels, h, w), to logits, float32 (n, classes)."""
        x = maps.to(self.device).to(torch.float32, memory_format=torch.channels_last)
        return net.run(x, first=self.last)

    def step(self, batch: MapBatch, *, pictures: int) -> Step:
        """Return the cross-entropy in nats and the number of wrong top-1 predictions."""
        labels = batch.labels.to(self.device)
        logits = self.logits(self.net, batch.maps)
        mean = self.whole.loss(logits, labels)
        return Step(len(batch) / pictures * mean, self.whole.counted(logits, labels))

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Return error and loss on the validation pictures, from their kept maps."""
        if self.val is None:
            return None
        assert isinstance(net, ResNet)
        net.eval()
        places = torch.arange(len(self.val)).numpy()
        kept = self.val

        def batches() -> Iterator[NDArray[np.float32]]:
            for first in range(0, len(places), VALIDATED_AT_ONCE):
                some = places[first : first + VALIDATED_AT_ONCE]
                yield self.logits(net, torch.from_numpy(kept.maps(0, some))).numpy(force=True)
                advance(len(some))

        with torch.no_grad(), exact_float32():
            return measured(batches(), kept)

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any], measured: Measured | None) -> None:
        """Write a model file with the weights of `net`."""
        self.whole.save(path, net, metrics, measured)

    def load(self, path: Path) -> Model:
        """Return the model in a file that `save` wrote."""
        return self.whole.load(path)

    def report(
        self, path: Path, model: Model, measured: Measured | None, *, curves: bytes, about: Mapping[str, Any]
    ) -> None:
        """Write the HTML report."""
        self.whole.report(path, model, measured, curves=curves, about=about)

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Return the files that could not be read."""
        return {**self.train.unreadable, **(self.val.unreadable if self.val is not None else {})}

    def example(self, pictures: int) -> MapBatch:
        """Return a batch of maps, all of the first picture."""
        maps = torch.from_numpy(self.train.maps(0, torch.zeros(pictures, dtype=torch.int64).numpy()))
        labels = torch.zeros((pictures, *self.train.labels.shape[1:]), dtype=torch.int64)
        return MapBatch(maps, labels, 0)

    def validate_example(self, pictures: int) -> None:
        """Compute logits for maps."""
        with torch.no_grad(), exact_float32():
            self.logits(self.net.eval(), self.example(pictures).maps).sum().item()


def windows(maps: NDArray[np.float16], rng: np.random.Generator) -> NDArray[np.float16]:
    """Return a random window of each map, float16 (n, channels, h', w'): all of one size, down to 0.6 of the area."""
    height, width = maps.shape[2:]
    scale = rng.uniform(LEAST_SIDE, 1)
    h, w = (min(side, round(scale * side + 0.5)) for side in (height, width))
    tops, lefts = rng.integers(height - h + 1, size=len(maps)), rng.integers(width - w + 1, size=len(maps))
    return np.stack(
        [each[:, top : top + h, left : left + w] for each, top, left in zip(maps, tops, lefts, strict=True)]
    )


def measured(batches: Iterable[NDArray[np.float32]], features: Features) -> Measured:
    """Return the same values as the task's `validate`, from batches of logits, float32 (n, classes), of features."""
    samples, unreadable = features.samples, dict(features.unreadable)
    if samples.several:
        logits, having = np.concatenate(list(batches)), features.labels > 0
        return measured_labels(
            MultiLabelEvaluation(samples.classes, logits, having, features.indices, unreadable=unreadable)
        )
    evaluation = Evaluation(samples.classes, unreadable=unreadable)
    sample = LogitSample(len(features), len(samples.classes))
    labels, indices = torch.from_numpy(features.labels), torch.from_numpy(features.indices)
    first = 0
    for some in map(torch.from_numpy, batches):
        of = slice(first, first := first + len(some))
        evaluation.add(some.log_softmax(dim=1), labels[of])
        sample.add(some, labels[of], indices[of])
    return measured_classes(evaluation, sample)
