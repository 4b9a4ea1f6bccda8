"""What a recipe comes to over the course of a run."""

from dataclasses import replace

import pytest

from resnetkit.data.transforms import Preprocess
from resnetkit.train.recipe import Recipe
from resnetkit.train.task import choose_augment

CIFAR = Preprocess(size=32)


@pytest.mark.parametrize(
    ("crop", "course"),
    [
        ("none", [("none", 32), ("none", 32), ("none", 32)]),
        ("pad", [("pad", 24), ("pad", 32), ("none", 32)]),
        ("random-resized", [("random-resized", 24), ("random-resized", 32), ("none", 32)]),
        ("scale-jitter", [("scale-jitter", 32), ("scale-jitter", 32), ("none", 32)]),
    ],
)
def test_crops_over_the_course_of_a_run(crop, course):
    recipe = Recipe(crop=crop, early_scale=0.75, early_until=0.4, center_crop_from=0.9, jitter=(32, 48))
    for progress, (now, side) in zip([0.0, 0.39, 0.4, 0.89, 0.9, 1.0], [c for c in course for _ in "12"], strict=True):
        augment = choose_augment(recipe, CIFAR, progress)
        assert (augment.crop, augment.side(CIFAR)) == (now, side), progress
    for progress in (0.0, 0.5, 0.999):
        augment = choose_augment(Recipe(crop=crop, jitter=(32, 48)), CIFAR, progress)
        assert (augment.crop, augment.side(CIFAR)) == (crop, 32), "without them, nothing changes"


def test_augmentation_is_as_the_recipe_says():
    recipe = Recipe(padding=3, padding_mode="reflect", pca_color=0.2, min_area=0.3)
    for progress in (0.0, 1.0):
        augment = choose_augment(replace(recipe, center_crop_from=0.5), CIFAR, progress)
        assert (augment.padding, augment.padding_mode, augment.pca_color) == (3, "reflect", 0.2)
        assert (augment.scale, augment.flip) == ((0.3, 1.0), True)
    assert not choose_augment(replace(recipe, alternate_flip=True), CIFAR).flip


@pytest.mark.parametrize(("scale", "size", "side"), [(0.99, 32, 32), (0.75, 7, 5), (0.01, 32, 1), (0.75, 224, 168)])
def test_early_sides_are_whole_numbers_over_zero(scale, size, side):
    preprocess = Preprocess(size=size)
    augment = choose_augment(Recipe(early_scale=scale), preprocess)
    assert augment.side(preprocess) == side
    assert (augment.size is None) == (side == size), "the same size is no change"
