"""Crops equal torchvision's resized_crop within rounding, and Pillow's resize for boxes between pixels."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from resnetkit.data.transforms.crops import write_crop
from scenes import scene


def crop(pixels, box, size=64, *, interpolation="bilinear", mirrored=False):
    out = np.empty((size, size, pixels.shape[2]), np.uint8)
    write_crop(out, pixels, box, interpolation=interpolation, mirrored=mirrored)
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "box", [(10, 20, 210, 150), (0, 0, 301, 203), (290, 190, 301, 203), (5, 6, 69, 70), (7, 7, 8, 9)]
)
def test_whole_boxes_are_torchvisions(interpolation, mode, box):
    picture = scene(301, 203, mode)
    left, top, right, bottom = box
    theirs = tvf.resized_crop(
        picture, top, left, bottom - top, right - left, [64, 64], InterpolationMode(interpolation)
    )
    theirs = np.asarray(theirs, int).reshape(64, 64, -1)
    pixels = np.asarray(picture).reshape(203, 301, -1)
    ours = crop(pixels, tuple(float(side) for side in box), interpolation=interpolation)
    assert np.abs(ours - theirs).max() <= 1
    assert np.array_equal(crop(pixels, box, interpolation=interpolation, mirrored=True), ours[:, ::-1])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_boxes_and_filters_are_pillows(interpolation, mode):
    picture, box = scene(301, 203, mode), (10.25, 20.5, 210, 150)
    theirs = picture.resize((64, 64), Image.Resampling[interpolation.upper()], box=box)
    ours = crop(np.asarray(picture).reshape(203, 301, -1), box, interpolation=interpolation)
    assert np.array_equal(ours, np.asarray(theirs).reshape(64, 64, -1))


def test_turned_views_of_pixels_are_taken_as_they_are_and_kept():
    pixels = np.asarray(scene(120, 90))
    before = pixels.copy()
    turned = pixels.swapaxes(0, 1)[::-1]
    assert np.array_equal(crop(turned, (3, 4, 80, 110)), crop(np.ascontiguousarray(turned), (3, 4, 80, 110)))
    assert np.array_equal(crop(turned, (3.5, 4, 80, 110)), crop(np.ascontiguousarray(turned), (3.5, 4, 80, 110)))
    assert np.array_equal(pixels, before)
