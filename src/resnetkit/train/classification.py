"""Classification as a training task. `prepare` makes the task from a recipe and a data set.

`Classification` gives one class for a picture, `MultiLabel` several or none.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.calibration import Calibration
from resnetkit.data.loader import Batch, Loader
from resnetkit.data.parts import record
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.device import choose_device, choose_precision
from resnetkit.display import shell
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.batches import evaluation_batch
from resnetkit.evaluation.calibration import LogitSample
from resnetkit.evaluation.evaluate import evaluate_labels, evaluate_net
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.mistakes import worst_labels, worst_mistakes
from resnetkit.evaluation.multilabel import MultiLabelEvaluation
from resnetkit.evaluation.multilabel_section import labels_section
from resnetkit.evaluation.report import versions, write_report
from resnetkit.evaluation.thresholds import fit_several
from resnetkit.files import expanded
from resnetkit.location import short_name
from resnetkit.modelfile import MULTILABEL, Header, Model, load, save
from resnetkit.models.freezing import freeze, keep_statistics
from resnetkit.models.resnet import ResNet, build
from resnetkit.precision import exact_float32, unfolds_bfloat16
from resnetkit.progress import Advance
from resnetkit.train.computing.compute import choose_forward, refuse_single_values
from resnetkit.train.computing.measuring import Forward
from resnetkit.train.computing.memory import available_memory, choose_recompute, training_need
from resnetkit.train.effects import effective_fields
from resnetkit.train.loss import ClassLoss, LabelLoss, Loss, balanced_weights, label_weights, prior_logits
from resnetkit.train.network import choose_spec, copy_weights
from resnetkit.train.preparation import choose_augment, choose_preprocess, training_loader
from resnetkit.train.recipe import Recipe
from resnetkit.train.task import Measured, Step

NO_SECTIONS: Mapping[str, str] = MappingProxyType({})
LEAST_EVALUATED = 8  # pictures in a batch of the validation


@dataclass(frozen=True)
class Classification:
    """A Task that minimises cross-entropy; the best model is the one with the lowest validation top-1 error."""

    net: ResNet
    header: Header
    recipe: Recipe
    loader: Loader
    """Training batches."""
    val: Samples | None
    device: torch.device
    precision: str
    normalize: Normalize
    loss: Loss
    forward: Forward
    """The network in training: normalised images (N, C, H, W) to logits (N, classes)."""
    computed_by: str
    recompute: bool
    counts: tuple[str, ...] = ("error",)
    score: str = "error_percent"

    @property
    def title(self) -> str:
        """Title of the curves and of the report: model and data."""
        return f"{self.recipe.model} on {self.header.data['name']}"

    @property
    def training_pictures(self) -> int:
        """Number of pictures in an epoch."""
        return len(self.loader.samples)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.loader)

    @property
    def validation_pictures(self) -> int:
        """Number of pictures in a validation."""
        return len(self.val) if self.val is not None else 0

    @cached_property
    def validated_at_once(self) -> int:
        """Number of pictures in a batch of the validation: those of a training batch, if memory allows it.

        So a stop during validation waits about as long as one during training.
        """
        return min(
            max(self.recipe.batch_size, LEAST_EVALUATED), evaluation_batch(self.net, self.header.preprocess.size)
        )

    def augment(self, progress: float) -> Augment:
        """The augmentation at `progress` (0 to 1) of the run."""
        return choose_augment(self.recipe, self.header.preprocess, progress)

    def batches(self, epoch: int, first_batch: int, progress: Callable[[], float]) -> Generator[Batch]:
        """Yield batches of augmented pictures; end early when `progress` requires another augmentation."""
        augment = self.augment(progress())
        with closing(self.loader.epoch(epoch, first_batch, augment=augment)) as batches:
            for batch in batches:
                yield batch
                if self.augment(progress()) != augment:
                    return

    @property
    def early_steps(self) -> tuple[float, float]:
        """Until the crops are of full size. A step is assumed to take as long as it has pixels."""
        preprocess, recipe = self.header.preprocess, self.recipe
        cost = (self.augment(0.0).side(preprocess) / preprocess.size) ** 2
        return (min(recipe.early_until, recipe.center_crop_from), cost) if cost < 1 else (0.0, 1.0)

    def train_mode(self) -> None:
        """Set training mode: batch norm uses the statistics of the batch, except where they are kept."""
        self.net.train()
        freeze(self.net, self.recipe.freeze)
        if self.recipe.keep_statistics:
            keep_statistics(self.net)

    def step(self, batch: Batch, *, pictures: int) -> Step:
        """Return the cross-entropy in nats and the number of wrong top-1 predictions.

        In a batch of mixed pictures, the right class is that of the larger share.
        """
        labels, images, mix = batch.labels.to(self.device), self.normalize(batch.images), batch.mix
        logits = self.forward(images if mix is None else mix.images(images))
        mean = self.loss(logits.float(), labels, mix)
        larger = labels if mix is None or mix.share >= 0.5 else mix.neighbours(labels)
        return Step(len(batch) / pictures * mean, self.counted(logits, larger))

    def counted(self, logits: Tensor, labels: Tensor) -> dict[str, int]:
        """Return the counts of a batch of logits (n, classes): wrong top-1 predictions."""
        return {"error": int((logits.argmax(dim=1) != labels).sum())}

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Return top-1 error in percent and cross-entropy in nats on the validation pictures, computed in float32."""
        if self.val is None:
            return None
        sample = LogitSample(len(self.val), len(self.val.classes))
        evaluation = evaluate_net(
            _resnet(net),
            self.val,
            self.header.preprocess,
            batch_size=self.validated_at_once,
            workers=self.recipe.workers,
            strict=self.recipe.strict,
            see=sample.add,
            advance=advance,
        )
        return measured_classes(evaluation, sample)

    def save(self, path: Path, net: nn.Module, metrics: Mapping[str, Any], measured: Measured | None) -> None:
        """Write a model file with the weights of `net`, and the calibration that its validation gave."""
        save(path, _resnet(net), replace(self.header, metrics=metrics, calibration=calibration_in(measured)))

    def load(self, path: Path) -> Model:
        """Return the model in a file that `save` wrote."""
        return load(path)

    def report(
        self,
        path: Path,
        model: Model,
        measured: Measured | None,
        *,
        curves: bytes,
        about: Mapping[str, Any],
        sections: Mapping[str, str] = NO_SECTIONS,
    ) -> None:
        """Write errors, mistakes, classes, confusions, calibration and curves as an HTML page.

        `sections` are further parts of the page, as heading and HTML.
        """
        header = model.header
        evaluated = Evaluation.from_state(measured.details) if measured else None
        records = evaluated.records if evaluated else None
        if records and records.indices.max(initial=-1) >= len(self.val or ()):
            records = None  # they are of the validation pictures that a run of an earlier version had before
        write_report(
            path,
            header,
            title=self.title,
            evaluated=evaluated,
            recipe=effective_fields(header.recipe, header.data.get("split", {})),
            on="validation pictures",
            curves=curves,
            mistakes=list(worst_mistakes(model, self.val, records)) if records and self.val else [],
            sections=sections,
            made_by=self.made_by(path, header, about),
        )

    def made_by(self, path: Path, header: Header, about: Mapping[str, Any]) -> dict[str, str]:
        """Return what the report at `path` says about where the run comes from."""
        data, fingerprint = short_name(str(header.data.get("name", ""))), str(header.data.get("fingerprint", ""))
        config = Path(path.parent.name, "recipe.yaml")
        return {
            "command": str(about.get("command") or f"resnetkit train {shell(data)} --config {shell(config)}"),
            "training data": f"{data}, {len(self.loader.samples):,} pictures, fingerprint {fingerprint}",
            **versions(),
        }

    def unreadable(self, measured: Measured | None) -> Mapping[Path, str]:
        """Return the files that could not be decoded, each with the reason."""
        validated = measured.details["unreadable"] if measured else {}
        return {**self.loader.unreadable, **{Path(path): reason for path, reason in validated.items()}}

    def example(self, pictures: int) -> Batch:
        """Return a batch of noise, all labels 0."""
        return Batch(
            images=some_pictures(self.header.preprocess, pictures),
            labels=torch.zeros((pictures, *self.loader.samples.labels.shape[1:]), dtype=torch.int64),
            indices=torch.arange(pictures),
            number=0,
        )

    def validate_example(self, pictures: int) -> None:
        """Compute logits in float32 for pictures of noise."""
        self.net.eval()
        with torch.no_grad(), exact_float32():
            self.net(self.normalize(some_pictures(self.header.preprocess, pictures))).sum().item()


