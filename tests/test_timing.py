"""Measurements before a run with a time limit, and the batch size that follows from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.data.samples import Dataset, Samples
from resnetkit.train import run as runs
from resnetkit.train import timing
from resnetkit.train.classification import prepare
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import RECIPES, Recipe, changed
from resnetkit.train.run_folder import RunFolder
from resnetkit.train.timing import Untouched, batch_sizes, fit_batch, fit_to_clock, too_short

FOLDER = RECIPES["folder"]


def test_batches_are_halved_down_to_the_least():
    assert batch_sizes(32, 8) == [8, 16, 32]
    assert batch_sizes(100, 8) == [12, 25, 50, 100]
    assert batch_sizes(8, 8) == [8]
    assert batch_sizes(1, 2) == [1]


@pytest.mark.parametrize(
    ("left", "batch_size", "asked"),
    [
        (1000.0, 32, [2, 4, 8, 16, 32, 32]),  # 3.3 s a step: 303 of them, so there is time to measure it again
        (600.0, 32, [2, 4, 8, 16, 32]),  # 181 of them
        (300.0, 16, [2, 4, 8, 16, 32]),  # 1.7 s a step: 176; of 32 it would be 91
        (100.0, 8, [2, 4, 8, 16]),
        (15.0, 8, [2]),  # already two take too long, and eight are the least
    ],
)
def test_the_largest_batch_that_allows_a_hundred_steps(left, batch_size, asked):
    """A simulated machine: a step takes 0.1 s and 0.1 s for each picture."""
    sizes = []

    def step_seconds(size: int) -> float:
        sizes.append(size)
        return 0.1 + 0.1 * size

    fitted, seconds = fit_batch(FOLDER, step_seconds, left_seconds=left)
    assert sizes == asked, "no larger ones than must be"
    assert fitted.batch_size == batch_size
    assert fitted.lr == pytest.approx(FOLDER.lr * batch_size / 32)
    assert fitted.muon_lr == pytest.approx(FOLDER.muon_lr * batch_size / 32)
    assert seconds == pytest.approx(0.1 + 0.1 * batch_size, rel=0.4)


def test_the_first_step_of_a_size_may_take_longer_than_the_others():
    times = iter([0.1, 0.1, 0.1, 0.1, 5.0, 2.0])
    assert fit_batch(FOLDER, lambda size: next(times), left_seconds=1000.0)[1] == 2.0


def test_a_batch_that_was_stated_stays():
    stated = replace(FOLDER, least_batch_size=None)
    fitted, seconds = fit_batch(stated, lambda size: 0.1 * size, left_seconds=1.0)
    assert fitted == stated
    assert seconds == pytest.approx(3.2)
    assert fit_batch(Recipe(), lambda size: 9.0, left_seconds=1.0)[0] == Recipe(), "nobody allowed another one"


@pytest.mark.parametrize(
    "model", ["resnet20,depths=1-1-1,drop_path=0.5", "preact_resnet110,depths=1-1-1,drop_path=0.5"]
)
def test_measuring_leaves_no_trace(model, picture_folder, tmp_path):
    recipe = replace(RECIPES["folder"], model=model, size=32, ema_decay=0.9, optimizer="muon", precision="float32")
    recipe = changed(recipe, {"minutes": 1.0}, source="here")
    task = runs.prepare(recipe, runs.open_for(recipe, str(picture_folder)))
    before = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    random = torch.get_rng_state()
    with Monitor(RunFolder(tmp_path), quiet=True) as monitor:
        _, cost = fit_to_clock(task, recipe, RunFolder(tmp_path), monitor, started=0.0)
    after = task.net.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in task.net.parameters())
    assert cost.step_seconds > 0
    assert cost.picture_seconds > 0


def test_without_its_care_measuring_would_leave_traces(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Untouched, "__exit__", lambda *_: None)
    with pytest.raises(AssertionError):
        test_measuring_leaves_no_trace("resnet20,depths=1-1-1,drop_path=0.5", picture_folder, tmp_path)


FLAGS = ("--model", "resnet20,depths=1-1-1", "--size", "32", "--minutes", "0.003", "--precision", "float32")


@pytest.mark.parametrize(
    ("flags", "batch_size"), [((), 8), (("--least-batch-size", "16"), 16), (("--batch-size", "12"), 12)]
)
def test_the_batch_of_a_run_that_has_no_time(flags, batch_size, picture_folder, tmp_path, capsys):
    """A limit of a fifth of a second, which ends before the first step."""
    assert main(["train", str(picture_folder), *FLAGS, *flags, "--out", str(tmp_path / "run")]) == 0
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    lr = 0.05 if flags == ("--batch-size", "12") else 0.05 * batch_size / 32
    assert (recorded["batch_size"], recorded["lr"]) == (batch_size, pytest.approx(lr))
    header = modelfile.load(tmp_path / "run").header
    assert (header.recipe["batch_size"], header.recipe["lr"]) == (recorded["batch_size"], recorded["lr"])
    said = capsys.readouterr().err
    assert (f" on batches of {batch_size} at --lr" in said) == (batch_size != 12)
    assert "too short to learn much" in said
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recorded


def test_a_run_is_too_short_in_steps_and_epochs():
    assert "6 steps, 0.86 epochs" in (too_short(Recipe(), 6, 0.857) or "")
    assert too_short(Recipe(), 50, 0.1) is None
    assert too_short(Recipe(), 6, 3.0) is None


def test_an_evaluation_is_measured_in_batches_that_tell_what_it_takes(monkeypatch):
    """Here a batch takes 10 ms, and 1 ms more for each picture."""
    clock, sizes = [0.0], []
    recipe = Recipe(model="resnet20,depths=1-1-1", batch_size=128, epochs=1)
    samples = Samples(
        ("a", "b"), np.arange(256) % 2, np.random.default_rng(0).integers(0, 256, (256, 32, 32, 3), np.uint8)
    )
    task = prepare(recipe, Dataset("grey", samples.classes, samples, None, None))

    def note(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        sizes.append(len(inputs[0]))
        clock[0] += 0.01 + 0.001 * len(inputs[0])

    task.net.register_forward_hook(note)
    monkeypatch.setattr(timing, "monotonic", lambda: clock[0])
    took = timing.validation_seconds(task)
    assert sizes == [2, 2, 8, 32, 128]
    assert took == pytest.approx(0.138 / 128)
