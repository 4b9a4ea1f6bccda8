"""Classes of a trained model: renamed, merged, removed, added; only new pictures are computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.finetune.classes import change_classes
from resnetkit.finetune.ladder import start
from resnetkit.modelfile import Header, load, save
from resnetkit.models.resnet import build
from resnetkit.train.recipe import RECIPES

SPEC = "resnet18,width=8"
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "white": (220, 220, 220)}


def some_pictures(folder: Path, colour: str, count: int = 10) -> None:
    rng = np.random.default_rng(sum(map(ord, colour)))
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.clip(rng.normal(COLOURS[colour], 25, (36, 40, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on red, green and blue pictures, of the rung head."""
    torch.manual_seed(0)
    net = build(SPEC, classes=10)
    save(tmp_path / "first.safetensors", net, Header(net.spec, Preprocess(32, 36), tuple("0123456789")))
    for colour in ("red", "green", "blue"):
        some_pictures(tmp_path / "data" / colour, colour)
    recipe = RECIPES["folder"].replace(model=SPEC, init=str(tmp_path / "first.safetensors"), rung="head", workers=0)
    return start(recipe, tmp_path / "data", out=tmp_path / "run", quiet=True).run


def test_a_new_name_needs_no_pictures(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "gone")
    result = change_classes(run, rename={"red": "rot", "blue": "red"}, out=tmp_path / "new")
    assert result.classes == ("red", "green", "rot")  # the order of the logits stays
    assert (result.computed, result.top1_error_percent) == (0, None)
    before, after = load(run).net.state_dict(), load(result.model).net.state_dict()
    assert all((before[name] == after[name]).all() for name in before)
    assert load(run).header.classes == ("blue", "green", "red")


def test_a_class_is_added_and_only_its_pictures_are_computed(run: Path, tmp_path: Path) -> None:
    some_pictures(tmp_path / "white", "white")
    result = change_classes(run, add=[tmp_path / "white"])
    assert result.run == tmp_path / "run-classes"
    assert result.classes == ("blue", "green", "red", "white")
    assert result.computed == 2 + 2 * 8  # two for validation, eight for training, as they are and mirrored
    model = load(result.model)
    assert model.header.metrics["error_percent"] == result.top1_error_percent == 0
    assert load(run).header.classes == ("blue", "green", "red")
    assert (load(run).net.layer4[0].conv1.weight == model.net.layer4[0].conv1.weight).all()
    some_pictures(tmp_path / "more" / "white", "white", 3)
    assert evaluate(result.model, tmp_path / "more", split="all").top1_error_percent == 0
    # And once more, from the changed run.
    again = change_classes(result.run, remove=["red"], out=tmp_path / "third")
    assert again.classes == ("blue", "green", "white")
    assert again.computed == 0


def test_classes_are_merged(run: Path, tmp_path: Path) -> None:
    result = change_classes(run, merge=["red", "green"], into="warm", in_place=True)
    assert result.run == run
    assert load(run).header.classes == ("blue", "warm")
    assert result.computed == 0
    (tmp_path / "data" / "green").rename(tmp_path / "data" / "warm")
    (tmp_path / "data" / "red").rename(tmp_path / "elsewhere")
    assert evaluate(run, tmp_path / "data", split="all").top1_error_percent == 0


def test_a_folder_of_class_folders_and_a_class_that_gets_more(run: Path, tmp_path: Path) -> None:
    some_pictures(tmp_path / "more" / "white", "white")
    some_pictures(tmp_path / "more" / "red", "red", 12)  # ten of them are those of before
    result = change_classes(run, add=[tmp_path / "more"])
    assert result.classes == ("blue", "green", "red", "white")


def test_wrong_use_is_told(run: Path, tmp_path: Path) -> None:
    some_pictures(tmp_path / "white", "white", 2)
    (tmp_path / "empty").mkdir()
    for given, message in (
        ({}, "nothing to change"),
        ({"rename": {"rde": "x"}}, "no class is called 'rde'; did you mean 'red'"),
        ({"rename": {"red": "blue"}}, "two classes 'blue'"),
        ({"merge": ["red"]}, "two classes or more"),
        ({"merge": ["red", "blue"], "into": "green"}, "`into`: there is a class 'green' already"),
        ({"into": "x", "rename": {"red": "r"}}, "`into` is the name"),
        ({"remove": ["red", "blue"]}, "1 class would be left"),
        ({"remove": ["pink"]}, "`remove`: no class is called 'pink'"),
        ({"remove": ["red"], "in_place": True, "out": "x"}, "leave `out` out"),
    ):
        with pytest.raises(UsageError, match=message):
            change_classes(run, **given)
    for folder, message in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "no pictures")):
        with pytest.raises(DataError, match=message):
            change_classes(run, add=[folder])
    with pytest.raises(TrainingError, match="not a finished run"):
        change_classes(tmp_path / "white", remove=["red"])
    assert not (tmp_path / "run-classes").exists()  # what fails leaves nothing


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classes", str(run), "--rename", "red=rot", "--merge", "green", "blue", "--into", "cool"]) == 0
    out = capsys.readouterr().out
    assert "classes           2: cool, rot" in out
    assert "validation error  0.00 %" in out
    assert main(["classes", str(run), "--rename", "red"]) == 2
    assert "--rename takes OLD=NEW" in capsys.readouterr().err
    assert main(["classes", str(run), "--remove", "blue"]) == 1
    assert "run-classes exists already" in capsys.readouterr().err
