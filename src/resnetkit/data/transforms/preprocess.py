"""Preprocessing: make a network's input from a picture. A model file contains the settings. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import ColorMode
from resnetkit.data.transforms.resampling import can_resample, resample, rows_first
from resnetkit.display import line
from resnetkit.errors import DataError, UsageError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "letterbox", "stretch"]

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
MOST_LONGER_SIDE = 2**16  # pixels
STRIP = 2**20  # bytes of a picture that are copied at a time
CHANNELS = {"RGB": 3, "L": 1}

# Mean and standard deviation of ImageNet's training set, on a scale of 0 to 1. All published weights of torchvision
# were trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Place(NamedTuple):
    """What of a picture becomes a network's input."""

    sides: tuple[int, int]
    """Width and height to which the picture is resized."""
    left: int
    top: int
    """The corner of the input in the resized picture; negative where the input has bars around the picture."""

    def window(self, size: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the part of the resized picture that an input of `size` contains."""
        left, top = max(self.left, 0), max(self.top, 0)
        width, height = (
            min(corner + size, side) - max(corner, 0)
            for corner, side in zip((self.left, self.top), self.sides, strict=True)
        )
        return left, top, width, height


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a network: resize, fit into a square, then (pixel / 255 - mean) / std in float32.

    Its methods take PIL pictures that are in `mode`: see `open_picture`. The pixels of `fit` crop are equal to the bit
    to those of torchvision's Resize and CenterCrop on PIL pictures, those of letterbox to Pillow's `ImageOps.pad`, and
    those of stretch to its `resize`.
    """

    size: int
    """Height and width of the network's input, in pixels."""
    resize: int | None = None
    """crop: shorter side of the picture before the crop, in pixels, at least `size`; None means `size`."""
    interpolation: Interpolation = "bilinear"
    """Filter for resizing, with antialiasing, as in Pillow."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from the pixels, on a scale of 0 to 1: one value per channel; or, as in the paper, one per pixel and
    channel, channels x size x size values in the order channel, row, column."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divides the pixels, on a scale of 0 to 1, after the mean is subtracted: one value per channel."""
    mode: ColorMode = "RGB"
    """Colours of the input: RGB (3 channels) or L (1 channel, grey)."""
    fit: Fit = "crop"
    """How a picture that is not square becomes square. crop: its centre is kept. letterbox: all of it is kept, between
    bars of the mean colour. stretch: all of it is kept, with another aspect ratio."""

    def __post_init__(self) -> None:
        """Turn lists (from JSON) into tuples. Raises UsageError with the name of the field for a wrong value."""
        if not _is_count(self.size) or not (self.resize is None or _is_count(self.resize)):
            raise UsageError(f"`size` {self.size!r} and `resize` {self.resize!r} must be whole numbers above 0")
        if self.shorter_side < self.size:
            raise UsageError(
                f"`resize` is {self.resize}, less than the crop (`size` {self.size}); give at least {self.size}"
            )
        for name, value, known in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("mode", self.mode, get_args(ColorMode)),
            ("fit", self.fit, get_args(Fit)),
        ):
            if value not in known:
                raise UsageError(f"`{name}` is {value!r}; choose one of {', '.join(known)}")
        if self.fit != "crop" and self.shorter_side != self.size:
            raise UsageError(f"`resize` is {self.resize}, but `fit` {self.fit} crops nothing; leave `resize` out")
        for name in ("mean", "std"):
            try:
                object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            except (TypeError, ValueError):
                raise UsageError(f"`{name}` must be a list of numbers") from None
        if len(self.mean) not in (self.channels, self.channels * self.size**2):
            raise UsageError(
                f"`mean` has {len(self.mean)} values; {self.mode} at size {self.size} takes {self.channels} "
                f"(per channel) or {self.channels * self.size**2} (per pixel)"
            )
        if len(self.std) != self.channels or not all(0 < value < float("inf") for value in self.std):
            raise UsageError(f"`std` is {list(self.std)}; {self.mode} takes {self.channels} values above 0")
        if not np.isfinite(self.mean).all():
            raise UsageError("`mean` has values that are not finite")

    def __repr__(self) -> str:
        parts = [f"size={self.size}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default:
                few = (
                    f"({', '.join(f'{number:.4g}' for number in value)})"
                    if field.name in ("mean", "std")
                    else repr(value)
                )
                many = f"<{len(self.mean):,} values>"
                parts.append(f"{field.name}={many if field.name == 'mean' and len(value) > CHANNELS['RGB'] else few}")
        return line(type(self), *parts)

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return CHANNELS[self.mode]

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after resizing, before the crop."""
        return self.size if self.resize is None else self.resize

    @property
    def bar_color(self) -> tuple[int, ...]:
        """letterbox: the colour of the bars, 0 to 255 per channel: the mean, which is about 0 after `normalize`."""
        mean = np.array(self.mean).reshape(self.channels, -1).mean(1)
        return tuple(np.clip(np.rint(255 * mean), 0, 255).astype(int).tolist())

    @property
    def geometry(self) -> str:
        """What happens to the shape of a picture, in words."""
        match self.fit:
            case "crop":
                resized = f"shorter side to {self.shorter_side} pixels ({self.interpolation})"
                return f"{resized}, the centre of {self.size} x {self.size}"
            case "letterbox":
                resized = f"longer side to {self.size} pixels ({self.interpolation})"
                return f"{resized}, with bars of the mean colour to {self.size} x {self.size}"
            case "stretch":
                return f"stretched to {self.size} x {self.size} pixels ({self.interpolation})"

    def place(self, size: tuple[int, int]) -> Place:
        """Return what of a picture of `size` (width, height) becomes the input. Raises DataError as `sides_at`."""
        match self.fit:
            case "crop":
                sides = sides_at(size, self.shorter_side)
                return Place(sides, *_corner(sides, self.size, "centre"))
            case "letterbox":
                # As Pillow's ImageOps.pad rounds.
                width, height = (max(1, round(side / max(size) * self.size)) for side in size)
                return Place((width, height), -round((self.size - width) / 2), -round((self.size - height) / 2))
            case "stretch":
                return Place((self.size, self.size), 0, 0)

    def resized(self, picture: Image.Image, shorter_side: int | None = None) -> Image.Image:
        """Return the picture resized to `shorter_side` pixels, with its aspect ratio, as torchvision's `Resize` does.

        By default, it is resized as this preprocessing does. Raises UsageError for a picture in another mode or a side
        that is not a whole number above 0, DataError for a picture that is too long and narrow.
        """
        self._check_mode(picture)
        if not (shorter_side is None or _is_count(shorter_side)):
            raise UsageError(f"`shorter_side` is {shorter_side!r}; it must be a whole number above 0")
        sides = self.place(picture.size).sides if shorter_side is None else sides_at(picture.size, shorter_side)
        return picture if sides == picture.size else picture.resize(sides, FILTERS[self.interpolation])

    def pixels(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and fit into a square; return uint8 (size, size, channels).

        Takes a picture, or its pixels as uint8 (height, width, channels). Raises what `resized` raises.
        """
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != self.channels or not picture.size:
                raise UsageError(
                    f"the array is {picture.dtype} {picture.shape}; expected uint8 (height, width, {self.channels})"
                )
            size = (picture.shape[1], picture.shape[0])
        else:
            self._check_mode(picture)
            size = picture.size
        place = self.place(size)
        part = self._window(picture, size, place.sides, place.window(self.size))
        if part.shape[:2] == (self.size, self.size):
            return part
        pixels = np.empty((self.size, self.size, self.channels), np.uint8)
        pixels[:] = self.bar_color
        top, left = max(-place.top, 0), max(-place.left, 0)
        pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
        return pixels

    def _window(
        self,
        picture: Image.Image | NDArray[np.uint8],
        size: tuple[int, int],
        sides: tuple[int, int],
        window: tuple[int, int, int, int],
    ) -> NDArray[np.uint8]:
        """Resize a picture of `size` to `sides` (width, height), and return its `window` (left, top, width, height)."""
        left, top, width, height = window
        if sides != size and rows_first(size, sides) and can_resample(self.interpolation):
            pixels = picture if isinstance(picture, np.ndarray) else as_array(picture)
            return resample(pixels, sides, interpolation=self.interpolation, window=window)
        if isinstance(picture, np.ndarray):
            if sides == size:  # Pillow would take ten times as long
                return picture[top : top + height, left : left + width].copy()
            picture = Image.fromarray(picture if self.channels > 1 else picture[:, :, 0])
        if sides != size:
            picture = picture.resize(sides, FILTERS[self.interpolation])
        return as_array(picture)[top : top + height, left : left + width]

    def _check_mode(self, picture: Image.Image) -> None:
        if picture.mode != self.mode:
            raise UsageError(
                f"the picture is {picture.mode}, not {self.mode}; open it with open_picture(path, mode=...)"
            )

    def views(self, picture: Image.Image, views: Literal["single", "ten-crop"]) -> NDArray[np.uint8]:
        """Return the crops whose predictions a test averages: uint8 (1 or 10, size, size, channels).

        The ten crops (Sec. 3.4) are the four corners and the centre, then the same five of the mirrored picture, as in
        torchvision. Raises what `resized` raises.
        """
        if views == "single":
            return self.pixels(picture)[None]
        pixels = as_array(self.resized(picture))
        return np.stack([_crop(side, self.size, place) for side in (pixels, pixels[:, ::-1]) for place in PLACES])

    def scaled(self, picture: Image.Image, shorter_side: int) -> NDArray[np.uint8]:
        """Return the whole picture at `shorter_side`, for multi-scale testing: uint8 (height, width, channels)."""
        return as_array(self.resized(picture, shorter_side))

    def mean_at(self, height: int, width: int) -> NDArray[np.float32]:
        """Return the mean for pixels of height x width: float32 (1 or height, width, channels).

        A mean with one value per pixel is used only at its own size. Other sizes use its average per channel.
        """
        if len(self.mean) == self.channels:
            return np.tile(np.array(self.mean, np.float32), (1, width, 1))
        if (height, width) == (self.size, self.size):
            return self._mean_of_every_pixel
        return np.tile(self._mean_of_every_pixel.mean((0, 1), dtype=np.float64).astype(np.float32), (1, width, 1))

    def std_at(self, width: int) -> NDArray[np.float32]:
        """Return the standard deviation: float32 (1, width, channels). A whole row is faster in NumPy than a pixel."""
        return np.tile(np.array(self.std, np.float32), (1, width, 1))

    @cached_property
    def _mean_of_every_pixel(self) -> NDArray[np.float32]:
        mean = np.array(self.mean, np.float32).reshape(self.channels, self.size, self.size)
        return np.ascontiguousarray(mean.transpose(1, 2, 0))

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (pixels / 255 - mean) / std.

        Takes uint8 (..., height, width, channels), returns float32 (..., channels, height, width). Raises UsageError
        for another shape or dtype.
        """
        if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != self.channels:
            raise UsageError(
                f"pixels are {pixels.dtype} {pixels.shape}; expected uint8 (..., height, width, {self.channels})"
            )
        height, width = pixels.shape[-3:-1]
        inputs = np.divide(pixels, np.float32(255), dtype=np.float32)
        inputs -= self.mean_at(height, width)
        inputs /= self.std_at(width)
        return np.ascontiguousarray(np.moveaxis(inputs, -1, -3))

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """Return the network's input for one picture: float32 (channels, size, size)."""
        return self.normalize(self.pixels(picture))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.fit == "crop":  # files with it are the same as before there was a choice
            del values["fit"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Return the Preprocess with these fields, the inverse of `to_dict`. Raises UsageError for a wrong field."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                meant = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
                raise UsageError(f"preprocess has no field {key!r}{meant}")
        if "size" not in values:
            raise UsageError("preprocess has no size; give the height and width of the network's input in pixels")
        return cls(**values)


def sides_at(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Return width and height after resizing the shorter side to `shorter_side`, with the same aspect ratio.

    The longer side is rounded down, as in torchvision. Raises DataError if it would be more than MOST_LONGER_SIDE.
    """
    width, height = size
    longer_side = int(shorter_side * max(size) / min(size))
    if longer_side > MOST_LONGER_SIDE:  # a line of 1 x 60,000 pixels is a small file, but 12 GB at 256
        raise DataError(f"{width} x {height} pixels is too long and narrow to resize; cut it")
    return (shorter_side, longer_side) if width <= height else (longer_side, shorter_side)


def as_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an 8-bit picture: uint8 (height, width, channels), writable."""
    width, height = picture.size
    pixels = np.empty((height, width, len(picture.getbands())), np.uint8)
    rows = max(1, STRIP // max(1, pixels[:1].size))
    for top in range(
        0, height, rows
    ):  # Pillow copies into a buffer first, which is faster if the buffer fits into the cache
        strip = picture if rows >= height else picture.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(strip).reshape(-1, *pixels.shape[1:])
    return pixels


def _crop(pixels: NDArray[np.uint8], size: int, place: str) -> NDArray[np.uint8]:
    """Return the size x size window of (height, width, channels) pixels at one of PLACES."""
    left, top = _corner((pixels.shape[1], pixels.shape[0]), size, place)
    return pixels[top : top + size, left : left + size]


def _corner(sides: tuple[int, int], size: int, place: str) -> tuple[int, int]:
    """Return left and top of a size x size window at one of PLACES in a picture of `sides` (width, height)."""
    right, below = sides[0] - size, sides[1] - size
    if place == "centre":
        return round(right / 2), round(below / 2)  # Python rounds halves to even, and so does torchvision
    return right * place.endswith("right"), below * place.startswith("bottom")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
