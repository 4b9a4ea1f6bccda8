"""Crops brought to the network's size on tensors: what Pillow does, within rounding, in a quarter of the time."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from resnetkit.data.pictures import Box
from resnetkit.data.transforms import FILTERS, Interpolation, as_array

SAME_AS_PILLOW = ("bilinear", "bicubic")  # torch's filters with antialiasing, of fixed-point weights like Pillow's


def write_crop(
    out: NDArray[np.uint8], pixels: NDArray[np.uint8], box: Box, *, interpolation: Interpolation, mirrored: bool
) -> None:
    """Resize the box in uint8 (height, width, channels) pixels to the sides of `out`, mirrored or not, and write it.

    As torchvision's `resized_crop`, whose filter sees nothing outside the box, where the box is of whole pixels. Runs
    in the thread that calls it, in no other.
    """
    height, width, channels = out.shape
    if interpolation in SAME_AS_PILLOW and all(float(side).is_integer() for side in box):
        left, top, right, bottom = (int(side) for side in box)
        # A batch of one with the strides of channels_last, which torch keeps to: in any other it takes twice as long.
        window = np.empty((1, bottom - top, right - left, channels), np.uint8)
        window[0] = pixels[top:bottom, left:right]
        inputs = torch.from_numpy(window).permute(0, 3, 1, 2)
        resized = interpolate(inputs, (height, width), mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels if channels > 1 else pixels[:, :, 0]))
        resized = as_array(picture.resize((width, height), FILTERS[interpolation], box=box))
    if not mirrored:
        out[:] = resized
        return
    for channel in range(channels):  # by channels, NumPy mirrors seven times as fast
        out[:, :, channel] = resized[:, ::-1, channel]
