"""Try preprocessings, and networks where several fit, on labelled pictures: the lowest error tells which was meant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnetkit.convert.annotations import Stated
from resnetkit.convert.presets import parse_preprocess
from resnetkit.data.transforms.preprocess import Preprocess

if TYPE_CHECKING:
    from resnetkit.models.resnet import ResNet

TRIED = {
    32: (
        "cifar-imagenet",
        "cifar10",
        "cifar10,std=0.2470:0.2435:0.2616",
        "cifar100",
        "size=32,mean=0.5:0.5:0.5,std=0.5:0.5:0.5",
        "size=32,mean=0:0:0,std=1:1:1",
    ),
    224: (
        "imagenet",
        "imagenet-bicubic",
        "imagenet,mean=0.5:0.5:0.5,std=0.5:0.5:0.5",
        "imagenet,mean=0:0:0,std=1:1:1",
        "caffe",
    ),
}
"""Usual preprocessings, as `preprocess` takes them, by the picture size in pixels that a network is made for."""


@dataclass(frozen=True)
class Check:
    """Labelled pictures to try networks on."""

    name: str
    """What they are: test pictures of cifar10."""
    pictures: int
    """How many there are."""
    classes: tuple[str, ...]
    """Their classes; the outputs are taken to be in this order where nothing else says it."""
    measure: Callable[["ResNet", Preprocess, tuple[str, ...]], tuple[float, int]]
    """(network, preprocessing, classes of its outputs) -> top-1 error in percent, and number of pictures measured."""


@dataclass(frozen=True)
class Trial:
    """The error of one choice."""

    model: str
    """The network, as `model` takes it."""
    preprocess: str
    """As `preprocess` takes it; empty where it was known already."""
    error_percent: float
    """Top-1 error."""
    pictures: int
    """Number of pictures that it was measured on."""


def try_all(
    check: Check,
    nets: Sequence[tuple[str, "ResNet"]],
    presets: Sequence[tuple[str, Preprocess]],
    classes: tuple[str, ...],
) -> list[Trial]:
    """Measure every network with every preprocessing."""
    return [Trial(model, text, *check.measure(net, preset, classes)) for model, net in nets for text, preset in presets]


def presets_for(size: int) -> list[tuple[str, Preprocess]]:
    """The preprocessings to try for networks that are made for pictures of `size` pixels, with their text."""
    return [(text, parse_preprocess(text)) for text in TRIED.get(size, ())]


def nearest(trials: Sequence[Trial], check: Check, stated: Stated | None) -> Trial:
    """The trial nearest to the error that the file states, where all pictures were seen; else that of the lowest error.

    On a part of the pictures an error differs by more than what two preprocessings make of it.
    """
    aim = stated.error_percent if stated and trials[0].pictures == check.pictures else 0.0
    return min(trials, key=lambda trial: abs(trial.error_percent - aim))
