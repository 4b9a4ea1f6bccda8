"""Whether an exported file computes what its source does: real pictures, and how far outputs differ. No torch here."""

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
"""A file is run at each: what holds for one batch only is a frequent fault of exported graphs."""
MOST_PICTURES = 64
PACKAGED = Path(__file__).parent / "pictures.png"
"""16 pictures of CIFAR-10's test set (Krizhevsky, 2009), a sheet of 4 × 4: one of every class, and six more."""

Compute: TypeAlias = Callable[[NDArray[np.generic]], NDArray[np.float32]]


@dataclass(frozen=True)
class Gap:
    """How far a file's outputs lie from its source's, at most, over all pictures and batch sizes."""

    pictures: int
    values: float | None
    """Difference of logits or features, in standard deviations of the source's; None where a file gives neither."""
    probabilities: float | None
    """Difference of probabilities; None for features."""
    agreement: float | None
    """Share of the pictures whose best class is the same, 0 to 1; None for features."""

    def within(self, tolerance: float) -> bool:
        """Whether no difference is larger; one that is no number is."""
        return all(gap <= tolerance for gap in (self.values, self.probabilities) if gap is not None)


def measure(compute: Compute, inputs: NDArray[np.generic], expected: NDArray[np.float32], *, output: str) -> Gap:
    """Run a file on `inputs` in batches of every size of BATCH_SIZES, and compare with what the source gives."""
    pictures = len(inputs)
    rows = np.arange(max(pictures, *BATCH_SIZES)) % pictures  # a few are taken again and again
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
    """The first pictures in each small size, then all of them in the largest."""
    *small, largest = BATCH_SIZES
    return [
        *(slice(0, size) for size in small),
        *(slice(first, first + largest) for first in range(0, pictures, largest)),
    ]


def _nan_is_largest(gap: float) -> float:
    return gap if gap == gap else float("inf")


def read_pixels(data: str | Path | None, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pictures to compare with, as Preprocess.pixels gives them: uint8 (n, size, size, channels).

    At most MOST_PICTURES, evenly taken from `data`: cifar10, cifar100, a folder, a CSV file, or one picture; those that
    come with the package without it. What can't be read is passed over. Raises DataError where nothing can be.
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
