"""The first training batch of a recipe as picture files: each picture as the network sees it, and all on one sheet."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from resnetkit.data.loader import Batch
from resnetkit.data.samples import NO_LABEL, Dataset
from resnetkit.errors import DataError
from resnetkit.files import expanded, write_whole
from resnetkit.modelfile import load
from resnetkit.train.fitting import fit, work_of
from resnetkit.train.network import choose_spec
from resnetkit.train.preparation import choose_augment, choose_preprocess, training_loader
from resnetkit.train.recipe import Recipe

SHEET = "sheet.png"
MOST_ON_SHEET = 64
LONGEST_TITLE = 24  # characters above a picture of the sheet


@dataclass(frozen=True)
class Preview:
    """What was written."""

    pictures: list[Path]
    sheet: Path
    unreadable: dict[Path, str]
    """Training pictures of the batch that can't be read, each with the reason."""


def write_preview(recipe: Recipe, dataset: Dataset, folder: Path, *, count: int) -> Preview:
    """Write the first `count` pictures of the first training batch to `folder`, augmented and mixed, and a sheet.

    They have the size of the network's input, or of the crops at the beginning of the run, before normalisation. They
    are those of a run by this recipe, to the bit, if its batch size is not fitted to `minutes`.

    Raises UsageError and DataError as a run does, DataError if `folder` can't be written.
    """
    if dataset.train is None or not len(dataset.train):
        raise DataError(f"{dataset.name} has no training pictures; expected {dataset.name}/train/<class>/<image>")
    work = work_of(recipe, len(dataset.train))
    recipe = recipe if work is None else fit(recipe, work)
    start = load(str(expanded(recipe.init))) if recipe.init else None
    preprocess = choose_preprocess(recipe, dataset.train, choose_spec(recipe, dataset, start), start)
    loader = training_loader(recipe, dataset.train, preprocess, choose_augment(recipe, preprocess))
    batch = next(loader.epoch(), None)
    if batch is None:
        raise DataError(f"none of the {len(dataset.train)} training pictures can be read; see resnetkit data check")
    pixels = _seen(batch)[:count]
    titles = [_title(batch, dataset.classes, place) for place in range(len(pixels))]
    digits = len(str(len(pixels) - 1))
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, (picture, title) in enumerate(zip(pixels, titles, strict=True)):
            path = folder / f"{place:0{digits}d}-{title.replace('/', '-')[:80]}.png"
            write_whole(path, _png(picture))
            written.append(path)
        write_whole(folder / SHEET, _sheet(pixels[:MOST_ON_SHEET], titles))
    except OSError as error:
        raise DataError(f"{error.filename or folder} can't be written: {error.strerror or error}") from error
    return Preview(written, folder / SHEET, loader.unreadable)


def _seen(batch: Batch) -> NDArray[np.uint8]:
    """Return the pictures of a batch, mixed, as uint8 (n, side, side, channels)."""
    images = batch.images.float()
    mixed = images if batch.mix is None else batch.mix.images(images)
    return mixed.round().byte().permute(0, 2, 3, 1).numpy()


def _title(batch: Batch, classes: Sequence[str], place: int) -> str:
    """Return the class of a picture, with both classes and their shares if it is mixed."""
    own = _named(batch.labels, classes, place)
    if batch.mix is None:
        return own
    other = _named(batch.mix.neighbours(batch.labels), classes, place)
    return f"{own} {100 * batch.mix.share:.0f} %, {other} {100 * (1 - batch.mix.share):.0f} %"


def _named(labels: Tensor, classes: Sequence[str], place: int) -> str:
    """Return the label of a picture, or several."""
    if labels.ndim == 1:
        return classes[int(labels[place])]
    return "+".join(classes[i] for i in labels[place].nonzero()[:, 0].tolist()) or NO_LABEL


def _png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])).save(content, "PNG")
    return content.getvalue()


def _sheet(pixels: NDArray[np.uint8], titles: Sequence[str]) -> bytes:
    """Return a PNG with the pictures in a grid, each below its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = ceil(sqrt(len(pixels)))
    rows = ceil(len(pixels) / columns)
    figure = Figure(figsize=(2 * columns, 2.25 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if place < len(pixels):
            axes.imshow(pixels[place].squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            title = titles[place]
            short = title if len(title) <= LONGEST_TITLE else title[: LONGEST_TITLE - 1] + "…"
            axes.set_title(short, fontsize=8, parse_math=False)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        canvas.print_png(content)
    return content.getvalue()
