"""The task of telling classes apart: what a recipe and a data set come to, and one label per picture learnt."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit.data.loader import Batch, Loader
from resnetkit.data.parts import record
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.device import choose_device, choose_precision
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.batches import evaluation_batch
from resnetkit.evaluation.evaluate import evaluate_net
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.report import write_report
from resnetkit.files import expanded
from resnetkit.location import short_name
from resnetkit.modelfile import Header, Model, load, save
from resnetkit.models.freezing import freeze
from resnetkit.models.resnet import ResNet, build
from resnetkit.precision import exact_float32, unfolds_bfloat16
from resnetkit.progress import Advance
from resnetkit.train.compute import Forward, choose_forward, refuse_single_values
from resnetkit.train.effects import effective_fields
from resnetkit.train.memory import available_memory, choose_recompute, training_need
from resnetkit.train.network import choose_spec, copy_weights
from resnetkit.train.preparation import choose_augment, choose_preprocess
from resnetkit.train.recipe import Recipe
from resnetkit.train.task import Measured, Step

LEAST_EVALUATED = 8  # pictures at a time; else as many as in a step, so that a stop waits no longer than for that


@dataclass(frozen=True)
class Classification:
    """A Task: cross-entropy is learnt, and the validation's top-1 error says which model is the best."""

    net: ResNet
    header: Header
    recipe: Recipe
    loader: Loader
    """Training batches."""
    val: Samples | None
    device: torch.device
    precision: str
    normalize: Normalize
    forward: Forward
    """The network in training: normalised images to logits."""
    computed_by: str
    recompute: bool
    counts: tuple[str, ...] = ("error",)
    score: str = "error_percent"

    @property
    def title(self) -> str:
        """Model and data."""
        return f"{self.recipe.model} on {self.header.data['name']}"

    @property
    def training_pictures(self) -> int:
        """Pictures in an epoch."""
        return len(self.loader.samples)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    @property
    def validation_pictures(self) -> int:
        """Pictures in a validation."""
        return len(self.val) if self.val is not None else 0

    @cached_property
    def validated_at_once(self) -> int:
        """As many as in a step, so that a stop waits no longer than for that; at most what memory is promised for."""
        return min(
            max(self.recipe.batch_size, LEAST_EVALUATED), evaluation_batch(self.net, self.header.preprocess.size)
        )

    def augment(self, progress: float) -> Augment:
        """How the pictures of a step are varied."""
        return choose_augment(self.recipe, self.header.preprocess, progress)

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[Batch]:
        """Augmented pictures; ends early where `progress` calls for another augmentation."""
        augment = self.augment(progress())
        with closing(self.loader.epoch(epoch, first_batch, augment=augment)) as batches:
            for batch in batches:
                yield batch
                if self.augment(progress()) != augment:
                    return

    def early_cost(self, progress: float) -> float:
        """A step is taken to cost as its pixels."""
        preprocess = self.header.preprocess
        return (self.augment(progress).side(preprocess) / preprocess.size) ** 2

    def train_mode(self) -> None:
        """Batch norm takes its statistics from the batch, but for what is frozen."""
        self.net.train()
        freeze(self.net, self.recipe.freeze)

    def step(self, batch: Batch, *, pictures: int) -> Step:
        """Cross-entropy in nats, with the recipe's label smoothing; counts the pictures whose best class is wrong."""
        labels = batch.labels.to(self.device)
        logits = self.forward(self.normalize(batch.images))
        mean = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        wrong = (logits.argmax(dim=1) != labels).sum()
        return Step(len(batch) / pictures * mean, {"error": int(wrong)})

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Top-1 error in percent and cross-entropy in nats, in float32, on the validation pictures."""
        if self.val is None:
            return None
        evaluation = evaluate_net(
            _resnet(net),
            self.val,
            self.header.preprocess,
            batch_size=self.validated_at_once,
            workers=self.recipe.workers,
            strict=self.recipe.strict,
            advance=advance,
        )
        values = {
            "loss": round(evaluation.loss, 6),
            "error_percent": evaluation.top1_error_percent,
            "images": evaluation.images,
        }
        return Measured(values, evaluation.to_state())

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any]) -> None:
        """Write a model file with the weights of `net`."""
        save(path, _resnet(net), replace(self.header, metrics=metrics))

    def report(self, path: Path, header: Header, measured: Measured | None, *, curves: bytes) -> None:
        """Write errors, curves, classes and confusions as a page."""
        write_report(
            path,
            header,
            title=self.title,
            evaluated=Evaluation.from_state(measured.details) if measured else None,
            recipe=effective_fields(header.recipe, header.data.get("split", {})),
            on="validation pictures",
            curves=curves,
        )

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Files that could not be decoded, each with the reason."""
        validated = Evaluation.from_state(measured.details).unreadable if measured else {}
        return {**self.loader.unreadable, **validated}

    def example(self, pictures: int) -> Batch:
        """Pictures of noise, all of the first class."""
        return Batch(
            images=some_pictures(self.header.preprocess, pictures),
            labels=torch.zeros(pictures, dtype=torch.int64),
            indices=torch.arange(pictures),
            number=0,
        )

    def validate_example(self, pictures: int) -> None:
        """Compute logits in float32."""
        self.net.eval()
        with torch.no_grad(), exact_float32():
            self.net(self.normalize(some_pictures(self.header.preprocess, pictures))).sum().item()


