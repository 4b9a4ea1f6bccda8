"""Train, evaluate and predict by the command line: all give the same error."""

import json
from pathlib import Path

import pytest

from resnetkit.cli import main

FAST = ("--precision", "float32", "--threads", "1", "--log-every", "5")


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    """Return the parsed output of a verb with --json."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_pictures_of_cifar10(split_folder, tmp_path, capsys):
    run = tmp_path / "run"
    trained = document(
        capsys,
        *("train", str(split_folder), "--model", "resnet20,depths=1-1-1", "--size", "32", "--resize", "32"),
        *("--epochs", "25", "--batch-size", "32", "--crop", "pad", "--lr", "0.1", "--label-smoothing", "0"),
        *("--evaluate-every", "5", "--out", str(run), *FAST),
    )
    assert trained["run"] == str(run)
    test = document(capsys, "evaluate", str(run), str(split_folder))
    assert test["images"] == 120
    assert test["top1_error_percent"] < 78, "300 pictures teach a little: guessing is wrong on 90 %"
    val = document(capsys, "evaluate", str(run), str(split_folder), "--split", "val", "--batch-size", "7")
    assert val["top1_error_percent"] == trained["best"]["error_percent"]
    assert val["images"] == trained["best"]["images"] == 60

    predicted = document(capsys, "predict", str(run), str(split_folder / "test"), "--top", "1")
    wrong = sum(Path(p["path"]).parent.name != p["predictions"][0]["label"] for p in predicted)
    assert 100 * wrong / len(predicted) == pytest.approx(test["top1_error_percent"], abs=1e-3)


@pytest.mark.slow
def test_photographs_of_hand_signs(shared, tmp_path, capsys):
    """A realistic folder: 2,062 photographs of about 100 x 100, three of them 3024 x 3024, no split."""
    data, run = str(shared / "data" / "sign-digits"), tmp_path / "run"
    trained = document(
        capsys,
        *("train", data, "--model", "resnet20,depths=1-1-1", "--size", "32", "--epochs", "8", "--batch-size", "64"),
        *("--no-flip", "--min-area", "0.6", "--lr", "0.2", "--out", str(run), *FAST),
    )
    val = document(capsys, "evaluate", str(run), data, "--split", "val")
    assert val["images"] == trained["best"]["images"]
    assert 400 <= val["images"] <= 425, "a fifth of every class"
    assert val["top1_error_percent"] == trained["best"]["error_percent"]
    assert val["top1_error_percent"] < 25
