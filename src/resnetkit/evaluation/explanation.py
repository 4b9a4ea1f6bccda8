"""Where in a picture the evidence for a class is, and its drawing on the picture. No torch here: see gradcam."""

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import cut, line
from resnetkit.errors import DataError, UsageError
from resnetkit.files import whole_file

OPACITY = 0.6  # of the colour where the evidence is strongest; it is 0 where there is no evidence
DIMMED = 0.35  # brightness of the parts of the picture outside the crop
SMALLEST = 256  # pixels of a drawing's shorter side, at least: smaller pictures are enlarged by a whole factor
SHOWN = 1024  # pixels of a drawing's longer side, at most, in a notebook
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

Places: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Explanation:
    """The evidence for one class in one picture."""

    label: str
    index: int
    """Index of the class in the network's output."""
    probability: float
    """Of the class, 0 to 1, as it was computed with the evidence."""
    stage: str
    """The stage whose feature map was used: c2, c3, ..."""
    evidence: NDArray[np.float32]
    """Eq. 2 of the paper at each position of the feature map, 0 or more: float32 (height, width) of the map."""
    picture: Image.Image
    """The whole picture, upright, RGB."""
    crop: tuple[float, float, float, float]
    """Left, top, right and bottom of the network's input, in pixels of the picture; outside it where there are bars."""

    def __repr__(self) -> str:
        width, height = self.picture.size
        what = f"{cut(self.label, 60)!r} with {100 * self.probability:.1f} %"
        return line(type(self), what, f"by {self.stage}", f"picture of {width}×{height}")

    def _repr_png_(self) -> bytes:
        """Return the drawing as a PNG file, for notebooks."""
        content, drawing = BytesIO(), self.drawing()
        drawing.thumbnail((SHOWN, SHOWN))
        drawing.save(content, "PNG")
        return content.getvalue()

    def at_input(self, size: int) -> NDArray[np.float32]:
        """Return the evidence, interpolated linearly to `size` × `size` pixels of the input: float32 (size, size)."""
        places = (np.arange(size) + 0.5) / size
        return self._between(places, places)

    @property
    def heat(self) -> NDArray[np.float32]:
        """The evidence for each pixel of the picture, divided by its maximum: float32 (height, width), 0 to 1.

        It is 0 outside the crop, which the network did not see, and 0 everywhere if there is no evidence for the class.
        """
        left, top, right, bottom = self.crop
        across = (np.arange(self.picture.width) + 0.5 - left) / (right - left)
        down = (np.arange(self.picture.height) + 0.5 - top) / (bottom - top)
        heat = self._between(down, across) / np.maximum(self.evidence.max(), np.finfo(np.float32).tiny)
        heat[(down < 0) | (down > 1)] = 0
        heat[:, (across < 0) | (across > 1)] = 0
        return heat

    def _between(self, down: Places, across: Places) -> NDArray[np.float32]:
        rows, columns = self.evidence.shape
        return (_shares(down, rows) @ self.evidence @ _shares(across, columns).T).astype(np.float32)

    def overlay(self) -> Image.Image:
        """Return the picture with the evidence in colour, red where it is strongest. Outside the crop it is darker."""
        heat = self.heat
        colours = Image.fromarray(_colours()[np.rint(255 * heat).astype(np.uint8)])
        opacity = Image.fromarray(np.rint(255 * OPACITY * heat).astype(np.uint8))
        seen = Image.composite(colours, self.picture, opacity)
        drawn = seen.point(lambda value: DIMMED * value)
        left, top, right, bottom = (round(side) for side in self.crop)
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, self.picture.width), min(bottom, self.picture.height)
        drawn.paste(seen.crop((left, top, right, bottom)), (left, top))
        return drawn

    def drawing(self) -> Image.Image:
        """Return `overlay` with label, probability and stage below it. Small pictures are enlarged to fit the text.

        The label is cut where the caption would be wider than the picture.
        """
        factor = ceil(SMALLEST / min(self.picture.size))
        sides = (self.picture.width * factor, self.picture.height * factor)
        left, top, right, bottom = (factor * side for side in self.crop)
        enlarged = self.picture.resize(sides, Image.Resampling.NEAREST)
        overlay = replace(self, picture=enlarged, crop=(left, top, right, bottom)).overlay()
        size = max(12, min(sides) // 20)
        font = _font(size)
        drawn = Image.new("RGB", (sides[0], sides[1] + 2 * size), "white")
        drawn.paste(overlay, (0, 0))
        text = _fitting(self.label, f"  {100 * self.probability:.1f} %  {self.stage}", font, sides[0] - size)
        ImageDraw.Draw(drawn).text((size // 2, sides[1] + size // 3), text, fill="black", font=font)
        return drawn

    def save(self, path: str | Path) -> None:
        """Write `drawing` to `path` (.png, .jpg, .jpeg), whole or not at all.

        Raises UsageError for another suffix, DataError if the file can't be written.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise UsageError(f"{path}: a drawing is saved as {', '.join(FORMATS)}; give such a name")
        drawing = self.drawing()
        try:
            with whole_file(path) as file:
                drawing.save(file, FORMATS[path.suffix.lower()], quality=90)
        except OSError as error:
            raise DataError(f"{path} could not be written: {error.strerror or error}") from error


def seen(size: tuple[int, int], preprocess: Preprocess) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a network's input in a picture, in pixels of the picture.

    `size` is the width and height of the picture. Where the input has bars, its sides are outside the picture.
    """
    resized, left, top = preprocess.place(size)
    across, down = size[0] / resized[0], size[1] / resized[1]
    return left * across, top * down, (left + preprocess.size) * across, (top + preprocess.size) * down


def find_class(label: str | int | None, classes: tuple[str, ...]) -> int | None:
    """Return the index of a class, given by its name or index; None stays None.

    Raises UsageError for an unknown class and for a name that several classes have.
    """
    if label is None:
        return None
    named = [index for index, name in enumerate(classes) if name == label]
    if len(named) > 1:
        raise UsageError(f"{label} is the name of classes {', '.join(map(str, named))}; give one of these numbers")
    if named:
        return named[0]
    index = _whole_number(label)
    if index is None:
        near = get_close_matches(str(label), classes, 1)
        hint = f"did you mean {near[0]}?" if near else f"give a name, or an index from 0 to {len(classes) - 1}"
        raise UsageError(f"there is no class {label}; {hint}")
    if not 0 <= index < len(classes):
        raise UsageError(f"there is no class {index}; the indices go from 0 to {len(classes) - 1}")
    return index


def find_stage(stage: str | int, count: int) -> int:
    """Return the number, from 0, of a stage given by its name (c2, c3, ...) or number, negative from the end.

    Raises UsageError for a stage that the network does not have.
    """
    names = stage_names(count)
    if stage in names:
        return names.index(str(stage))
    number = _whole_number(stage)
    if number is None or not -count <= number < count:
        raise UsageError(f"there is no stage {stage}; this network has {', '.join(names)}")
    return number % count


def drawing_path(folder: Path, picture: str | Path) -> Path:
    """Return the path in `folder` for the drawing of a picture file: <name>-<12 digits>.jpg for a JPEG, else .png.

    The digits are a hash of the picture's path. So pictures with the same name in different folders have different
    drawings, and a picture's drawing always has the same name.
    """
    picture = Path(picture)
    digits = sha256(os.fsencode(picture.resolve())).hexdigest()[:12]
    suffix = ".jpg" if FORMATS.get(picture.suffix.lower()) == "JPEG" else ".png"
    return folder / f"{picture.stem[:40]}-{digits}{suffix}"  # short enough for any file system


def stage_names(count: int) -> list[str]:
    """Return the names of `count` stages: c2, c3, ..."""
    return [f"c{number + 2}" for number in range(count)]


def _whole_number(text: str | int) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _shares(places: Places, count: int) -> NDArray[np.float64]:
    """Return weights (n, count) to interpolate at n `places` between the centres of `count` equal cells from 0 to 1."""
    centres = (np.arange(count) + 0.5) / count
    return np.stack([np.interp(places, centres, cell) for cell in np.eye(count)], axis=1)


@cache
def _colours() -> NDArray[np.uint8]:
    """Return the colours from no evidence to the strongest: uint8 (256, 3), RGB."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps["turbo"](np.arange(256))[:, :3]).astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic and more letters."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _fitting(label: str, rest: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return label and rest as one line of at most `width` pixels. A longer label is cut and ends in an ellipsis."""
    label = " ".join(label.split())
    text = label + rest
    while font.getlength(text) > width and label:
        label = label[:-1]
        text = f"{label.rstrip()}…{rest}"
    return text
