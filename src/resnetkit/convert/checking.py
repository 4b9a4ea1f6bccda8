"""Choose the preprocessing, and the network if several fit, by the errors on labelled pictures."""

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
"""Picture size in pixels that a network is made for -> usual preprocessings, as `preprocess` accepts them."""


@dataclass(frozen=True)
class Check:
    """Labelled pictures, and a function that measures a network's error on them."""

    name: str
    """A description of the pictures: test pictures of cifar10."""
    pictures: int
    """Number of pictures."""
    classes: tuple[str, ...]
    """Names of their classes. The network's outputs are assumed to be in this order if their order is not known."""
    measure: Callable[["ResNet", Preprocess, tuple[str, ...]], tuple[float, int]]
    """(network, preprocessing, classes of its outputs) -> (top-1 error in percent, number of pictures measured)."""


@dataclass(frozen=True)
class Trial:
    """The error of one network with one preprocessing."""

    model: str
    """The network, as `model` accepts it."""
    preprocess: str
    """The preprocessing, as `preprocess` accepts it; empty if it was known before."""
    error_percent: float
    """Top-1 error."""
    pictures: int
    """Number of pictures measured."""


def try_all(
    check: Check,
    nets: Sequence[tuple[str, "ResNet"]],
    presets: Sequence[tuple[str, Preprocess]],
    classes: tuple[str, ...],
) -> list[Trial]:
    """Measure the error of every network with every preprocessing.

    `nets` and `presets` contain pairs of a text (as `model` and `preprocess` accept it) and the object. `classes` are
    the names of the outputs.
    """
    return [Trial(model, text, *check.measure(net, preset, classes)) for model, net in nets for text, preset in presets]


def presets_for(size: int) -> list[tuple[str, Preprocess]]:
    """Return the usual preprocessings of networks for pictures of `size` pixels, each with its text."""
    return [(text, parse_preprocess(text)) for text in TRIED.get(size, ())]


def nearest(trials: Sequence[Trial], check: Check, stated: Stated | None) -> Trial:
    """Return the trial nearest to the error in the file if all pictures were measured; else the lowest error's trial.

    An error on some of the pictures varies by more than two preprocessings differ, so it is not compared with the
    error in the file.
    """
    aim = stated.error_percent if stated and trials[0].pictures == check.pictures else 0.0
    return min(trials, key=lambda trial: abs(trial.error_percent - aim))
