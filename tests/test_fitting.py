"""What suits a run of a given length: the values, who may change them, and the error to expect."""

import time
from dataclasses import replace

import pytest
import yaml

from resnetkit import train
from resnetkit.commands.train import _recipe
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import UsageError
from resnetkit.train import timing
from resnetkit.train.classification import prepare
from resnetkit.train.fitting import (
    ERRORS,
    SHORT_RUNS,
    describe,
    expected_error,
    fit,
    mean_cost,
    suitable,
    work_of,
)
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import BY_LENGTH, RECIPES, Recipe, changed, read_recipe, write_recipe
from resnetkit.train.run_folder import RunFolder

ROW = RECIPES["cifar10"]
SHORT = SHORT_RUNS[0].below / 2


def test_a_long_run_has_exactly_the_values_of_the_recipe():
    for work in (SHORT_RUNS[-1].below, 6400.0, work_of(ROW, 45_000), 1e9):
        assert suitable(work) == {}
        assert fit(ROW, work) == replace(ROW, by_length=())
    assert SHORT_RUNS[-1].below <= 6400


def test_the_table_has_an_order_and_names_the_fields_that_the_recipe_leaves_open():
    limits = [row.below for row in SHORT_RUNS]
    assert limits == sorted(set(limits))
    assert {name for row in SHORT_RUNS for name in row.values} == set(BY_LENGTH) == set(ROW.by_length)
    courses = {name: [suitable(work).get(name, getattr(ROW, name)) for work in (*limits, 1e9)] for name in BY_LENGTH}
    first = [suitable(SHORT_RUNS[0].below - 1).get(name, getattr(ROW, name)) for name in BY_LENGTH]
    for start, (name, course) in zip(first, courses.items(), strict=True):
        course = [start, *course]
        assert course in (sorted(course), sorted(course, reverse=True)), f"{name} goes up and down"


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"cifar10"}))
def test_other_recipes_stay(name):
    assert fit(RECIPES[name], SHORT) == RECIPES[name]


def test_what_somebody_gave_stays():
    short = fit(ROW, SHORT)
    assert short.by_length, "else this test says nothing"
    for name in short.by_length:
        as_flag = changed(ROW, {name: getattr(ROW, name)}, source="flags")
        in_python = replace(ROW, **{name: getattr(ROW, name) * 0.5 if name != "batch_size" else 100})
        for given in (as_flag, ROW.replace(**{name: getattr(ROW, name)}), in_python):
            fitted = fit(given, SHORT)
            assert getattr(fitted, name) == getattr(given, name)
            others = set(short.by_length) - {name}
            assert all(getattr(fitted, other) == getattr(short, other) for other in others)
    assert fit(ROW.replace(by_length=()), SHORT) == ROW.replace(by_length=())


def test_a_value_that_is_edited_in_a_file_stays(tmp_path):
    path = tmp_path / "own.yaml"
    write_recipe(path, ROW, {})
    name = fit(ROW, SHORT).by_length[0]
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(values | {name: 100}))
    assert getattr(fit(read_recipe(path, Recipe())[0], SHORT), name) == 100


def test_a_fitted_recipe_is_fitted_once():
    fitted = fit(ROW, SHORT)
    assert fit(fitted, SHORT) == fit(fitted, 1e9) == fitted
    assert fitted.bound_to_length() == "`by_length`"


def test_iterations_are_of_the_given_batch_size():
    assert fit(ROW.replace(iterations=300), SHORT).batch_size == 128
    assert fit(ROW.replace(epochs=1), SHORT).batch_size < 128


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


def test_wrong_fields_are_refused():
    with pytest.raises(UsageError, match="`by_length` has 'seed'; it takes batch_size, "):
        ROW.replace(by_length=("seed",))


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
        ({"by_length": ()}, "cifar10", 800),
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


def test_a_line_says_what_was_fitted_and_what_to_expect():
    fitted = replace(ROW, batch_size=64, muon_lr=0.04)
    assert describe(ROW, fitted, steps=1000, error=20.4) == (
        "about 1,000 steps of 64 pictures, `muon_lr` 0.04, as suits so short a run; "
        "expect a validation error of about 20 %"
    )
    assert (
        describe(ROW, ROW, steps=1, error=8.3) == "about 1 step of 128 pictures; expect a validation error of about 8 %"
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
    ("given", "batch_size"), [({}, fit(ROW, SHORT).batch_size), ({"batch_size": 128}, 128), ({"by_length": []}, 128)]
)
def test_a_flag_wins_over_the_length(given, batch_size):
    recipe, _ = _recipe({"data": "cifar10", "epochs": 1.0, **given})
    assert fit(recipe, SHORT).batch_size == batch_size