def calibration_in(measured: Measured | None) -> Calibration | None:
    """Return the calibration that a validation gave."""
    values = measured.details.get("calibration") if measured else None
    return None if values is None else Calibration.from_dict(values)


@dataclass(frozen=True)
class MultiLabel(Classification):
    """A Task for pictures with several labels or none: one binary classifier for each class, on the same features.

    It minimises the mean of the binary cross-entropies. The best model is the one with the highest mean average
    precision on validation: `error_percent` is 100 minus that.
    """

    counts: tuple[str, ...] = ("inexact",)

    def counted(self, logits: Tensor, labels: Tensor) -> dict[str, int]:
        """Return the number of pictures whose labels are not exactly those with a probability over a half."""
        return {"inexact": int(((logits > 0) != (labels > 0)).any(dim=1).sum())}

    def validate(self, net: nn.Module, advance: Advance) -> Measured | None:
        """Return 100 - mAP, F1 at the thresholds that these pictures choose, and the loss, computed in float32."""
        if self.val is None:
            return None
        return measured_labels(
            evaluate_labels(
                _resnet(net),
                self.val,
                self.header.preprocess,
                batch_size=self.validated_at_once,
                workers=self.recipe.workers,
                strict=self.recipe.strict,
                advance=advance,
            )
        )

    def report(
        self,
        path: Path,
        model: Model,
        measured: Measured | None,
        *,
        curves: bytes,
        about: Mapping[str, Any],
        sections: Mapping[str, str] = NO_SECTIONS,
    ) -> None:
        """Write average precisions, F1 and thresholds of the classes, calibration and curves as an HTML page."""
        header = model.header
        evaluated = MultiLabelEvaluation.from_state(measured.details) if measured else None
        mistakes = list(worst_labels(model, self.val, evaluated)) if evaluated and self.val else []
        write_report(
            path,
            header,
            title=self.title,
            evaluated=None,
            before=labels_section(evaluated, on="validation pictures", chose=True, mistakes=mistakes)
            if evaluated
            else "",
            recipe=effective_fields(header.recipe, header.data.get("split", {})),
            curves=curves,
            sections=sections,
            made_by=self.made_by(path, header, about),
        )


