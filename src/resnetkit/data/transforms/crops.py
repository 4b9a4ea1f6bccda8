"""Crops brought to the network's size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import Box
from resnetkit.data.transforms.preprocess import FILTERS, Interpolation, as_array
from resnetkit.data.transforms.resampling import can_resample, resample


def write_crop(
    out: NDArray[np.uint8], pixels: NDArray[np.uint8], box: Box, *, interpolation: Interpolation, mirrored: bool
) -> None:
    """Resize the box in uint8 (height, width, channels) pixels to the sides of `out`, mirrored or not, and write it.

    As torchvision's `resized_crop`, whose filter sees nothing outside the box, where the box is of whole pixels. Runs
    in the thread that calls it, in no other. Where Pillow would do columns first, it may differ from it by a level.
    """
    height, width, channels = out.shape
    if all(float(side).is_integer() for side in box):
        left, top, right, bottom = (int(side) for side in box)
        pixels, box = pixels[top:bottom, left:right], (0, 0, right - left, bottom - top)
    if can_resample(interpolation):
        resample(pixels, (width, height), interpolation=interpolation, box=box, mirrored=mirrored, out=out)
        return
    picture = Image.fromarray(np.ascontiguousarray(pixels if channels > 1 else pixels[:, :, 0]))
    resized = as_array(picture.resize((width, height), FILTERS[interpolation], box=box))
    out[:] = resized[:, ::-1] if mirrored else resized
