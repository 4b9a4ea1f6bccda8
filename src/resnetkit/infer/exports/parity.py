"""Compare an exported file with its source on real pictures: how far do their outputs differ? No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.dataset import open_dataset
from resnetkit.data.folders.listing import find_below, is_picture_file
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.published.cifar import CIFARS, find_cifar
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError
from resnetkit.files import expanded
from resnetkit.infer.backends import softmax
from resnetkit.infer.choice import usable_threads
from resnetkit.infer.decoding import pixels_of

BATCH_SIZES = (1, 3, 16)
"""A file is run at each of them, because exported graphs are often right for one batch size only."""
MOST_PICTURES = 64
PACKAGED = Path(__file__).parent / "pictures.png"
"""16 pictures of CIFAR-10's test set (Krizhevsky, 2009) in a 4 × 4 grid: one of every class, and six more."""

Compute: TypeAlias = Callable[[NDArray[np.generic]], NDArray[np.float32]]


@dataclass(frozen=True)
class Gap:
    """The largest differences between the outputs of a file and its source, over all pictures and batch sizes."""

    pictures: int
    values: float | None
    """Difference of logits or features, in standard deviations of the source's; None if the file outputs neither."""
    probabilities: float | None
    """Difference of probabilities; None for features."""
    agreement: float | None
    """Fraction of the pictures, 0 to 1, whose best class is the same; None for features."""

    def within(self, tolerance: float) -> bool:
        """Whether no difference is larger than `tolerance`; NaN is."""
        return all(gap <= tolerance for gap in (self.values, self.probabilities) if gap is not None)


def measure(compute: Compute, inputs: NDArray[np.generic], expected: NDArray[np.float32], *, output: str) -> Gap:
    """Run a file on `inputs` in batches of each of BATCH_SIZES, and compare its outputs with `expected`.

    `output` says what both give: logits, probabilities or features.
    """
    pictures = len(inputs)
    rows = np.arange(max(pictures, *BATCH_SIZES)) % pictures  # too few pictures are repeated
    inputs, expected = inputs[rows], expected[rows]
    values = probabilities = 0.0
    agreeing = np.ones(len(inputs), bool)
    spread = float(expected.std()) or 1.0
    for batch in _batches(len(inputs)):
        found, source = compute(inputs[batch]), expected[batch]
        if found.shape != source.shape:
            values = probabilities = float("inf")
            agreeing[:] = False
            break
        values = max(values, float(np.abs(found - source).max()) / spread, key=_nan_is_largest)
        if output in ("logits", "probabilities"):
            both = (found, source) if output == "probabilities" else (softmax(found), softmax(source))
            probabilities = max(probabilities, float(np.abs(both[0] - both[1]).max()), key=_nan_is_largest)
            agreeing[batch] &= found.argmax(1) == source.argmax(1)
    classes = output in ("logits", "probabilities")
    return Gap(
        pictures,
        values if output != "probabilities" else None,
        probabilities if classes else None,
        float(agreeing[:pictures].mean()) if classes else None,
    )


def _batches(pictures: int) -> list[slice]:
    """The first pictures in a batch of each smaller size, then all pictures in batches of the largest."""
    *small, largest = BATCH_SIZES
    return [
        *(slice(0, size) for size in small),
        *(slice(first, first + largest) for first in range(0, pictures, largest)),
    ]


def _nan_is_largest(gap: float) -> float:
    return gap if gap == gap else float("inf")


def read_pixels(data: str | Path | None, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Read the pictures to compare on: preprocessed, uint8 (n, size, size, channels).

    They are at most MOST_PICTURES, evenly spaced over `data`: cifar10, cifar100, a folder, a CSV file, or one picture.
    Without `data`, they are the package's. Pictures that can't be read are left out. Raises DataError if none can be
    read.
    """
    sources = _packaged() if data is None else _sources(data)
    places = np.linspace(0, len(sources) - 1, min(len(sources), MOST_PICTURES)).round().astype(int)
    pixels: list[NDArray[np.uint8]] = []
    reason = "it holds no pictures"
    chosen = [sources[place] for place in places]
    reading = prefetch(partial(pixels_of, preprocess=preprocess), chosen, workers=usable_threads(), ahead=len(chosen))
    for found in reading:
        if isinstance(found, Failure):
            reason = str(found)
        else:
            pixels.append(found)
    if not pixels:
        raise DataError(f"{data} has no picture to compare with ({reason})")
    return np.stack(pixels)


def _sources(data: str | Path) -> Sequence[Path] | NDArray[np.uint8]:
    path = expanded(data)
    if path.is_dir() and not find_cifar(path):
        return [found.path for found in find_below(path) if found.kind == "picture"]
    if is_picture_file(path) and str(data) not in CIFARS:
        return [path]
    _, samples = open_dataset(data).part("auto")
    return samples.paths or () if samples.images is None else samples.images


def _packaged() -> NDArray[np.uint8]:
    with Image.open(PACKAGED) as file:
        sheet = np.asarray(file)
    return sheet.reshape(4, 32, 4, 32, 3).swapaxes(1, 2).reshape(16, 32, 32, 3)
