"""The search for a learning rate: what a curve suggests, and that it changes nothing."""

import json
import math

import pytest
import torch

from resnetkit.cli import main
from resnetkit.data.samples import Dataset
from resnetkit.errors import TrainingError, UsageError
from resnetkit.train import finder
from resnetkit.train.finder import find_learning_rate, judged
from resnetkit.train.recipe import Recipe

TINY = Recipe(model="resnet20,depths=1-1-1", batch_size=16, precision="float32", threads=1, compile="off")


def test_a_curve_suggests_a_tenth_of_where_it_is_lowest():
    rates = [10 ** (power / 10) for power in range(-50, 11)]
    curve = [(rate, 2 - math.exp(-((math.log10(rate) + 1) ** 2)) + 20 * max(0.0, rate - 0.5)) for rate in rates]
    found = judged(curve, batch_size=16)
    assert found.lowest_at == pytest.approx(0.1)
    assert found.suggestion == 0.01
    assert found.steepest_at == pytest.approx(10 ** (-1 - 1 / math.sqrt(2)), rel=0.3)
    with pytest.raises(TrainingError, match="the loss falls at no learning rate"):
        judged([(rate, 1 + rate) for rate in rates], batch_size=16)


def test_a_search_ends_where_training_diverges_and_leaves_random_numbers_alone(cifar_subset, monkeypatch):
    train, test = cifar_subset
    monkeypatch.setattr(finder, "STEPS", 24)
    monkeypatch.setattr(finder, "HIGHEST", 1e6)
    before, seen = torch.get_rng_state(), []
    found = find_learning_rate(TINY, Dataset("subset", test.classes, train, test, None), advance=seen.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert 3 <= len(found.curve) == len(seen) <= 24
    rates = [rate for rate, _ in found.curve]
    assert rates[1] / rates[0] == pytest.approx((1e6 / 1e-5) ** (1 / 23))
    assert found.suggestion == pytest.approx(found.lowest_at / 10, rel=0.06)
    assert 1e-5 < found.lowest_at < 1e3
    assert found.batch_size == 16


def test_the_command(picture_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finder, "STEPS", 12)
    flags = ["--model", TINY.model, "--size", "32", "--batch-size", "16", "--compile", "off", "--find-lr"]
    assert main(["train", str(picture_folder), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["learning", "rate", "loss"]
    assert lines[-1].startswith("suggestion, for 16 pictures in a step: --lr ")
    assert main(["train", str(picture_folder), *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["curve"][0]["lr"] == pytest.approx(1e-5)
    assert not list(tmp_path.glob("runs")), "nothing is written"
    assert main(["train", str(picture_folder), *flags, "--out", "x"]) == 2
    assert "--find-lr writes nothing; leave out --out" in capsys.readouterr().err


def test_two_rates_are_not_searched(cifar_subset):
    train, test = cifar_subset
    with pytest.raises(UsageError, match="`optimizer` muon has two learning rates"):
        find_learning_rate(TINY.replace(optimizer="muon"), Dataset("subset", test.classes, train, test, None))
