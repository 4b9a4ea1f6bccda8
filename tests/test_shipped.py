"""Models in the package: found by name, listed from their headers, made by benchmarks/package.py, correct."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import resnetkit as rk
from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.data.samples import Dataset, Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.modelfile import Header
from resnetkit.models import shipped
from resnetkit.models.resnet import ResNet, build
from resnetkit.models.spec import SPECS
from resnetkit.train.recipe import RECIPES

Shell = pytest.CaptureFixture[str]
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "package.py"


@pytest.fixture
def package(cifar_subset: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with the pictures in tests/data as CIFAR-10."""
    spec = importlib.util.spec_from_file_location("package", SCRIPT)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    train, test = cifar_subset
    dataset = Dataset("cifar10", train.classes, train, None, test, {})
    monkeypatch.setattr(script, "open_as_trained", lambda data, trained_on: dataset)
    return script


@pytest.fixture
def run(tmp_path: Path, cifar_subset: tuple[Samples, Samples]) -> Path:
    """The model file of a run with an untrained resnet20."""
    train, _ = cifar_subset
    torch.manual_seed(3)
    net = build("resnet20")
    net(torch.tensor(train.images[:100]).permute(0, 3, 1, 2) / 255)  # running statistics
    header = Header(
        net.spec,
        Preprocess(size=32),
        train.classes,
        recipe=replace(RECIPES["cifar10"], seed=7, epochs=40.0).to_dict(),
        metrics={"part": "val", "step": 12, "epoch": 3.0, "error_percent": 90.0},
        data={"name": "cifar10", "fingerprint": train.fingerprint(), "split": {"seed": 7, "train_split": "50k"}},
        version="0.0.1",
    )
    modelfile.save(tmp_path / "best.safetensors", net, header)
    return tmp_path


