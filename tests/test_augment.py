"""Training augmentation: every output is a window of its input, drawn with the right probability."""

from itertools import product

import numpy as np
import pytest
from torchvision.transforms import functional as tvf

from resnetkit.data.transforms.augment import PCA_COMPONENTS, PCA_DEVIATIONS, Augment
from resnetkit.data.transforms.crops import write_crop
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from scenes import scene

IMAGENET = Preprocess(size=224, resize=256)


def crop(picture, augment, preprocess, rng):
    """Return the pixels of a random crop, as the loader computes them from a file that is decoded completely."""
    out = np.empty((preprocess.size, preprocess.size, 3), np.uint8)
    cut = augment.cut(picture.size, preprocess, rng)
    write_crop(out, np.asarray(picture), cut.box, interpolation=preprocess.interpolation, mirrored=cut.mirrored)
    return out


def windows_of(image, padding, size=None, **how):
    """Return all translated windows of a picture, and their mirror images: {bytes: (top, left, mirrored)}."""
    height, width = (size, size) if size else image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), **how)
    found = {}
    for top, left in product(range(len(padded) - height + 1), range(padded.shape[1] - width + 1)):
        window = padded[top : top + height, left : left + width]
        found[window.tobytes()] = (top, left, False)
        found[window[:, ::-1].tobytes()] = (top, left, True)
    return found


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 9, 1)])
@pytest.mark.parametrize("fill", [(0,), (7,)])
def test_pad_crop_gives_every_window_and_mirror_image_equally_often(shape, fill):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = windows_of(image, 2, constant_values=fill[0])
    assert len(expected) == 50
    images = np.repeat(image[None], 5000, axis=0)
    varied = Augment("pad", padding=2, fill=fill).batch(images, np.random.default_rng(1))
    counts = np.zeros((5, 5, 2), int)
    for result in varied:
        counts[expected[result.tobytes()]] += 1
    # 5,000 draws over 50 equal cells; chi-square with 49 degrees of freedom is under 85 in 99.9 %.
    assert ((counts - 100) ** 2 / 100).sum() < 85
    assert np.array_equal(images, np.repeat(image[None], 5000, axis=0))


