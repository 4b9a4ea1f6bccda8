"""Recipes: the rows, their YAML form, and the errors of wrong ones."""

from dataclasses import fields, replace

import pytest

from resnetkit.errors import UsageError
from resnetkit.models.spec import parse_spec
from resnetkit.train.recipe import (
    DEFAULT_ROWS,
    LENGTHS,
    PURPOSES,
    RECIPES,
    Recipe,
    changed,
    find_recipe,
    read_recipe,
    write_recipe,
)


@pytest.mark.parametrize("name", RECIPES)
def test_every_row_goes_to_yaml_and_back(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    write_recipe(path, RECIPES[name], {"data": "cifar10"})
    assert read_recipe(path, Recipe(seed=99)) == (RECIPES[name], {"data": "cifar10"})
    assert parse_spec(RECIPES[name].model).parameters > 0


def test_paper_cifar10_is_the_papers():
    recipe = RECIPES["paper-cifar10"]
    assert (recipe.iterations, recipe.batch_size, recipe.lr, recipe.momentum) == (64_000, 128, 0.1, 0.9)
    assert (recipe.weight_decay, recipe.decay_norm_and_bias, recipe.nesterov) == (1e-4, True, False)
    assert [round(m * 64_000) for m in recipe.milestones] == [32_000, 48_000]
    assert (recipe.crop, recipe.padding, recipe.flip, recipe.normalize) == ("pad", 4, True, "per-pixel")
    assert replace(RECIPES["paper-cifar10-110"], model="resnet20", warmup_lr=0.0) == recipe
    assert (RECIPES["paper-cifar10-110"].warmup_lr, recipe.warmup_error_percent) == (0.01, 80.0)


def test_paper_imagenet_is_the_papers():
    recipe = RECIPES["paper-imagenet"]
    assert (recipe.iterations, recipe.batch_size, recipe.lr, recipe.weight_decay) == (600_000, 256, 0.1, 1e-4)
    assert (recipe.crop, recipe.jitter, recipe.pca_color, recipe.schedule) == (
        "scale-jitter",
        (256, 480),
        0.1,
        "plateau",
    )
    assert parse_spec(recipe.model).downsample_in == "1x1"


def test_file_changes_some_fields(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 0.3\nmilestones: [0.2, 0.9]\n")
    assert read_recipe(path, Recipe(seed=5))[0] == Recipe(seed=5, lr=0.3, milestones=(0.2, 0.9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate: 0.1", "learning_rate"),
        ("batchsize: 3", "did you mean 'batch_size'"),
        ("- 3", "field: value"),
        ("a: [", "not YAML"),
        ("lr: -1", "`lr` is -1"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_recipe(path, Recipe())


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0},
        {"lr": float("nan")},
        {"epochs": float("inf")},
        {"minutes": -3},
        {"iterations": 0},
        {"batch_size": 0},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"val_fraction": 1.5},
        {"milestones": (0.7, 0.2)},
        {"milestones": (0.5, 1.5)},
        {"jitter": (480, 256)},
        {"min_area": 0.0},
        {"seed": -1},
        {"weight_decay": float("nan")},
        {"minutes": 3.0, "iterations": 100},
        {"early_scale": 0.0},
        {"early_scale": 1.5},
        {"early_until": 1.1},
        {"center_crop_from": -0.1},
        {"padding_mode": "mirror"},
    ],
)
def test_values_that_cannot_be_meant(changes):
    with pytest.raises(UsageError, match=next(iter(changes)).replace("_", ".")):
        changed(Recipe(), changes, source="flags")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean paper-cifar10"):
        find_recipe("paper_cifar10")


def test_every_field_is_documented():
    import inspect

    source = inspect.getsource(Recipe)
    for field in fields(Recipe):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), f"{field.name} has no line of help"


@pytest.mark.parametrize("length", [{"epochs": 2.0}, {"iterations": 7}, {"minutes": 0.5}])
@pytest.mark.parametrize("before", [Recipe(), Recipe(epochs=9), Recipe(iterations=9), Recipe(minutes=9.0)])
def test_a_length_takes_the_place_of_another(before, length):
    expected = dict.fromkeys(LENGTHS) | length
    for after in (before.replace(**length), changed(before, length, source="flags")):
        assert {name: getattr(after, name) for name in LENGTHS} == expected
        assert {name: after.to_dict()[name] for name in LENGTHS if name in after.to_dict()} == length
        assert after.replace(lr=0.3, **dict.fromkeys(LENGTHS)) == after.replace(lr=0.3), "None is no length"
    assert Recipe().epochs == 30.0


@pytest.mark.parametrize(
    "two", [{"epochs": 2.0, "minutes": 1.0}, {"epochs": 2.0, "iterations": 7}, {"iterations": 7, "minutes": 1.0}]
)
def test_two_lengths_are_refused(two, tmp_path):
    words = "`{}` and `{}` are all lengths of the run".format(*two)
    with pytest.raises(UsageError, match=words):
        Recipe(**two)
    with pytest.raises(UsageError, match=words):
        changed(Recipe(), two, source="flags")
    path = tmp_path / "two.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in two.items()))
    with pytest.raises(UsageError, match=words):
        read_recipe(path, Recipe())


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("epochs: 30.0\niterations: null\nminutes: 1.0\n", {"minutes": 1.0}),
        ("epochs: 30.0\niterations: 64000\nminutes: null\n", {"iterations": 64_000}),
        ("epochs: 5.0\niterations: null\nminutes: null\n", {"epochs": 5.0}),
    ],
)
def test_recipes_of_earlier_versions_keep_the_length_that_held(text, length, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert read_recipe(path, Recipe(iterations=3))[0] == Recipe(**length)


def test_every_row_says_what_it_is_for():
    assert PURPOSES.keys() == RECIPES.keys()
    assert set(DEFAULT_ROWS) <= RECIPES.keys()
