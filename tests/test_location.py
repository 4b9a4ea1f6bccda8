"""The meaning of MODEL: files before names, without torch, network access or reading a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError
from resnetkit.location import HubRepository, LocalFile, PublishedWeights, locate
from resnetkit.modelfile import Header, inspect, load, model_file, save
from resnetkit.models.resnet import build
from resnetkit.models.shipped import FOLDER


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "located", "name"),
    [
        ("resnet18", PublishedWeights("resnet18", "DEFAULT"), "resnet18:DEFAULT"),
        ("resnet18:", PublishedWeights("resnet18", ""), "resnet18:"),
        ("resnet50:IMAGENET1K_V2", PublishedWeights("resnet50", "IMAGENET1K_V2"), "resnet50:IMAGENET1K_V2"),
        ("resnet50:hf:timm/x", PublishedWeights("resnet50", "hf:timm/x"), "resnet50:hf:timm/x"),
        ("hf:me/birds", HubRepository("me/birds"), "hf:me/birds"),
        (
            "resnet20:cifar10",
            LocalFile("resnet20:cifar10", FOLDER / "resnet20-cifar10.safetensors", shipped=True),
            "resnet20:cifar10",
        ),
    ],
)
def test_names(model: str, located: object, name: str, here: Path) -> None:
    assert locate(model) == located
    assert locate(model).name == name
    assert locate(name) == located


@pytest.mark.parametrize(
    ("weights", "repository"),
    [("timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"), ("hf:timm/x", "timm/x"), ("IMAGENET1K_V1", "")],
)
def test_weights_of_timm_are_a_repository(weights: str, repository: str) -> None:
    assert PublishedWeights("resnet50", weights).repository == repository


@pytest.mark.parametrize("name", ["resnet18:IMAGENET1K_V1", "resnet18", "resnet20:cifar10", "hf:me/birds"])
def test_what_exists_is_that_whatever_its_name(name: str, here: Path) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    assert locate(name) == LocalFile(name, Path(name))


def test_a_run_folder_is_its_best_model(tmp_path: Path) -> None:
    for name in ("model", "last", "best"):
        (tmp_path / f"{name}.safetensors").touch()
        assert locate(tmp_path) == LocalFile(str(tmp_path), tmp_path / f"{name}.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"contains no model file; expected .*best.safetensors$"):
        locate(tmp_path / "empty")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    net = build("resnet20", depths=(1, 1, 1), classes=2)
    (tmp_path / "run").mkdir()
    save("~/run/best.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    assert model_file("~/run") == tmp_path / "run" / "best.safetensors"
    assert load("~/run/best.safetensors").header == inspect("~/run")
    with pytest.raises(ModelFileError, match=r"~nobody-of-that-name/m does not exist"):
        locate("~nobody-of-that-name/m")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnet21:cifar10", r"NAME:WEIGHTS\. Did you mean resnet20:cifar10\?$"),
        ("resnt18:DEFAULT", r"Did you mean resnet18:DEFAULT\?$"),
        ("resnet21", "does not exist; give a model file, a run folder, or NAME:WEIGHTS$"),
        (os.fsdecode(b"caf\xe9.safetensors"), "the name is not UTF-8; rename it"),
    ],
)
def test_what_is_nowhere(model: str, words: str, here: Path) -> None:
    with pytest.raises(ModelFileError, match=words):
        locate(model)


def test_locating_is_light() -> None:
    """Also for published weights and the Hub: neither torchvision nor the Hub's client is imported."""
    code = (
        "import sys; from resnetkit.location import locate\n"
        "for model in ('resnet18', 'hf:me/birds', 'resnet20:cifar10'): locate(model)\n"
        "print({'torch', 'torchvision', 'huggingface_hub', 'safetensors'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_was_located_is_read_as_it_is(tmp_path: Path) -> None:
    located = locate("resnet20:cifar10")
    assert inspect(located) == load(located).header == inspect("resnet20:cifar10")
    assert model_file(located) == FOLDER / "resnet20-cifar10.safetensors"


def test_published_weights_are_in_no_model_file() -> None:
    with pytest.raises(ModelFileError, match=r"IMAGENET1K_V1 names weights of torchvision, .* resnetkit\.save\(path"):
        model_file("resnet18:IMAGENET1K_V1")
