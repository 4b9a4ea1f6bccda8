"""Random changes of single 8-bit pictures after the crop: rotation, TrivialAugment, erased boxes. No torch here."""

from math import ceil, exp, log, sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from resnetkit.data.transforms.preprocess import as_array

BINS = 31  # strengths of an operation of TrivialAugment, from none to the greatest
SHEAR, SHIFT, TURN, ENHANCE = 0.99, 32.0, 135.0, 0.99
"""Greatest shear (a tangent), shift (pixels), rotation (degrees) and change of an enhancement's factor."""
OPERATIONS: dict[str, float] = {
    "identity": 0,
    "shear-x": SHEAR,
    "shear-y": SHEAR,
    "translate-x": SHIFT,
    "translate-y": SHIFT,
    "rotate": TURN,
    "brightness": ENHANCE,
    "color": ENHANCE,
    "contrast": ENHANCE,
    "sharpness": ENHANCE,
    "posterize": 0,
    "solarize": 0,
    "auto-contrast": 0,
    "equalize": 0,
}
"""The operations of TrivialAugment's wide space (Müller and Hutter 2021, arXiv:2103.10158, Table 1), each with the
greatest strength of those that go both ways; 0 for the others."""
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
"""Smallest and largest area of an erased box, as a share of the picture, and its height / width (arXiv:1708.04896)."""


def trivially_augmented(
    pixels: NDArray[np.uint8], rng: np.random.Generator, *, fill: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Apply one random operation of TrivialAugment at a random strength; the result has the same shape.

    Takes uint8 (height, width, 1 or 3). Pixels from outside the picture get the colour `fill`, one value per channel.
    """
    name = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
    step, backwards = int(rng.integers(BINS)), rng.random() < 0.5
    return operated(pixels, name, step, backwards=backwards, fill=fill)


def operated(
    pixels: NDArray[np.uint8], name: str, step: int, *, backwards: bool, fill: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Apply one of OPERATIONS at strength `step`, 0 to BINS - 1, and `backwards` if it goes both ways."""
    share = step / (BINS - 1)
    strength = OPERATIONS[name] * share * (-1 if backwards else 1)
    picture = _as_picture(pixels)
    match name:
        case "identity":
            return pixels
        case "shear-x":
            changed = _moved(picture, (1, strength, 0, 0, 1, 0), fill)
        case "shear-y":
            changed = _moved(picture, (1, 0, 0, strength, 1, 0), fill)
        case "translate-x":
            changed = _moved(picture, (1, 0, -int(strength), 0, 1, 0), fill)
        case "translate-y":
            changed = _moved(picture, (1, 0, 0, 0, 1, -int(strength)), fill)
        case "rotate":
            return rotated(pixels, strength, fill=fill)
        case "brightness":
            changed = ImageEnhance.Brightness(picture).enhance(1 + strength)
        case "color":
            changed = ImageEnhance.Color(picture).enhance(1 + strength)
        case "contrast":
            changed = ImageEnhance.Contrast(picture).enhance(1 + strength)
        case "sharpness":
            changed = ImageEnhance.Sharpness(picture).enhance(1 + strength)
        case "posterize":
            changed = ImageOps.posterize(picture, 8 - round(6 * share))
        case "solarize":
            changed = ImageOps.solarize(
                picture, ceil(round(255 * (1 - share), 6))
            )  # values at the threshold or above it
        case "auto-contrast":
            changed = ImageOps.autocontrast(picture)
        case "equalize":
            changed = ImageOps.equalize(picture)
        case _:
            raise ValueError(f"no operation is called {name}")
    return as_array(changed)


def rotated(pixels: NDArray[np.uint8], degrees: float, *, fill: tuple[int, ...]) -> NDArray[np.uint8]:
    """Rotate a picture about its centre, counter-clockwise; the corners get the colour `fill`. Bilinear."""
    return as_array(_as_picture(pixels).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_color(fill)))


def erase(pixels: NDArray[np.uint8], rng: np.random.Generator, *, fill: tuple[int, ...]) -> None:
    """Fill a random box of a picture, uint8 (height, width, channels), with a colour, in place (arXiv:1708.04896).

    The picture stays as it is if ten random boxes do not fit into it.
    """
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(*ERASED_AREA)
        ratio = exp(rng.uniform(log(ERASED_RATIO[0]), log(ERASED_RATIO[1])))
        h, w = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if h < height and w < width:
            top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
            pixels[top : top + h, left : left + w] = fill
            return


def _as_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]))


def _color(fill: tuple[int, ...]) -> int | tuple[int, ...]:
    return fill if len(fill) > 1 else fill[0]


def _moved(picture: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    """Return a picture whose pixel (x, y) comes from (a x + b y + c, d x + e y + f) of the old one; bilinear."""
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return picture.transform(picture.size, affine, matrix, bilinear, fillcolor=_color(fill))
