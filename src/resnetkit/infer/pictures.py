"""A few pictures, read and preprocessed: to compare a file with its source, to tune, to quantise. No torch here."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

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
from resnetkit.infer.choice import usable_threads
from resnetkit.infer.decoding import pixels_of

MOST_PICTURES = 64
PACKAGED = Path(__file__).parent / "pictures.png"
"""16 pictures of CIFAR-10's test set (Krizhevsky, 2009) in a 4 × 4 grid: one of every class, and six more."""


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
