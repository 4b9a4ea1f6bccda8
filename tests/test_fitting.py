"""The batch size that suits a run of a given length, who may choose another, and the error to expect."""

import time
from dataclasses import replace

import pytest
import yaml

from resnetkit import train
from resnetkit.commands.recipe_flags import read_recipe_flags
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build
from resnetkit.train import timing
from resnetkit.train.classification import prepare
from resnetkit.train.fitting import (
    ERRORS,
    LONG_BATCH,
    SHORT_BELOW,
    describe,
    expected_error,
    fit,
    mean_cost,
    suitable_batch,
    work_of,
)
from resnetkit.train.monitor import Monitor
from resnetkit.train.network import network_of
from resnetkit.train.recipe import RECIPES, Recipe, changed, read_recipe, write_recipe
from resnetkit.train.run_folder import RunFolder

ROW = RECIPES["cifar10"]
SHORT = 400.0


def test_a_long_run_has_exactly_the_values_of_the_recipe():
    for work in (SHORT_BELOW, 1600, 3200, 6400, work_of(ROW, 45_000), 1e9):
        assert suitable_batch(work) == LONG_BATCH == ROW.batch_size
        assert fit(ROW, work) == ROW
    assert SHORT_BELOW <= 1600 < work_of(ROW, 45_000)


def test_longer_runs_have_larger_batches():
    sizes = [suitable_batch(work) for work in range(0, 2000, 5)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {64, 128}


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"cifar10"}))
def test_other_recipes_stay(name):
    assert fit(RECIPES[name], SHORT) == RECIPES[name]


@pytest.mark.parametrize(
    ("given", "batch_size"),
    [
        ({}, suitable_batch(SHORT)),
        ({"batch_size": 128}, 128),
        ({"batch_size": 96}, 96),
        ({"batch_by_length": False}, 128),
        ({"lr": 0.1}, suitable_batch(SHORT)),
        ({"batch_size": 128, "batch_by_length": True}, suitable_batch(SHORT)),
    ],
)
def test_a_batch_size_that_somebody_gave_stays(given, batch_size, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(given))
    in_file = read_recipe(path, ROW)[0]
    by_flag, _ = read_recipe_flags({"data": "cifar10", **given})
    for recipe in (ROW.replace(**given), changed(ROW, given, source="flags"), in_file, by_flag):
        assert fit(recipe, SHORT) == replace(recipe, batch_size=batch_size)
    assert fit(replace(ROW, batch_size=96), SHORT).batch_size == 96


def test_a_batch_size_that_is_edited_in_a_whole_file_stays(tmp_path):
    path = tmp_path / "own.yaml"
    write_recipe(path, ROW, {})
    assert fit(read_recipe(path, Recipe())[0], SHORT) == fit(ROW, SHORT)
    path.write_text(path.read_text().replace("batch_size: 128", "batch_size: 100"))
    assert fit(read_recipe(path, Recipe())[0], SHORT).batch_size == 100


def test_a_run_folder_of_an_earlier_version_has_the_batch_size_that_it_had(tmp_path):
    path = tmp_path / "recipe.yaml"
    old = ROW.to_dict() | {"minutes": 3.0, "least_batch_size": 32}
    path.write_text(yaml.safe_dump({k: v for k, v in old.items() if k not in ("batch_by_length", "epochs")}))
    recipe, _ = read_recipe(path, Recipe())
    assert fit(recipe, SHORT) == recipe
    assert (recipe.batch_size, recipe.least_batch_size, recipe.batch_by_length) == (128, 32, False)


def test_a_fitted_recipe_is_fitted_once():
    fitted = fit(ROW, SHORT)
    assert fitted.batch_size < LONG_BATCH
    assert fit(fitted, SHORT) == fit(fitted, 1e9) == fitted
    steady = {"schedule": "constant", "early_scale": 1.0, "center_crop_from": 1.0}
    assert fit(ROW.replace(**steady), SHORT).bound_to_length() == "`batch_by_length`"
    assert fit(ROW.replace(**steady), 1e9).bound_to_length() is None


def test_iterations_are_of_the_batch_size_of_the_recipe():
    assert fit(ROW.replace(iterations=300), SHORT) == ROW.replace(iterations=300)


@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({"epochs": 30, "early_scale": 1.0}, 30 * 45_000 / 128),
        ({"epochs": 30}, 30 * 45_000 / 128 * (0.5 + 0.5 * 0.5625)),
        ({"epochs": 30, "crop": "none"}, 30 * 45_000 / 128),
        ({"epochs": 30, "center_crop_from": 0.25}, 30 * 45_000 / 128 * (0.75 + 0.25 * 0.5625)),
        ({"iterations": 400, "batch_size": 64, "early_scale": 1.0}, 200),
        ({"iterations": 400, "accumulate": 2, "early_scale": 1.0}, 800),
        ({"minutes": 3.0}, None),
    ],
)
def test_work_is_in_steps_of_128_whole_pictures(changes, work):
    assert work_of(ROW.replace(**changes), 45_000) == (work if work is None else pytest.approx(work))


