"""Fields that have no effect: refused as flags, named where a file says them, not shown in a report."""

from dataclasses import fields, replace

import numpy as np
import pytest

from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import UsageError
from resnetkit.train.effects import USES, check_effects, effective_fields
from resnetkit.train.recipe import FLAG, RECIPES, Recipe, changed


@pytest.fixture
def dataset(cifar_subset: tuple[Samples, Samples]) -> Dataset:
    """Pictures of 32 px in memory, divided as CIFAR is."""
    train, test = cifar_subset
    return Dataset("subset", train.classes, train, test, None, {"seed": 0, "train_split": "45k"})


SGD, PLAIN = {"optimizer": "sgd"}, {"crop": "none"}


# Of each field: a value, with what it does something, and with what it does not.
@pytest.mark.parametrize(
    ("name", "value", "heeded", "idle"),
    [
        ("zero_init_residual", True, {}, {"init": "m"}),
        ("freeze", 2, {"init": "m"}, {}),
        ("muon_lr", 0.1, {"optimizer": "muon"}, SGD),
        ("decay_norm_and_bias", True, {}, {"weight_decay": 0.0}),
        ("peak_at", 0.3, {"schedule": "one-cycle"}, {"schedule": "cosine"}),
        ("milestones", (0.3,), {"schedule": "step"}, {"schedule": "plateau"}),
        ("lr_drop", 0.2, {"schedule": "plateau"}, {"schedule": "one-cycle"}),
        ("plateau_patience", 3, {"schedule": "plateau"}, {"schedule": "step"}),
        ("warmup_error_percent", 70.0, {"warmup_lr": 0.01}, {"warmup_lr": 0.0}),
        ("interpolation", "bicubic", {"size": 64}, {"size": 32}),
        ("normalize", "imagenet", {}, {"init": "m"}),
        ("padding", 3, {"crop": "pad"}, PLAIN),
        ("padding_mode", "reflect", {"crop": "pad"}, {"crop": "pad", "padding": 0}),
        ("early_scale", 0.5, {"crop": "random-resized"}, {"crop": "scale-jitter"}),
        ("early_until", 0.6, {"early_scale": 0.5}, {"early_scale": 1.0}),
        ("center_crop_from", 0.9, {"crop": "pad"}, PLAIN),
        ("min_area", 0.5, {"crop": "random-resized"}, {"crop": "pad"}),
        ("jitter", (40, 50), {"crop": "scale-jitter"}, {"crop": "pad"}),
        ("alternate_flip", True, {"flip": True}, {"flip": False}),
    ],
)
def test_a_flag_without_use_is_refused(name, value, heeded, idle, dataset):
    asked = {name: FLAG}
    assert check_effects(changed(Recipe(), {name: value, **heeded}, source=""), dataset, asked) == []
    recipe = changed(Recipe(), {name: value, **idle}, source="")
    with pytest.raises(UsageError, match=f"`{name}` has no effect here: .*; leave it out"):
        check_effects(recipe, dataset, asked)
    (line,) = check_effects(recipe, dataset, {name: "own.yaml"})
    assert line.startswith(f"own.yaml: {name} has no effect here: ")
    assert check_effects(recipe, dataset, {}) == [], "what nobody asked for is not named"


def test_square_pictures_need_no_fit(dataset):
    with pytest.raises(UsageError, match="`fit` has no effect here: these pictures are square"):
        check_effects(Recipe(fit="letterbox"), dataset, {"fit": FLAG})
    assert check_effects(Recipe(fit="crop"), dataset, {"fit": FLAG}) == []