def measured_classes(evaluation: Evaluation, sample: LogitSample) -> Measured:
    """Return the result of a validation with one label; its calibration is fitted to its own logits, the `sample`."""
    evaluation.calibration = sample.fit()
    evaluation.records = sample.records(evaluation.calibration)
    values = {
        "loss": round(evaluation.loss, 6),
        "error_percent": evaluation.top1_error_percent,
        "images": evaluation.images,
    }
    return Measured(values, evaluation.to_state())


def measured_labels(evaluation: MultiLabelEvaluation) -> Measured:
    """Return the result of a validation with several labels; its thresholds are fitted to its own pictures."""
    calibration = fit_several(evaluation.logits, evaluation.labels)
    evaluation = replace(evaluation, calibration=calibration)
    values = {
        "loss": round(evaluation.loss, 6),
        "error_percent": evaluation.error_percent,
        "macro_f1_percent": evaluation.macro_f1_percent,
        "images": evaluation.images,
    }
    return Measured(values, evaluation.to_state())


def prepare(
    recipe: Recipe, dataset: Dataset, header: Header | None = None, *, computed_before: str | None = None
) -> Classification:
    """Build the task of `recipe` on `dataset`: network, preprocessing, loader and the way a step is computed.

    `header` is that of a resumed run. Its network and preprocessing are used, and `recipe.init` is not read again.
    `computed_before` is the way in which this run was computed until now, see `choose_forward`.
    Raises UsageError and DataError when the recipe and the data do not fit together.
    """
    if dataset.train is None or not len(dataset.train):
        raise DataError(f"{dataset.name} has no training pictures; expected {dataset.name}/train/<class>/<image>")
    several = dataset.train.several
    if not dataset.classes:
        raise DataError(f"{dataset.name}: no training picture has a label")
    if several and recipe.balance == "sampling":
        raise UsageError("`balance` sampling needs one label for a picture; give `balance` weights")
    if len(dataset.classes) < 2 and not several:
        only = f"{dataset.name} has one class ({dataset.classes[0]})"
        raise DataError(f"{only}; a classifier needs two or more")
    if recipe.schedule == "plateau" and (dataset.val is None or not len(dataset.val)):
        raise UsageError("`schedule` plateau needs a validation error, and there are no validation pictures")
    if recipe.patience and (dataset.val is None or not len(dataset.val)):
        raise UsageError("`patience` needs a validation error, and there are no validation pictures")
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
    kept_head = start is not None and start.header.classes == dataset.classes
    if start:
        copy_weights(start, net, dataset.classes)
    if several and header is None and not kept_head:
        with torch.no_grad():
            net.fc.bias.copy_(prior_logits(dataset.train.labels) if recipe.balance == "off" else torch.zeros(()))
    freeze(net, recipe.freeze)
    if recipe.keep_statistics:
        keep_statistics(net)
    precision = choose_precision(recipe.precision, device)
    actual_batch = min(recipe.batch_size, len(dataset.train))  # an incomplete last batch is dropped
    refuse_single_values(net, batch_size=actual_batch, size=augment.side(preprocess))
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
    loader = training_loader(recipe, dataset.train, preprocess, augment)
    forward, computed_by = choose_forward(
        *(net, recipe, device, precision),
        size=preprocess.size,
        recompute=recompute,
        steps=recipe.total_steps(len(loader)),
        before=computed_before,
    )
    weighted = recipe.balance == "weights"
    loss: Loss
    if several:
        pair = label_weights(dataset.train.labels)
        loss = LabelLoss((pair[0].to(device), pair[1].to(device)) if weighted else None)
    else:
        weights = balanced_weights(dataset.train.labels, len(dataset.classes)).to(device) if weighted else None
        loss = ClassLoss(recipe.label_smoothing, weights)
    return (MultiLabel if several else Classification)(
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
            kind=MULTILABEL if several else "classifier",
        ),
        recipe=recipe,
        loader=loader,
        val=dataset.val if dataset.val is not None and len(dataset.val) else None,
        device=device,
        precision=precision,
        normalize=Normalize(preprocess, device),
        loss=loss,
        forward=forward,
        computed_by=computed_by,
        recompute=recompute,
    )


def _pictures(train: Samples, start: Model | None) -> dict[str, Any]:
    """The record of training pictures for the model file: `train`, and the pictures that trained the first weights."""
    earlier = start.header.data.get("pictures") if start else None
    return record(train, *([earlier] if earlier else []))


def _resnet(net: nn.Module) -> ResNet:
    """Return `net` with the type ResNet; AveragedModel declares its network as a plain module."""
    if not isinstance(net, ResNet):
        raise TypeError(f"`net` must be a ResNet, not a {type(net).__name__}")
    return net


def some_pictures(preprocess: Preprocess, count: int) -> Tensor:
    """Return pictures of noise, uint8 (count, channels, size, size); torch's global generator is not used."""
    side, noise = preprocess.size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, side, side, preprocess.channels), dtype=torch.uint8, generator=noise)
    return pixels.permute(0, 3, 1, 2)