@pytest.fixture
def in_package(package: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """resnet20:cifar10, the only model of a package; returns its file."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "packaged")
    return package.package(run, shipped.FOLDER)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without models."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "none")


# By name


def test_found_where_it_is(in_package: Path) -> None:
    assert in_package.name == "resnet20-cifar10.safetensors"
    assert modelfile.model_file("resnet20:cifar10") == in_package
    assert (shipped.shipped("resnet20"), shipped.shipped("resnet2"), shipped.shipped("resnet110")) == (
        {"cifar10": in_package},
        {},
        {},
    )
    assert shipped.shipped_names() == ["resnet20:cifar10"]
    model = rk.load("resnet20:cifar10")
    assert model.header == modelfile.inspect("resnet20:cifar10") == modelfile.inspect(in_package)
    assert {tensor.dtype for tensor in model.net.parameters()} == {torch.float32}


def test_a_file_of_that_name_wins(in_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet20:cifar10").write_bytes((tmp_path / "best.safetensors").read_bytes())
    assert modelfile.model_file("resnet20:cifar10") == Path("resnet20:cifar10")
    assert modelfile.inspect("resnet20:cifar10").metrics["part"] == "val"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "resnet110:cifar10",
            "resnet110 has no published weights cifar10; this package contains resnet20:cifar10, torch",
        ),
        (
            "resnet20:IMAGENET1K_V1",
            "resnet20 has no published weights IMAGENET1K_V1; this package contains resnet20:cif",
        ),
        ("resnet20:cifar100", "resnet20 has no published weights cifar100; this package contains resnet20:cifar10, "),
        ("resnet20", "resnet20 has no published weights; this package contains resnet20:cifar10, torchvision has"),
    ],
)
def test_what_there_is_instead(model: str, message: str, in_package: Path, capsys: Shell) -> None:
    with pytest.raises(UsageError, match=message):
        modelfile.load(model)
    assert main(["evaluate", model, "cifar10"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("empty")
def test_a_package_without_models() -> None:
    with pytest.raises(UsageError, match=r"resnet20 has no published weights cifar10; torchvision has"):
        modelfile.load("resnet20:cifar10")


def test_from_python_and_from_the_command_line(
    in_package: Path, split_folder: Path, cifar_subset: tuple[Samples, Samples], capsys: Shell
) -> None:
    picture = split_folder / "test" / "bird" / "bird 00.png"
    (best,) = rk.Predictor("resnet20:cifar10")(picture, top=1)
    assert main(["predict", "resnet20:cifar10", str(picture), "--top", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["predictions"] == [best._asdict()]
    assert main(["evaluate", "resnet20:cifar10", str(split_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 120
    measured = evaluate("resnet20:cifar10", cifar_subset[1])
    recorded, found = modelfile.inspect(in_package).metrics, measured.to_dict()
    for key in ("images", "top1_error_percent", "top5_error_percent", "loss"):
        assert found[key] == recorded[key]


def test_training_starts_from_it(in_package: Path, picture_folder: Path, tmp_path: Path) -> None:
    flags = "--recipe folder --model resnet20 --size 32 --iterations 1 --threads 1 --batch-size 4 --lr 1e-9"
    out = tmp_path / "run"
    argv = ["train", str(picture_folder), "--init", "resnet20:cifar10", "--out", str(out), *flags.split()]
    assert main(argv) == 0
    assert "init: resnet20:cifar10" in (out / "recipe.yaml").read_text()
    trained, first = rk.load(out).net, rk.load("resnet20:cifar10").net
    assert torch.allclose(trained.layer2[0].conv1.weight, first.layer2[0].conv1.weight, atol=1e-6)
    assert trained.fc.weight.shape == (3, 64)


# Listed


def test_models_lists_them(in_package: Path, capsys: Shell) -> None:
    about = modelfile.inspect(in_package)
    error, loss = about.metrics["top1_error_percent"], about.metrics["loss"]
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "in this package   top-1 error  pictures   MB",
        f"resnet20:cifar10      {error:.2f} %       120  0.6",
    ]
    assert main(["models", "resnet20"]) == 0
    printed = capsys.readouterr().out.split("\n\n")[-1]
    assert printed.splitlines() == [
        "resnet20:cifar10",
        f"  top-1 error  {error:.2f} % of 120 test pictures, loss {loss:.4f}",
        f"  source       this package, 0.6 MB, written by version {rk.__version__}",
        f"  data         cifar10, 50k training pictures, {about.data['fingerprint']}",
        f"  recipe       epochs 40.0, batch_size 128, lr {about.recipe['lr']}, seed 7",
    ]
    assert main(["models", "resnet20", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    (row,) = one["in_package"]
    assert (row["model"], row["path"], row["version"]) == ("resnet20:cifar10", str(in_package), rk.__version__)
    assert (row["metrics"], row["data"], row["recipe"]["seed"]) == (about.metrics, about.data, 7)
    assert Preprocess.from_dict(row["preprocess"]) == about.preprocess
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row["in_package"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {name: [row] if name == "resnet20" else [] for name in SPECS}


def test_listing_reads_no_weights(in_package: Path, capsys: Shell) -> None:
    whole = in_package.read_bytes()
    in_package.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])
    assert main(["models"]) == 0
    assert "resnet20:cifar10" in capsys.readouterr().out


# Made


def test_half_the_space_and_the_same_errors(in_package: Path, run: Path) -> None:
    whole, half = load_file(run / "best.safetensors"), load_file(in_package)
    assert in_package.stat().st_size < 0.55 * (run / "best.safetensors").stat().st_size
    for name, tensor in whole.items():
        assert half[name].dtype == (torch.float16 if tensor.ndim > 1 else tensor.dtype), name
        assert torch.equal(half[name], tensor.to(half[name].dtype))
    loaded = rk.load("resnet20:cifar10").net.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in half.items())
    before, after = modelfile.inspect(run), modelfile.inspect(in_package)
    assert after == replace(before, metrics=after.metrics, version=rk.__version__)
    assert {key: after.metrics[key] for key in ("part", "step", "epoch", "images")} == {
        "part": "test",
        "step": 12,
        "epoch": 3.0,
        "images": 120,
    }


def test_what_float16_changes_is_refused(
    package: ModuleType, run: Path, tmp_path: Path, cifar_subset: tuple[Samples, Samples]
) -> None:
    model, (_, test) = modelfile.load(run), cifar_subset
    with torch.no_grad():  # weights that differ by less than float16 can tell, each towards its class's mean features
        images = torch.from_numpy(model.header.preprocess.normalize(test.images))
        features = model.net.run(images, last="layer3").mean(dim=(2, 3))
        means = torch.stack([features[torch.from_numpy(test.labels == label)].mean(dim=0) for label in range(10)])
        directions = 1e-5 * (means - features.mean(dim=0)) / features.std(dim=0)
        model.net.fc.weight.copy_(0.1 + directions)
        model.net.fc.bias.copy_(-directions @ features.mean(dim=0))
    modelfile.save(run / "best.safetensors", model.net, model.header)
    with pytest.raises(
        ModelFileError, match=r"in float16, \d+ of 120 test pictures are wrong, and \d+ as trained; give"
    ):
        package.package(run, tmp_path / "packaged")
    assert not (tmp_path / "packaged").exists()
    path = package.package(run, tmp_path / "packaged", storage="float32")
    assert all(
        torch.equal(a, b)
        for a, b in zip(load_file(path).values(), load_file(run / "best.safetensors").values(), strict=True)
    )


def test_a_changed_network_has_no_name(package: ModuleType, run: Path, tmp_path: Path) -> None:
    model = modelfile.load(run)
    header = replace(model.header, recipe={**model.header.recipe, "model": "resnet20,drop_path=0.1"})
    modelfile.save(run / "best.safetensors", model.net, header)
    with pytest.raises(UsageError, match=r"contains resnet20,drop_path=0.1, which is not a network"):
        package.package(run, tmp_path / "packaged")


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda net: net.conv1.weight[0, 0, 0].fill_(1e5), torch.float32),  # beyond float16's 65,504
        (lambda net: net.conv1.weight[0, 0, 0].fill_(6e4), torch.float16),
    ],
)
def test_what_float16_can_not_hold_is_kept(
    change: Callable[[ResNet], torch.Tensor], dtype: torch.dtype, run: Path, tmp_path: Path
) -> None:
    model = modelfile.load(run)
    with torch.no_grad():
        change(model.net)
        model.net.bn1.running_var.fill_(1e9)
        model.net.bn1.num_batches_tracked.fill_(2**40)
    path = tmp_path / "half.safetensors"
    modelfile.save(path, model.net, model.header, storage="float16")
    assert load_file(path)["conv1.weight"].dtype == dtype
    net = modelfile.load(path).net
    assert torch.equal(net.conv1.weight, model.net.conv1.weight.to(dtype).float())
    assert torch.equal(net.bn1.running_var, model.net.bn1.running_var)
    assert int(net.bn1.num_batches_tracked) == 2**40


def test_the_script_says_what_it_wrote(
    package: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shell
) -> None:
    monkeypatch.setattr(sys, "argv", ["package.py", str(run), "--to", str(tmp_path / "out")])
    assert package.main() == 0
    path = tmp_path / "out" / "resnet20-cifar10.safetensors"
    error = modelfile.inspect(path).metrics["top1_error_percent"]
    assert capsys.readouterr().out == f"{path}: 0.56 MB, {error:.2f} % of test pictures wrong\n"
    monkeypatch.setattr(sys, "argv", ["package.py", str(tmp_path / "nowhere")])
    assert package.main() == 1
    assert "does not exist" in capsys.readouterr().err


# As shipped

SHIPPED = shipped.shipped_names()


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped.FOLDER.glob("*")) < 8e6


@pytest.mark.parametrize("model", SHIPPED)
def test_header(model: str) -> None:
    network, _, data = model.partition(":")
    header = modelfile.inspect(model)
    assert header.spec == replace(SPECS[network], classes=len(header.classes))
    assert (header.data["name"], header.data["split"]["train_split"]) == (data, "50k")
    assert len(header.data["fingerprint"]) == 16
    assert (header.metrics["part"], header.metrics["images"]) == ("test", 10_000)
    assert header.recipe["model"] == network
    assert isinstance(header.recipe["seed"], int)
    assert header.version


@pytest.mark.parametrize("model", SHIPPED[-1:])
def test_predicts_anywhere_without_a_network(
    model: str, tmp_path: Path, cifar_subset: tuple[Samples, Samples], own_cache: Path
) -> None:
    images = cifar_subset[1].images
    assert images is not None
    paths = [f"{i}.png" for i in range(0, 120, 12)]
    for i, path in zip(range(0, 120, 12), paths, strict=True):
        Image.fromarray(images[i]).save(tmp_path / path)
    command = [sys.executable, "-m", "resnetkit", "predict", model, *paths, "--top", "1", "--json"]
    source = str(Path(rk.__file__).parents[1])
    environ = os.environ | {"PYTHONPATH": source, "RESNETKIT_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    labels = [row["predictions"][0]["label"] for row in json.loads(done.stdout)]
    truth = [cifar_subset[1].classes[cifar_subset[1].labels[i]] for i in range(0, 120, 12)]
    assert sum(label == true for label, true in zip(labels, truth, strict=True)) >= 7
    assert {path.name for path in own_cache.iterdir()} <= {"kernels", "graphs"}  # nothing was fetched or copied


@pytest.mark.slow
@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.sampled(4)
def test_evaluate_gives_the_number_in_the_header(model: str, monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    monkeypatch.delenv("RESNETKIT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnetkit" / "cifar10"
    if not cache.is_dir():
        pytest.skip(f"needs CIFAR-10 in {cache}; resnetkit data get cifar10 brings it")
    assert main(["evaluate", model, "cifar10", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    stated = modelfile.inspect(model).metrics
    for name in ("images", "top1_error_percent", "top5_error_percent"):
        assert measured[name] == stated[name]
    assert measured["loss"] == pytest.approx(stated["loss"], abs=1.5e-4)  # processors round differently
