"""Residual networks, complete: from the paper to production.

The names below are imported when they are first used, so `import resnetkit` is quick and needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from resnetkit.version import __version__ as __version__

if TYPE_CHECKING:
    from resnetkit.allocator import keep_memory
    from resnetkit.convert import convert
    from resnetkit.data.dataset import open_dataset
    from resnetkit.data.samples import Dataset, Samples
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.errors import DataError, ExportError, ModelFileError, ResnetkitError, TrainingError, UsageError
    from resnetkit.evaluation.evaluate import evaluate, evaluate_multilabel
    from resnetkit.evaluation.metrics import Evaluation
    from resnetkit.evaluation.multilabel import MultiLabelEvaluation
    from resnetkit.finetune.ladder import resume
    from resnetkit.hub import from_hub, to_hub
    from resnetkit.infer.answers import Prediction
    from resnetkit.infer.choice import Choice
    from resnetkit.infer.exports.export import export
    from resnetkit.infer.predictor import Predictor
    from resnetkit.infer.tuning.tune import tune
    from resnetkit.modelfile import load, save
    from resnetkit.models.resnet import (
        ResNet,
        build,
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        resnext50_32x4d,
        resnext101_32x8d,
        resnext101_64x4d,
        wide_resnet50_2,
        wide_resnet101_2,
    )
    from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
    from resnetkit.train import train
    from resnetkit.train.loop import InterruptedTrainingError
    from resnetkit.train.recipe import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "SPECS",
    "Choice",
    "DataError",
    "Dataset",
    "Evaluation",
    "ExportError",
    "InterruptedTrainingError",
    "ModelFileError",
    "ModelSpec",
    "MultiLabelEvaluation",
    "Prediction",
    "Predictor",
    "Preprocess",
    "Recipe",
    "ResNet",
    "ResnetkitError",
    "Samples",
    "TrainingError",
    "UsageError",
    "build",
    "convert",
    "evaluate",
    "evaluate_multilabel",
    "export",
    "from_hub",
    "keep_memory",
    "load",
    "open_dataset",
    "parse_spec",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resume",
    "save",
    "to_hub",
    "train",
    "tune",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_HOMES = {
    "resnetkit.allocator": ("keep_memory",),
    "resnetkit.data.dataset": ("open_dataset",),
    "resnetkit.data.samples": ("Dataset", "Samples"),
    "resnetkit.data.transforms.preprocess": ("Preprocess",),
    "resnetkit.errors": (
        "DataError",
        "ExportError",
        "ModelFileError",
        "ResnetkitError",
        "TrainingError",
        "UsageError",
    ),
    "resnetkit.infer.choice": ("Choice",),
    "resnetkit.infer.exports.export": ("export",),
    "resnetkit.infer.answers": ("Prediction",),
    "resnetkit.infer.predictor": ("Predictor",),
    "resnetkit.infer.tuning.tune": ("tune",),
    "resnetkit.hub": ("from_hub", "to_hub"),
    "resnetkit.modelfile": ("load", "save"),
    "resnetkit.models.resnet": (
        "ResNet",
        "build",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "resnext101_64x4d",
        "wide_resnet50_2",
        "wide_resnet101_2",
    ),
    "resnetkit.models.spec": ("SPECS", "ModelSpec", "parse_spec"),
    "resnetkit.evaluation.evaluate": ("evaluate", "evaluate_multilabel"),
    "resnetkit.evaluation.metrics": ("Evaluation",),
    "resnetkit.evaluation.multilabel": ("MultiLabelEvaluation",),
    "resnetkit.train.loop": ("InterruptedTrainingError",),
    "resnetkit.train.recipe": ("RECIPES", "Recipe"),
    "resnetkit.finetune.ladder": ("resume",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # PEP 562
    if name in ("convert", "train"):  # packages that are also functions: see verb.py
        return import_module(f"resnetkit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