def prepare(recipe: Recipe, dataset: Dataset, header: Header | None = None) -> Classification:
    """Build the network, the preprocessing and the loader that `recipe` asks for on `dataset`.

    `header` is that of a run that goes on: its network and preprocessing hold, and `recipe.init` is not read again.
    Raises UsageError and DataError for a recipe and data that don't go together.
    """
    if dataset.train is None or not len(dataset.train):
        raise DataError(f"{dataset.name} has no training pictures; expected {dataset.name}/train/<class>/<image>")
    if len(dataset.classes) < 2:
        only = f"{dataset.name} has one class ({dataset.classes[0]})"
        raise DataError(f"{only}; a classifier needs two or more")
    if recipe.schedule == "plateau" and (dataset.val is None or not len(dataset.val)):
        raise UsageError("`schedule` plateau watches the validation error, and there are no validation pictures")
    device = choose_device(recipe.device)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = load(str(expanded(recipe.init))) if recipe.init and header is None else None
    spec = header.spec if header else choose_spec(recipe, dataset, start)
    preprocess = header.preprocess if header else choose_preprocess(recipe, dataset.train, spec, start)
    augment = choose_augment(recipe, preprocess)
    if (smallest := augment.side(preprocess)) < spec.least_size:
        setting = (
            f"`size` {smallest}" if smallest == preprocess.size else f"crops of {smallest} pixels by `early_scale`"
        )
        raise UsageError(f"{setting}: {recipe.model} takes pictures of {spec.least_size} pixels or more")
    torch.manual_seed(recipe.seed)
    net = build(spec, zero_init_residual=recipe.zero_init_residual)
    if start:
        copy_weights(start, net, dataset.classes)
    freeze(net, recipe.freeze)
    precision = choose_precision(recipe.precision, device)
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
    return Classification(
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
        recipe=recipe,
        loader=loader,
        val=dataset.val if dataset.val is not None and len(dataset.val) else None,
        device=device,
        precision=precision,
        normalize=Normalize(preprocess, device),
        forward=forward,
        computed_by=computed_by,
        recompute=recompute,
    )


def _pictures(train: Samples, start: Model | None) -> dict[str, Any]:
    """What the model file keeps to recognise what trained it: these pictures, and those of the first weights."""
    earlier = start.header.data.get("pictures") if start else None
    return record(train, *([earlier] if earlier else []))


def _resnet(net: nn.Module) -> ResNet:
    """`net` itself, known to be a residual network; a moving average keeps it as a plain module."""
    if not isinstance(net, ResNet):
        raise TypeError(f"a classifier here is a ResNet, not a {type(net).__name__}")
    return net


def some_pictures(preprocess: Preprocess, count: int) -> Tensor:
    """Pictures of noise, uint8 (count, channels, size, size), from a generator of their own."""
    side, noise = preprocess.size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, side, side, preprocess.channels), dtype=torch.uint8, generator=noise)
    return pixels.permute(0, 3, 1, 2)
