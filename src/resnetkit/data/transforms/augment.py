"""Augmentation of training pictures, on 8-bit pixels: random crops, mirror images, then changes of single pictures."""

from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resnetkit.data.decoding.pictures import Box
from resnetkit.data.transforms.alterations import erase, rotated, trivially_augmented
from resnetkit.data.transforms.preprocess import Preprocess, sides_at
from resnetkit.errors import UsageError

Crop = Literal["none", "pad", "random-resized", "scale-jitter"]
PaddingMode = Literal["constant", "reflect"]
SIZED: tuple[Crop, ...] = ("pad", "random-resized")  # crops that may have another size than the network's input

# Principal components of ImageNet's colours on a scale of 0 to 1 (Krizhevsky et al. 2012, Sec. 4.1). The numbers are
# those of fb.resnet.torch: the standard deviation along each component; the components as columns, rows R, G, B.
PCA_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
PCA_COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Cut(NamedTuple):
    """A random crop of one picture."""

    box: Box
    """The part of the picture that is resized to the size of the result."""
    mirrored: bool
    """Whether the result is mirrored left to right."""


@dataclass(frozen=True)
class Augment:
    """The augmentation of training pictures, in the order of the fields; a random crop comes first."""

    crop: Crop = "none"
    """none: the centre crop of validation. pad: that crop with `padding` pixels added on each side, then a random crop
    (Sec. 4.2). random-resized: a box of random area and aspect ratio (Szegedy et al. 2015). scale-jitter: a
    random scale, then a random crop (Sec. 3.4)."""
    size: int | None = None
    """pad, random-resized: height and width of the result in pixels; unset: those of the network's input."""
    padding: int = 4
    """pad: pixels added on each side."""
    padding_mode: PaddingMode = "constant"
    """pad: content of the added pixels. constant: the colour `fill`. reflect: the picture, mirrored at its edge."""
    fill: tuple[int, ...] = (0,)
    """constant: the colour, from 0 to 255; one value for all channels, or one per channel."""
    flip: bool = True
    """Mirror each picture left to right with probability 1/2."""
    scale: tuple[float, float] = (0.08, 1.0)
    """random-resized: smallest and largest area, as a fraction of the picture's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """random-resized: smallest and largest width / height."""
    jitter: tuple[int, int] = (256, 480)
    """scale-jitter: smallest and largest shorter side, in pixels."""
    vertical_flip: bool = False
    """Mirror each picture top to bottom with probability 1/2."""
    rotation: float = 0.0
    """Rotate each picture by a random angle of up to so many degrees in either direction; 0 is off."""
    trivial: bool = False
    """Apply one random operation at a random strength: TrivialAugment, wide (arXiv:2103.10158)."""
    pca_color: float = 0.0
    """Standard deviation of the colour shift along ImageNet's principal components; 0 is off, AlexNet used 0.1."""
    erase: float = 0.0
    """Probability that a random box of a picture is erased (arXiv:1708.04896); 0 is off."""
    blank: tuple[int, ...] = (0,)
    """rotation, trivial, erase: the colour where there is no picture, 0 to 255; one value, or one per channel."""

    def __post_init__(self) -> None:
        """Raise UsageError for a value out of range; the message names the field."""
        for name, value, known in (
            ("crop", self.crop, get_args(Crop)),
            ("padding_mode", self.padding_mode, get_args(PaddingMode)),
        ):
            if value not in known:
                raise UsageError(f"`{name}` is {value!r}; choose one of {', '.join(known)}")
        if self.size is not None and self.crop not in SIZED:
            raise UsageError(
                f"`crop` {self.crop} gives pictures of the network's size; leave `size` out, or choose the crop "
                f"{' or '.join(SIZED)}"
            )
        if self.size is not None and self.size < 1:
            raise UsageError(f"`size` is {self.size}; it must be at least 1")
        if self.padding < 0:
            raise UsageError(f"`padding` is {self.padding}; it must be at least 0")
        for name in ("fill", "blank"):
            color = getattr(self, name)
            if not color or not all(0 <= value <= 255 for value in color):
                raise UsageError(f"`{name}` is {color}; give values from 0 to 255, one or one per channel")
        for name, (low, high), limit in (
            ("scale", self.scale, 1),
            ("ratio", self.ratio, inf),
            ("jitter", self.jitter, inf),
        ):
            if not 0 < low <= high <= limit:
                raise UsageError(
                    f"`{name}` is {(low, high)}; give the smallest and the largest, above 0 and at most {limit}"
                )
        if not 0 <= self.pca_color < inf:
            raise UsageError(f"`pca_color` is {self.pca_color}; it must be at least 0")
        for name, most in (("rotation", 180), ("erase", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"`{name}` is {getattr(self, name)}; it must be from 0 to {most}")

    @property
    def resizes(self) -> bool:
        """Whether crops are cut from the whole picture and resized; the others are cut from the crop of validation."""
        return self.crop in ("random-resized", "scale-jitter")

    def side(self, preprocess: Preprocess) -> int:
        """Return height and width of the result in pixels."""
        return preprocess.size if self.size is None else self.size

    def batch(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Augment pictures of the network's size, from `Preprocess.pixels`.

        Takes uint8 (n, height, width, channels); returns a new array of that shape, or with `size` as height and width.
        All random numbers come from `rng`. Raises UsageError for a crop that `resizes`, and for a `size`, `fill` or
        `pca_color` that does not fit.
        """
        if self.resizes:
            raise UsageError(f"`crop` {self.crop} cuts from whole pictures, one by one; a batch takes none or pad")
        cuts = self.crop == "pad" and (self.padding or self.size)
        images = self._padded_windows(images, rng) if cuts else images.copy()
        if self.flip:
            mirrored = rng.random(len(images)) < 0.5
            images[mirrored] = images[mirrored, :, ::-1]
        return self.altered(images, rng)

    def altered(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Do what comes after crop and mirror image; takes and returns uint8 (n, height, width, channels).

        The result may be `images` themselves or a new array. Raises UsageError as `batch` does.
        """
        blank = self.blank * images.shape[-1] if len(self.blank) == 1 else self.blank
        if self.vertical_flip:
            flipped = rng.random(len(images)) < 0.5
            images[flipped] = images[flipped, ::-1]
        if self.rotation:
            for image, degrees in zip(images, rng.uniform(-self.rotation, self.rotation, len(images)), strict=True):
                image[:] = rotated(image, float(degrees), fill=blank)
        if self.trivial:
            for image in images:
                image[:] = trivially_augmented(image, rng, fill=blank)
        images = self.shift_colors(images, rng)
        if self.erase:
            for place in np.flatnonzero(rng.random(len(images)) < self.erase):
                erase(images[place], rng, fill=blank)
        return images

    def cut(self, sides: tuple[int, int], preprocess: Preprocess, rng: np.random.Generator) -> Cut:
        """Draw a random crop, if it `resizes`, for a picture of `sides` (width, height) that is not decoded yet."""
        if self.crop == "random-resized":
            box = self._random_area(sides, rng)
        else:
            box = self._random_scale(sides, preprocess.size, rng)
        return Cut(box, mirrored=self.flip and rng.random() < 0.5)

    def _padded_windows(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Pad every side, then cut one random window out of each picture, of `size` or of the size before padding."""
        count, height, width, channels = images.shape
        out_height, out_width = (height, width) if self.size is None else (self.size, self.size)
        if len(self.fill) not in (1, channels):
            raise UsageError(
                f"`fill` has {len(self.fill)} values for {channels} channels; give one, or one per channel"
            )
        pad = self.padding
        down, across = height + 2 * pad - out_height, width + 2 * pad - out_width
        if down < 0 or across < 0:
            raise UsageError(
                f"`size` is {self.size}, more than {width} x {height} with {pad} pixels of padding on each side"
            )
        if self.padding_mode == "reflect":
            padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        else:
            padded = np.empty((count, height + 2 * pad, width + 2 * pad, channels), np.uint8)
            padded[:] = np.array(self.fill, np.uint8)
            padded[:, pad : pad + height, pad : pad + width] = images
        top, left = rng.integers(0, [[down + 1], [across + 1]], (2, count))
        # Pixels of a row are joined, so that each row of a window is copied at once.
        rows = padded.reshape(count, height + 2 * pad, -1)
        windows = sliding_window_view(rows, (out_height, out_width * channels), axis=(1, 2))
        return windows[np.arange(count), top, left * channels].reshape(count, out_height, out_width, channels)

    def _random_area(self, sides: tuple[int, int], rng: np.random.Generator) -> Box:
        """Return a box of random area and aspect ratio; if ten boxes don't fit, the centre with the nearest ratio."""
        width, height = sides
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = exp(rng.uniform(log(self.ratio[0]), log(self.ratio[1])))
            w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def _random_scale(self, sides: tuple[int, int], size: int, rng: np.random.Generator) -> Box:
        """Return the box, in the original picture, of a random crop after resizing to a random shorter side."""
        if self.jitter[0] < size:
            raise UsageError(
                f"`jitter` starts at {self.jitter[0]}, less than the crop ({size} pixels); give at least {size}"
            )
        width, height = sides_at(sides, int(rng.integers(self.jitter[0], self.jitter[1] + 1)))
        left, top = int(rng.integers(0, width - size + 1)), int(rng.integers(0, height - size + 1))
        across, down = sides[0] / width, sides[1] / height
        right, bottom = min((left + size) * across, sides[0]), min((top + size) * down, sides[1])
        return left * across, top * down, right, bottom

    def shift_colors(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Add a random colour to each picture, rounded and clipped; return uint8 (n, height, width, 3).

        Without `pca_color`, returns `images` themselves. Raises UsageError if they are not RGB.
        """
        if not self.pca_color:
            return images
        if images.shape[-1] != 3:
            raise UsageError(f"`pca_color` shifts RGB, but the pictures have {images.shape[-1]} channel; set it to 0")
        along = rng.normal(0, self.pca_color, (len(images), 3)) * PCA_DEVIATIONS
        shift = np.rint(255 * along @ PCA_COMPONENTS.T).astype(np.int16)
        return np.clip(images + shift[:, None, None, :], 0, 255).astype(np.uint8)
