"""The pictures that ways to predict are compared on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.folders.listing import find_below
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ResnetkitError
from resnetkit.files import expanded
from resnetkit.location import LocalFile, locate
from resnetkit.train.recipe import Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder

MOST_PICTURES = 200
"""Most pictures that are compared, evenly spaced over the data."""
GENERATED = 24
"""Pictures that are drawn where there are no others."""
DRAWN = "drawn for this, since the run's data are not there"


def pictures_for(
    model: str | Path,
    data: str | Path | None,
    folder: Path,
    preprocess: Preprocess,
    *,
    listed: Callable[[str], Sequence[Path]],
    held_out: Callable[[str], tuple[Sequence[Path], str] | None],
    most: int = MOST_PICTURES,
) -> tuple[list[Path], str]:
    """Return the files to compare on, at most `most`, and a phrase that says where they come from.

    They are those of `data`, a folder or a data set, whose files `listed` names. Without it, they are those that the
    model's run did not train on: `held_out` names them for the run's data, and says which they are. If these are not
    there, pictures are drawn below `folder`. Raises DataError if `data` has no picture file.
    """
    if data is not None:
        path = expanded(data)
        paths = _pictures_in(path) if path.is_dir() else listed(str(data))
        if not paths:
            raise DataError(f"{data} has no picture files to compare on; give a folder of pictures")
        return some_of(paths, most), f"of {data}"
    located = locate(model)
    run = RunFolder(located.path.parent) if isinstance(located, LocalFile) else None
    if run and run.recipe.is_file():
        try:
            place = read_recipe(run.recipe, Recipe())[1].get("data")
            found = held_out(str(place)) if place else None
            if found:
                return some_of(found[0], most), f"{found[1]}, which the run did not train on"
        except ResnetkitError:
            pass
    return draw_pictures(folder / "drawn", preprocess), DRAWN


def _pictures_in(folder: Path) -> list[Path]:
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