def test_the_error_to_expect_falls_with_the_work():
    works = [work for work, _ in ERRORS]
    assert works == sorted(works)
    assert [expected_error(ROW, "cifar10", work) for work in works] == pytest.approx([error for _, error in ERRORS])
    (less, worse), (more, better) = ERRORS[:2]
    assert expected_error(ROW, "cifar10", (less * more) ** 0.5) == pytest.approx((worse + better) / 2)
    errors = [expected_error(ROW, "cifar10", 1.2**i * works[0]) for i in range(20)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("changes", "data", "work"),
    [
        ({"model": "resnet56"}, "cifar10", 800),
        ({"muon_lr": 0.02}, "cifar10", 800),
        ({"batch_by_length": False}, "cifar10", 800),
        ({"batch_size": 128}, "cifar10", 800),
        ({"iterations": 800}, "cifar10", 800),
        ({}, "cifar100", 800),
        ({}, "cifar10", 20),
        ({}, "cifar10", 64_000),
    ],
)
def test_no_error_is_told_that_was_not_measured(changes, data, work):
    assert expected_error(ROW, "cifar10", 800) is not None
    assert expected_error(ROW.replace(seed=3, minutes=4.0, threads=1), "cifar10", 800) is not None
    assert expected_error(ROW.replace(**changes), data, work) is None


def test_a_line_says_the_batch_size_and_what_to_expect():
    fitted = replace(ROW, batch_size=64)
    assert describe(ROW, fitted, steps=1000, error=20.4) == (
        "about 1,000 steps of 64 pictures, which suits so short a run; expect a validation error of about 20 %"
    )
    assert describe(ROW, fitted, steps=1, error=None) == "about 1 step of 64 pictures, which suits so short a run"
    assert describe(ROW, ROW, steps=9, error=8.3) == (
        "about 9 steps of 128 pictures; expect a validation error of about 8 %"
    )
    assert describe(ROW, ROW, steps=9, error=None) is None


@pytest.fixture
def dataset(cifar_subset: tuple[Samples, Samples]) -> Dataset:
    """300 training pictures of CIFAR-10 and 60 for validation."""
    train_part, test = cifar_subset
    return Dataset("subset", train_part.classes, train_part, test.subset(range(60)), test, {"rule": "for tests"})


TINY = ROW.replace(model="resnet20,depths=1-1-1", precision="float32", threads=1, save_every=1e9)


def test_a_short_run_has_the_values_from_its_first_step_on(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    train(TINY.replace(epochs=1), dataset, out=run)
    fitted = fit(TINY.replace(epochs=1), 2.0)
    assert read_recipe(run / "recipe.yaml", Recipe())[0] == fitted
    assert f"{len(dataset.train) // fitted.batch_size} steps of {fitted.batch_size} pictures" in capsys.readouterr().err


def test_a_short_run_on_the_clock_is_fitted_by_its_measured_steps(dataset, tmp_path, monkeypatch, capsys):
    """A simulated machine: a step takes 0.3 s for each 128 pictures. In a minute, it does the work of 190 steps."""
    monkeypatch.setattr(timing, "fit_batch", lambda recipe, *_, left_seconds: (recipe, 0.3))
    monkeypatch.setattr(timing, "validation_seconds", lambda task: 0.0)
    recipe = TINY.replace(minutes=1.0)
    task = prepare(recipe, dataset)
    with Monitor(RunFolder(tmp_path), quiet=False) as monitor:
        fitted, cost = timing.fit_to_clock(task, recipe, RunFolder(tmp_path), monitor, started=time.monotonic())
    assert fitted == fit(recipe, 190)
    assert fitted != fit(recipe, 1e9)
    assert cost.step_seconds == pytest.approx(0.3 * fitted.batch_size / 128)
    steps = int(capsys.readouterr().err.split("about ")[1].split(" steps")[0])
    assert steps == pytest.approx(60 / cost.step_seconds / mean_cost(fitted), rel=0.1)


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({}, "resnet20"),
        ({"init": "resnet56:cifar10"}, "resnet56"),
        ({"init": "resnet50:IMAGENET1K_V2"}, "resnet50"),
        ({"init": "resnet56:cifar10", "model": "resnet20"}, "resnet20"),  # refused when the weights are read
        ({"init": "nowhere.safetensors"}, "resnet20"),
        ({"init": "hf:timm/resnet34.a1_in1k"}, "resnet20"),  # not downloaded for its name
    ],
)
def test_the_network_is_that_of_the_first_weights(given, model):
    recipe, asked = read_recipe_flags({"data": "cifar10", **given})
    assert recipe.model == model
    assert asked.keys() == given.keys()


def test_a_model_without_a_recipe_is_found_among_the_rows(tmp_path):
    net = build("resnet18,width=8", classes=3)
    path = tmp_path / "own.safetensors"
    save(path, net, Header(spec=net.spec, classes=("a", "b", "c"), preprocess=Preprocess(32)))
    assert network_of(str(path)) is None  # no row is so narrow
    net = build("plain20", classes=3)
    save(path, net, Header(spec=net.spec, classes=("a", "b", "c"), preprocess=Preprocess(32)))
    assert network_of(str(path)) == "plain20"
    save(path, net, Header(spec=net.spec, classes=("a", "b", "c"), preprocess=Preprocess(32), recipe={"model": "x"}))
    assert network_of(str(path)) == "x"
