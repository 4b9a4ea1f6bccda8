"""Resize a part of a picture to a given size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.pictures import Box
from resnetkit.data.transforms.preprocess import FILTERS, Interpolation, as_array
from resnetkit.data.transforms.resampling import can_resample, resample


def write_crop(
    out: NDArray[np.uint8], pixels: NDArray[np.uint8], box: Box, *, interpolation: Interpolation, mirrored: bool
) -> None:
    """Resize the part of `pixels` in `box` to the size of `out`, mirror it left to right if asked, and write it there.

    Both arrays are uint8 (height, width, channels). If the sides of the box are whole numbers, the resizing filter uses
    no pixel outside the box, as in torchvision's `resized_crop`. Otherwise it does as Pillow's `resize` with a box.
    Values may differ from Pillow's by 1 where Pillow resizes columns before rows. No thread is started.
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