def test_what_divides_the_set_is_refused_where_it_divides_nothing(dataset):
    assert check_effects(Recipe(), dataset, {"train_split": FLAG}) == []
    with pytest.raises(UsageError, match="`val_fraction` has no effect here"):
        check_effects(Recipe(val_fraction=0.3), dataset, {"val_fraction": FLAG})
    folder = replace(dataset, split={"seed": 0, "val_fraction": 0.3})
    assert check_effects(Recipe(), folder, {"val_fraction": FLAG}) == []
    with pytest.raises(UsageError, match="`train_split` has no effect here"):
        check_effects(Recipe(train_split="50k"), folder, {"train_split": FLAG})
    own = replace(dataset, split={"rule": "as given"})
    assert check_effects(Recipe(val_fraction=0), own, {"val_fraction": FLAG}) == [], "none is drawn, as asked"


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_heeds_what_it_says(name, dataset):
    own = [f.name for f in fields(Recipe) if getattr(RECIPES[name], f.name) != getattr(Recipe(), f.name)]
    on_the_clock = RECIPES[name].replace(minutes=1.0)  # of which a row says something, too
    assert check_effects(on_the_clock, dataset, dict.fromkeys(own, FLAG)) == []


@pytest.mark.parametrize(
    "off",
    [
        {"freeze": 0},
        {"early_scale": 1.0, "crop": "none"},
        {"center_crop_from": 1.0, "crop": "none"},
        {"padding": 0, "crop": "none"},
        {"alternate_flip": False, "flip": False},
        {"zero_init_residual": False},
    ],
)
def test_switching_off_is_always_heeded(off, dataset):
    asked = dict.fromkeys(off, FLAG)
    assert check_effects(changed(Recipe(), off, source=""), dataset, asked) == []


def test_pictures_of_several_sizes_are_always_resized(dataset, tmp_path):
    paths = tuple(tmp_path / f"{i}.png" for i in range(2))
    samples = Samples(dataset.classes, np.array([0, 1]), paths=paths)
    assert check_effects(Recipe(), replace(dataset, train=samples), {"interpolation": FLAG}) == []
    assert USES.keys() <= {f.name for f in fields(Recipe)}


@pytest.mark.parametrize(
    ("recipe", "there", "gone"),
    [
        (RECIPES["folder"].replace(minutes=1.0), {"minutes", "lr", "val_fraction"}, {"epochs", "iterations"}),
        (RECIPES["folder"].replace(iterations=9), {"iterations"}, {"epochs", "minutes", "least_batch_size"}),
        (RECIPES["folder"], {"epochs", "peak_at", "min_area"}, {"minutes", "muon_lr", "milestones", "padding", "init"}),
        (RECIPES["cifar10"], {"muon_lr", "padding", "early_until"}, {"min_area", "jitter", "train_split"}),
        (RECIPES["paper-cifar10"], {"milestones", "lr_drop"}, {"peak_at", "plateau_patience", "early_until"}),
        (RECIPES["paper-cifar10-110"], {"warmup_lr", "warmup_error_percent"}, {"muon_lr"}),
        (RECIPES["folder"].replace(init="resnet18"), {"init", "freeze"}, {"normalize", "zero_init_residual"}),
        (RECIPES["paper-imagenet"], {"jitter", "plateau_patience", "lr_drop"}, {"milestones", "padding_mode"}),
    ],
)
def test_only_fields_with_an_effect_are_kept_of_a_recipe(recipe: Recipe, there: set[str], gone: set[str]) -> None:
    shown = effective_fields(recipe.to_dict(), {"seed": 7, "val_fraction": 0.2})
    assert there <= shown.keys()
    assert not gone & shown.keys()
    assert all(shown[name] == recipe.to_dict()[name] for name in shown)


def test_other_fields_than_a_recipes_stay() -> None:
    assert effective_fields({"converted_from": "a.pth", "gone": None}, {}) == {"converted_from": "a.pth"}
    of_another_version = {"crop": "spiral", "jitter": [256, 480], "size": None}
    assert effective_fields(of_another_version, {}) == {"crop": "spiral", "jitter": [256, 480]}
    two_lengths = {"epochs": 30.0, "iterations": None, "minutes": 2.0}  # as earlier versions wrote them
    assert effective_fields(two_lengths, {}) == {"minutes": 2.0}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_of_a_recipe_would_not_be_refused(name: str, dataset: Dataset) -> None:
    shown = effective_fields(RECIPES[name].to_dict(), dataset.split)
    assert len(shown) > 20
    assert check_effects(RECIPES[name], dataset, dict.fromkeys(shown, FLAG)) == []
