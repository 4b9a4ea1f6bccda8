"""The views of a picture whose features are kept: as in validation, mirrored, and random crops."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decoding.pictures import PictureSource
from resnetkit.data.loader import write_pixels
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.preprocess import Preprocess


@dataclass(frozen=True)
class View:
    """One way to see every picture."""

    kind: Literal["plain", "mirrored", "crop"] = "plain"
    """plain: the crop of validation. mirrored: the same, left to right. crop: a random area, mirrored or not."""
    number: int = 0
    """crop: its number; other numbers are other crops."""
    seed: int = 0
    """crop: decides the crops, together with the number and the picture's content."""
    min_area: float = 0.5
    """crop: smallest share of the picture that it covers, 0 to 1."""

    @property
    def name(self) -> str:
        """Name of the view's files: equal for equal pixels."""
        return f"crop{self.number}-{self.seed}-{self.min_area:g}" if self.kind == "crop" else self.kind

    def write(self, out: NDArray[np.uint8], source: PictureSource, preprocess: Preprocess, key: bytes) -> None:
        """Write this view of a picture to `out`, uint8 (size, size, channels). `key` is a hash of its content.

        The crop depends on the content, and not on the place in a data set: so it is the same picture in every run.
        Raises DataError if the picture can't be read.
        """

        def rng() -> np.random.Generator:
            return np.random.Generator(np.random.PCG64([self.seed, self.number, int.from_bytes(key, "big")]))

        crop = Augment("random-resized", flip=True, scale=(self.min_area, 1.0)) if self.kind == "crop" else None
        write_pixels(out, source, preprocess, crop, rng=rng)
        if self.kind == "mirrored":
            out[:] = out[:, ::-1].copy()


PLAIN, MIRRORED = View(), View("mirrored")


def training_views(count: int, *, seed: int = 0, min_area: float = 0.5, flip: bool = True) -> tuple[View, ...]:
    """Return the first `count` views for training, the most useful first: plain, mirrored, then random crops."""
    first = (PLAIN, MIRRORED) if flip else (PLAIN,)
    crops = (View("crop", number, seed, min_area) for number in range(max(count - len(first), 0)))
    return (*first[:count], *crops)
