"""Preprocessing: equal to torchvision on PIL pictures, to the bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision import transforms as tv
from torchvision.transforms import functional as tvf

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.transforms import preprocess as preprocessing
from resnetkit.data.transforms import resampling
from resnetkit.data.transforms.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from resnetkit.errors import DataError, UsageError
from scenes import scene

IMAGENET = Preprocess(size=224, resize=256)
SIZES = [
    (500, 375),
    (375, 500),
    (257, 256),
    (256, 256),
    (300, 301),
    (1023, 257),
    (224, 224),
    (90, 61),
    (17, 40),
    (255, 999),
]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (224, 224), (224, 235), (33, None)])
def test_pixels_equal_torchvision_to_the_bit(size, resize, interpolation):
    filters = {"lanczos": tv.InterpolationMode.LANCZOS}
    oracle = tv.Compose(
        [
            tv.Resize(resize or size, filters.get(interpolation) or tv.InterpolationMode(interpolation)),
            tv.CenterCrop(size),
        ]
    )
    preprocess = Preprocess(size=size, resize=resize, interpolation=interpolation)
    for i, sides in enumerate(SIZES if interpolation == "bilinear" else SIZES[:3]):
        picture = scene(*sides, seed=i)
        assert np.array_equal(preprocess.pixels(picture), oracle(picture)), sides
        grey = replace(preprocess, mode="L", mean=(0.5,), std=(0.5,)).pixels(picture.convert("L"))
        assert grey.shape == (size, size, 1)
        assert np.array_equal(grey[:, :, 0], oracle(picture.convert("L"))), sides


def test_photographs_equal_torchvision_to_the_bit(shared):
    oracle = tv.Compose([tv.Resize(256), tv.CenterCrop(224)])
    paths = sorted((shared / "data" / "photos").glob("*.JPEG"))[:12]
    assert len(paths) == 12
    for path in paths:
        picture = open_picture(path)
        with Image.open(path) as plain:
            assert np.array_equal(picture, plain.convert("RGB"))
        assert np.array_equal(IMAGENET.pixels(picture), oracle(picture))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("kernel", [True, False])
def test_whole_pictures_equal_pillow_to_the_bit(interpolation, kernel, monkeypatch):
    if kernel:
        resampling.prepare()
    else:
        monkeypatch.setattr(preprocessing, "can_resample", lambda interpolation: False)
    mean = tuple(round(255 * value) for value in IMAGENET_MEAN)
    filters = preprocessing.FILTERS
    for sides in [(500, 375), (375, 500), (224, 224), (17, 40), (255, 999), (90, 1), (3, 2)]:
        picture = scene(200, 200, seed=1).resize(sides)
        letterbox = Preprocess(size=112, interpolation=interpolation, fit="letterbox")
        padded = ImageOps.pad(picture, (112, 112), filters[interpolation], color=mean)
        assert np.array_equal(letterbox.pixels(picture), padded), sides
        assert np.array_equal(letterbox.pixels(np.asarray(picture)), padded), sides
        stretch = replace(letterbox, fit="stretch")
        stretched = picture.resize((112, 112), filters[interpolation])
        assert np.array_equal(stretch.pixels(picture), stretched), sides
        assert np.array_equal(stretch.pixels(np.asarray(picture)), stretched), sides
        grey = replace(letterbox, mode="L", mean=(0.25,), std=(0.5,))
        assert np.array_equal(
            grey.pixels(picture.convert("L"))[:, :, 0],
            ImageOps.pad(picture.convert("L"), (112, 112), filters[interpolation], color=64),
        )


def test_a_line_is_one_pixel_high():
    pixels = Preprocess(size=16, fit="letterbox").pixels(Image.new("RGB", (60_000, 1), "red"))
    assert (pixels[8] == (255, 0, 0)).all()
    assert not (np.delete(pixels, 8, axis=0) == (255, 0, 0)).all(-1).any()
    assert (Preprocess(size=16, fit="stretch").pixels(Image.new("RGB", (1, 60_000), "red")) == (255, 0, 0)).all()


def test_bars_are_nearly_zero_for_the_network():
    per_pixel = tuple(np.linspace(0.2, 0.6, 3 * 8 * 8).tolist())
    for preprocess in (Preprocess(8, fit="letterbox"), Preprocess(8, mean=per_pixel, std=(1, 1, 1), fit="letterbox")):
        inputs = preprocess(scene(16, 4, seed=0))
        bars = np.concatenate([inputs[:, :3], inputs[:, -3:]], 1)
        mean = np.array(preprocess.mean).reshape(3, -1)
        spread = np.ptp(mean, axis=1).max()
        assert np.abs(bars).max() <= (0.5 / 255 + spread) / min(preprocess.std)


def test_the_fit_is_in_a_header_only_if_it_is_chosen():
    assert "fit" not in Preprocess(size=8).to_dict()
    letterbox = Preprocess(size=8, fit="letterbox")
    assert Preprocess.from_dict(letterbox.to_dict()) == letterbox
    with pytest.raises(UsageError, match="`resize` is 10, but `fit` letterbox crops nothing"):
        Preprocess(size=8, resize=10, fit="letterbox")
    with pytest.raises(UsageError, match="`fit` is 'pad'; choose one of crop, letterbox, stretch"):
        Preprocess(size=8, fit="pad")


def test_a_picture_of_the_right_size_stays_as_it_is():
    picture = scene(32, 32)
    assert np.array_equal(Preprocess(size=32).pixels(picture), picture)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_array_that_is_only_cropped_gives_the_pixels_of_its_picture(mode):
    """They are a copy: a later change of the array does not change them."""
    channels = 3 if mode == "RGB" else 1
    preprocess = Preprocess(size=32, resize=33, mode=mode, mean=(0.5,) * channels, std=(0.5,) * channels)
    picture = scene(40, 33).convert(mode)
    given = np.array(picture).reshape(33, 40, -1)
    found = preprocess.pixels(given)
    given[:] = 0
    assert np.array_equal(found, preprocess.pixels(picture))


def test_ten_crops_equal_torchvision_in_order():
    for sides in SIZES:
        picture = scene(*sides)
        crops = IMAGENET.views(picture, "ten-crop")
        assert crops.shape == (10, 224, 224, 3)
        for crop, theirs in zip(crops, tvf.ten_crop(tvf.resize(picture, 256), 224), strict=True):
            assert np.array_equal(crop, theirs)
        assert np.array_equal(IMAGENET.views(picture, "single")[0], IMAGENET.pixels(picture))


@pytest.mark.parametrize("shorter_side", [224, 384, 640])
def test_scaled_keeps_the_shape(shorter_side):
    picture = scene(500, 375)
    scaled = IMAGENET.scaled(picture, shorter_side)
    assert scaled.shape == (shorter_side, shorter_side * 500 // 375, 3)
    assert np.array_equal(scaled, tvf.resize(picture, shorter_side))


def test_normalize_is_the_formula_in_float32():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    inputs = IMAGENET.normalize(pixels)
    assert (inputs.shape, inputs.dtype, inputs.flags.c_contiguous) == ((2, 3, 5, 7), np.float32, True)
    for channel in range(3):
        x = pixels[..., channel].astype(np.float32) / np.float32(255)
        expected = (x - np.float32(IMAGENET_MEAN[channel])) / np.float32(IMAGENET_STD[channel])
        assert np.array_equal(inputs[:, channel], expected)
    assert np.array_equal(IMAGENET.normalize(pixels[0]), inputs[0])
    picture = scene(300, 280)
    theirs = tvf.normalize(tvf.to_tensor(tvf.center_crop(tvf.resize(picture, 256), 224)), IMAGENET_MEAN, IMAGENET_STD)
    assert np.array_equal(IMAGENET(picture), theirs.numpy())


def test_the_mean_of_every_pixel_is_row_major_and_averaged_at_other_sizes():
    mean = np.random.default_rng(0).random((3, 4, 4))
    preprocess = Preprocess(size=4, mean=tuple(mean.ravel()), std=(1, 1, 1))
    black = preprocess.normalize(np.zeros((4, 4, 3), np.uint8))
    assert np.array_equal(black, -mean.astype(np.float32))
    elsewhere = preprocess.normalize(np.zeros((6, 9, 3), np.uint8))
    assert elsewhere.shape == (3, 6, 9)
    assert np.allclose(elsewhere, -mean.mean((1, 2))[:, None, None], atol=1e-7)


def test_preprocess_survives_json():
    for preprocess in (
        IMAGENET,
        Preprocess(size=2, mode="L", mean=(0.1, 0.2, 1 / 3, 0.4), std=(0.7,), interpolation="bicubic"),
    ):
        again = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
        assert again == preprocess
        assert hash(again) == hash(preprocess)
    assert set(IMAGENET.to_dict()) == {"size", "resize", "interpolation", "mean", "std", "mode"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sise": 3}, "no field 'sise'; did you mean size"),
        ({"colour": 3}, "no field 'colour'; known are size, resize"),
        ({"size": 0}, "`size` 0 and `resize` None must be whole numbers above 0"),
        ({"size": 224.0}, "whole numbers"),
        ({"size": True}, "whole numbers"),
        ({"resize": 200}, "`resize` is 200, less than the crop .`size` 224.; give at least 224"),
        ({"interpolation": "cubic"}, "`interpolation` is 'cubic'; choose one of nearest, bilinear, bicubic, lanczos"),
        ({"mode": "CMYK"}, "`mode` is 'CMYK'; choose one of RGB, L"),
        ({"mean": [0.5, 0.5]}, r"`mean` has 2 values; RGB at size 224 takes 3 \(per channel\) or 150528 \(per pixel\)"),
        ({"mean": "black"}, "`mean` must be a list of numbers"),
        ({"mean": [float("nan")] * 3}, "not finite"),
        ({"std": [1, 1, 0]}, "takes 3 values above 0"),
        ({"std": [1]}, "takes 3 values above 0"),
    ],
)
def test_what_preprocess_cannot_mean_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.from_dict({"size": 224, **changes})
    with pytest.raises(UsageError, match="has no size"):
        Preprocess.from_dict({})


def test_wrong_pictures_and_pixels_are_refused():
    with pytest.raises(UsageError, match="the picture is RGBA, not RGB; open it with open_picture"):
        IMAGENET.pixels(scene(8, 8, "RGBA"))
    with pytest.raises(UsageError, match=r"pixels are float32 \(4, 4, 3\); expected uint8"):
        IMAGENET.normalize(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(UsageError, match="expected uint8"):
        IMAGENET.normalize(np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(DataError, match="9000 x 3 pixels is too long and narrow"):
        IMAGENET.pixels(Image.new("RGB", (9000, 3)))
