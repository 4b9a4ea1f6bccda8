"""Changes of single pictures: TrivialAugment's operations and rotation equal torchvision's on PIL."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as tvf

from resnetkit.data.transforms import alterations
from resnetkit.data.transforms.alterations import BINS, OPERATIONS, erase, operated, rotated, trivially_augmented
from resnetkit.data.transforms.augment import Augment
from resnetkit.errors import UsageError
from scenes import scene

FILL = (124, 116, 104)
NAMES = {"color": "Color", "auto-contrast": "AutoContrast"}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_operations_equal_torchvisions(name, mode):
    oracle = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    theirs = NAMES.get(name) or "".join(part.capitalize() for part in name.split("-"))
    strengths, signed = oracle._AUGMENTATION_SPACE[theirs]
    assert signed == bool(OPERATIONS[name])
    fill = FILL if mode == "RGB" else FILL[:1]
    picture = scene(64, 48, seed=3).convert(mode)
    pixels = np.asarray(picture).reshape(48, 64, -1)
    every = strengths(BINS, 48, 64)
    for step in (0, 1, 7, 16, 29, 30):
        for backwards in (False, True):
            strength = 0.0
            if every is not None:  # torchvision has it in float32, which would round a few values to the other side
                first, last = round(float(every[0]), 3), round(float(every[-1]), 3)
                strength = first + (last - first) * step / (BINS - 1) * (-1 if signed and backwards else 1)
                assert abs(strength) == pytest.approx(float(every[step]), abs=0.5 if name == "posterize" else 1e-5)
            strength = round(strength) if name == "posterize" else round(strength, 9) - 1e-8 * (name == "solarize")
            expected = oracle._apply_image_or_video_transform(
                picture,
                theirs,
                strength,
                interpolation=oracle.interpolation,
                fill={Image.Image: list(fill)},
            )
            found = operated(pixels, name, step, backwards=backwards, fill=fill)
            assert found.shape == pixels.shape
            apart = np.abs(found.astype(int) - np.asarray(expected).reshape(found.shape))
            # torchvision takes a shear as an angle, and so rounds it.
            assert (apart > 0).mean() <= (0.01 if name.startswith("shear") else 0), (step, backwards)


def test_every_operation_comes_equally_often(monkeypatch):
    drawn: Counter[tuple[str, bool]] = Counter()
    steps: Counter[int] = Counter()

    def note(pixels, name, step, *, backwards, fill):
        drawn[name, backwards] += 1
        steps[step] += 1
        return pixels

    monkeypatch.setattr(alterations, "operated", note)
    rng = np.random.default_rng(0)
    for _ in range(2800):
        trivially_augmented(np.zeros((2, 2, 3), np.uint8), rng, fill=FILL)
    assert set(steps) == set(range(BINS))
    assert len(drawn) == 28
    # 2,800 draws over 28 equal cells; chi-square with 27 degrees of freedom is under 56 in 99.9 %.
    assert sum((count - 100) ** 2 / 100 for count in drawn.values()) < 56


def test_rotation_equals_torchvisions():
    picture = scene(40, 40, seed=0)
    for degrees in (-170.5, -10.0, 0.0, 33.3, 90.0):
        expected = tvf.rotate(picture, degrees, InterpolationMode.BILINEAR, fill=list(FILL))
        assert np.array_equal(rotated(np.asarray(picture), degrees, fill=FILL), expected)


def test_erased_boxes_have_the_areas_of_the_paper():
    shares = []
    for seed in range(300):
        pixels = np.zeros((50, 60, 3), np.uint8)
        erase(pixels, np.random.default_rng(seed), fill=FILL)
        erased = (pixels == FILL).all(-1)
        assert np.array_equal(erased, pixels.any(-1))
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        assert erased.sum() == len(rows) * len(columns), "one box"
        shares.append(erased.mean())
    assert 0.015 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.34
    assert np.mean(shares) == pytest.approx((0.02 + 0.33) / 2, abs=0.03)


def test_changes_come_with_their_probability_and_repeat():
    images = np.stack([np.asarray(scene(16, 16, seed=seed)) for seed in range(400)])
    for augment, share in (
        (Augment(flip=False, erase=0.25), 0.25),
        (Augment(flip=False, vertical_flip=True), 0.5),
        (Augment(flip=False, rotation=20), 1.0),
    ):
        before = images.copy()
        changed = augment.batch(images, np.random.default_rng(1))
        assert np.array_equal(images, before), "the pictures in memory stay as they are"
        assert (changed != images).any((1, 2, 3)).mean() == pytest.approx(share, abs=0.09)
        assert np.array_equal(changed, augment.batch(images, np.random.default_rng(1)))
    upside_down = Augment(flip=False, vertical_flip=True).batch(images, np.random.default_rng(1))
    flipped = (upside_down != images).any((1, 2, 3))
    assert np.array_equal(upside_down[flipped], images[flipped, ::-1])


def test_changes_out_of_range_are_refused():
    with pytest.raises(UsageError, match="`rotation` is 200; it must be from 0 to 180"):
        Augment(rotation=200)
    with pytest.raises(UsageError, match="`erase` is 2; it must be from 0 to 1"):
        Augment(erase=2)
    with pytest.raises(UsageError, match="`blank` is"):
        Augment(blank=(300,))
