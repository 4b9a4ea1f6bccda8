"""The pictures that ways to predict are compared on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.folders.listing import find_below
from resnetkit.data.transforms.preprocess import Preprocess

MOST_PICTURES = 200
"""Most pictures that are compared, evenly spaced over the data."""
GENERATED = 24
"""Pictures that are drawn where there are no others."""
DRAWN = "drawn for this, since the run's data are not there"


def pictures_in(folder: Path) -> list[Path]:
    """Return the picture files in a folder and its subfolders."""
    return [found.path for found in find_below(folder) if found.kind == "picture" and not found.reason]


def some_of(paths: Sequence[Path], most: int = MOST_PICTURES) -> list[Path]:
    """Return `most` of the paths, evenly spaced."""
    places = np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int)
    return [paths[place] for place in places]


def draw_pictures(folder: Path, preprocess: Preprocess) -> list[Path]:
    """Write pictures of coarse and fine noise, of several sizes, modes and formats, the same ones each time."""
    folder.mkdir()
    drawn, paths = np.random.default_rng(0), list[Path]()
    for number in range(GENERATED):
        width, height = drawn.integers(preprocess.size // 2 + 1, 3 * preprocess.size, 2).tolist()
        coarse = Image.fromarray(drawn.integers(0, 256, (5, 5, 3), np.uint8)).resize((width, height))
        fine = Image.fromarray(drawn.integers(0, 256, (height, width, 3), np.uint8))
        picture = Image.blend(coarse, fine, 0.2)
        mode, suffix = [("RGB", ".jpg"), ("RGB", ".png"), ("L", ".png"), ("RGBA", ".png")][number % 4]
        paths.append(folder / f"{number:02d}{suffix}")
        picture.convert(mode).save(paths[-1])
    return paths
