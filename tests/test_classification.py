"""The settings that a recipe gives at each point of a run."""

from dataclasses import replace

import pytest
import torch

from resnetkit.data.dataset import open_dataset
from resnetkit.data.parts import recognise
from resnetkit.data.samples import Dataset
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.modelfile import Header, inspect, save, short_name
from resnetkit.train.classification import prepare
from resnetkit.train.computing.compute import PAYS_FROM_STEPS
from resnetkit.train.preparation import choose_augment
from resnetkit.train.recipe import Recipe

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


def test_a_model_file_names_its_data_and_not_where_they_are(picture_folder, split_folder, tmp_path, monkeypatch):
    recipe = Recipe(model="resnet20,depths=1-1-1", normalize="imagenet", size=32, compile="off")
    first = prepare(recipe, open_dataset(str(split_folder), val_fraction=0.5))
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    save(run / "best.safetensors", first.net, first.header)
    for init, name in ((run, "first"), (run / "best.safetensors", "first/best.safetensors")):
        dataset = open_dataset(str(picture_folder))
        header = prepare(replace(recipe, init=str(init)), dataset).header
        assert (header.data["name"], header.recipe["init"]) == ("pictures", name)
        assert str(tmp_path) not in header.to_json()
        # What trained the first weights is known, too.
        kept_out = open_dataset(str(split_folder), val_fraction=0.5)
        found = [recognise(s, header.data).mask.mean() for s in (kept_out.train, kept_out.val, dataset.train)]
        assert found[0] == found[2] == 1
        assert found[1] < 0.2, "pictures of the same subset that the other training took"
    monkeypatch.chdir(picture_folder)
    assert prepare(recipe, open_dataset(".")).header.data["name"] == "pictures"
    assert [short_name(name) for name in ("cifar10", "resnet20:cifar10", "hf:me/net", "../pictures/", "..")] == [
        *("cifar10", "resnet20:cifar10", "hf:me/net", "pictures"),
        tmp_path.name,
    ]
    # Files of earlier versions hold whole paths; what is made of them does not.
    old = replace(header, data={"name": "/home/me/birds"}, recipe={"init": "/home/me/runs/a"})
    read = Header.from_json(old.to_json(), source="old")
    assert (read.data["name"], read.recipe["init"]) == ("birds", "a")
    assert inspect(run).data["name"] == "split"


@pytest.fixture
def dataset(cifar_subset):
    train, test = cifar_subset
    return Dataset("subset", train.classes, train, None, test, {})


@pytest.mark.parametrize(("more", "name"), [(0, "torch.compile"), (-1, "eager")])
def test_a_run_in_epochs_is_compiled_where_its_steps_pay(more, name, dataset, monkeypatch):
    """300 pictures are 18 batches of 16, and 9 steps if two batches are accumulated."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr("resnetkit.train.computing.compute.find_compiler", lambda: ["g++"])
    recipe = Recipe(model="resnet20,depths=1-1-1,order=pre", batch_size=16, accumulate=2)
    assert prepare(replace(recipe, epochs=(PAYS_FROM_STEPS + more) / 9), dataset).computed_by == name


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_batch_that_batch_norm_can_learn_nothing_from_is_refused(choice, dataset):
    """With and without the kernels, with the smallest crops of the run."""
    recipe = Recipe(model="resnet18,depths=1-1-1-1,width=16", normalize="imagenet", batch_size=1, compile=choice)
    with pytest.raises(UsageError, match=r"one picture of 32 × 32 .* larger `batch_size` .* or a larger `size`$"):
        prepare(recipe, dataset)
    with pytest.raises(UsageError, match="one picture of 32 × 32"):
        prepare(replace(recipe, size=64, early_scale=0.5), dataset)
    assert prepare(replace(recipe, size=64), dataset).loader.order.batch_size == 1