@pytest.mark.parametrize("shape", [(8, 8, 3), (6, 9, 1)])
def test_padding_by_reflection(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = windows_of(image, 3, mode="reflect")
    varied = Augment("pad", padding=3, padding_mode="reflect").batch(
        np.repeat(image[None], 2000, axis=0), np.random.default_rng(1)
    )
    assert {result.tobytes() for result in varied} == set(expected)
    assert len(expected) == 98


@pytest.mark.parametrize("padding", [0, 1])
def test_smaller_windows_come_from_everywhere(padding):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    expected = windows_of(image, padding, size=5, mode="reflect")
    augment = Augment("pad", size=5, padding=padding, padding_mode="reflect")
    varied = augment.batch(np.repeat(image[None], 2000, axis=0), np.random.default_rng(1))
    assert varied.shape == (2000, 5, 5, 3)
    assert {result.tobytes() for result in varied} == set(expected)
    with pytest.raises(UsageError, match="`size` is 10, more than 9 x 7 with 1 pixels of padding"):
        Augment("pad", size=10, padding=1).batch(image[None], np.random.default_rng(1))


def test_pad_crop_keeps_pictures_apart_and_fills_each_channel():
    images = np.arange(1, 41, dtype=np.uint8)[:, None, None, None] * np.ones((40, 8, 8, 3), np.uint8)
    varied = Augment("pad", padding=8, fill=(101, 102, 103)).batch(images, np.random.default_rng(0))
    for i, result in enumerate(varied):
        colours = {tuple(colour) for colour in result.reshape(-1, 3).tolist()}
        assert colours <= {(i + 1,) * 3, (101, 102, 103)}
    with pytest.raises(UsageError, match="`fill` has 2 values for 3 channels"):
        Augment("pad", fill=(1, 2)).batch(images, np.random.default_rng(0))


def test_augmentation_is_decided_by_the_generator_alone():
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    augment = Augment("pad", pca_color=0.1)
    first = augment.batch(images, np.random.default_rng(5))
    assert np.array_equal(first, augment.batch(images, np.random.default_rng(5)))
    assert not np.array_equal(first, augment.batch(images, np.random.default_rng(6)))


def test_crop_none_without_flip_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    kept = Augment(flip=False).batch(images, np.random.default_rng(0))
    assert np.array_equal(kept, images)
    assert not np.shares_memory(kept, images)


def test_random_resized_boxes_are_of_the_asked_area_and_ratio():
    augment, rng = Augment("random-resized"), np.random.default_rng(0)
    boxes = np.array([augment._random_area((500, 400), rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert (boxes[:, 2].max(), boxes[:, 3].max()) == (500, 400)
    area, ratio = width * height / 200_000, width / height
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.9
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.03  # as often upright as lying


@pytest.mark.parametrize(("sides", "box"), [((900, 30), (430, 0, 470, 30)), ((30, 900), (0, 430, 30, 470))])
def test_random_resized_falls_back_to_the_centre(sides, box):
    augment = Augment("random-resized", scale=(1, 1))
    assert augment._random_area(sides, np.random.default_rng(0)) == box


def test_random_resized_is_crop_then_resize():
    picture, augment = scene(300, 200), Augment("random-resized", flip=False)
    left, top, right, bottom = augment._random_area(picture.size, np.random.default_rng(3))
    pixels = crop(picture, augment, Preprocess(size=64), np.random.default_rng(3))
    theirs = np.asarray(tvf.resized_crop(picture, top, left, bottom - top, right - left, [64, 64]), int)
    assert np.abs(pixels - theirs).max() <= 1


def test_scale_jitter_is_resize_then_crop():
    picture = scene(400, 300)
    augment, preprocess = Augment("scale-jitter", flip=False, jitter=(100, 150)), Preprocess(size=96)
    shorter, places = set(), set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        side = int(rng.integers(100, 151))
        scaled = preprocess.scaled(picture, side).astype(int)
        top_left = rng.integers(0, scaled.shape[1] - 95), rng.integers(0, scaled.shape[0] - 95)
        shorter.add(side)
        places.add(tuple(int(x) for x in top_left))
        if seed < 20:
            left, top = top_left
            pixels = crop(picture, augment, preprocess, np.random.default_rng(seed))
            assert np.abs(pixels - scaled[top : top + 96, left : left + 96]).max() <= 2
    assert {100, 150} <= shorter
    assert len(places) > 150
    with pytest.raises(
        UsageError, match=r"`jitter` starts at 100, less than the crop \(224 pixels\); give at least 224"
    ):
        augment.cut(picture.size, IMAGENET, np.random.default_rng(0))


@pytest.mark.parametrize("kind", ["none", "random-resized", "scale-jitter"])
def test_half_of_the_pictures_are_mirrored(kind):
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    augment, rng = Augment(kind, jitter=(16, 16)), np.random.default_rng(0)
    if kind == "none":
        mirrored = (augment.batch(np.stack([half] * 400), rng)[:, 0, 0, 0] == 255).sum()
    else:
        mirrored = sum(augment.cut((64, 64), Preprocess(size=16), rng).mirrored for _ in range(400))
        unflipped = Augment(kind, jitter=(16, 16), flip=False)
        assert not any(unflipped.cut((64, 64), Preprocess(size=16), rng).mirrored for _ in range(20))
    assert 160 < mirrored < 240  # four deviations


def test_pca_colours_have_the_published_covariance():
    grey = np.full((20_000, 1, 1, 3), 128, np.uint8)
    shifted = (
        Augment(flip=False, pca_color=0.5).batch(grey, np.random.default_rng(0)).astype(float).reshape(-1, 3) - 128
    )
    covariance = PCA_COMPONENTS @ np.diag((255 * 0.5 * PCA_DEVIATIONS) ** 2) @ PCA_COMPONENTS.T
    assert np.abs(shifted.mean(0)).max() < 0.5
    assert np.allclose(np.cov(shifted.T), covariance, rtol=0.05)
    assert np.allclose(PCA_COMPONENTS.T @ PCA_COMPONENTS, np.eye(3), atol=1e-3)


def test_pca_colours_are_one_shift_a_picture_and_clipped():
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 255, 120)] * 50)
    images[:, 0, 0] += 1  # 255 wraps to 0
    shifted = Augment(flip=False, pca_color=1.0).batch(images, np.random.default_rng(0)).astype(int)
    shift = shifted - images
    inside = (shifted > 0) & (shifted < 255)
    assert inside.any()
    for one, mask in zip(shift[2::3], inside[2::3], strict=True):
        assert all(len(set(one[..., c][mask[..., c]].tolist())) <= 1 for c in range(3))
    with pytest.raises(UsageError, match="`pca_color` shifts RGB, but the pictures have 1 channel"):
        Augment(pca_color=0.1).batch(images[..., :1], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "padding"}, "`crop` is 'padding'; choose one of none, pad, random-resized, scale-jitter"),
        ({"padding": -1}, "`padding` is -1; it must be at least 0"),
        ({"padding_mode": "mirror"}, "`padding_mode` is 'mirror'; choose one of constant, reflect"),
        ({"crop": "pad", "size": 0}, "`size` is 0; it must be at least 1"),
        (
            {"crop": "scale-jitter", "size": 8},
            "`crop` scale-jitter gives pictures of the network's size; leave `size` out",
        ),
        ({"fill": (256,)}, "give values from 0 to 255"),
        ({"scale": (0.5, 1.5)}, "`scale` is .0.5, 1.5."),
        ({"ratio": (2, 1)}, "`ratio` is .2, 1."),
        ({"jitter": (0, 10)}, "`jitter` is .0, 10."),
        ({"pca_color": -0.1}, "`pca_color` is -0.1"),
    ],
)
def test_what_augmentation_cannot_mean_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Augment(**changes)


def test_whole_picture_crops_take_no_batches():
    with pytest.raises(UsageError, match="cuts from whole pictures"):
        Augment("random-resized").batch(np.zeros((1, 8, 8, 3), np.uint8), np.random.default_rng(0))
