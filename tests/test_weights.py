"""Published weights: the table compared with torchvision's and timm's, and the whole way from a server to logits."""

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from matplotlib import cbook
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torchvision.models import ResNet18_Weights, ResNet50_Weights, get_model_builder, get_model_weights, list_models
from torchvision.transforms import functional

import resnetkit
from resnetkit import modelfile
from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ModelFileError, UsageError
from resnetkit.models import weights as registry
from resnetkit.models.published import IN_TORCHVISION, imagenet_classes, known_file, published
from resnetkit.models.resnet import build
from resnetkit.models.spec import SPECS, parse_spec
from resnetkit.models.timm import ARCHITECTURES, preprocess_of, timm_weights
from resnetkit.models.weights import find_weights
from servers import FileHandler, Files, environment, serving

THEIRS = [(name, entry) for name in IN_TORCHVISION for entry in get_model_weights(name)]
Shell = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """512 x 606 pixels."""
    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as picture:
        return picture.convert("RGB")


@pytest.fixture(scope="session")
def theirs() -> tuple[torch.nn.Module, bytes]:
    """A ResNet-18 of torchvision with statistics of one batch, and its .pth file."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    net(torch.randn(4, 3, 64, 64))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    return net.eval(), file.getvalue()


@pytest.fixture
def server(theirs: tuple[torch.nn.Module, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    """Sends that file at the address of ResNet-18's weights in torchvision's metadata."""
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(FileHandler) as running:
        name = f"/resnet18-{hashlib.sha256(theirs[1]).hexdigest()[:8]}.pth"
        running.files[name] = theirs[1]
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", running.address + name)
        yield running


# The registry


def test_covers_every_residual_network_of_torchvision() -> None:
    of_resnet = [
        name
        for name in list_models(module=torchvision.models)
        if get_model_builder(name).__module__ == "torchvision.models.resnet"
    ]
    assert sorted(IN_TORCHVISION) == sorted(of_resnet)
    assert len(THEIRS) == 17


@pytest.mark.parametrize(("network", "entry"), THEIRS, ids=lambda value: str(value))
def test_row_is_what_torchvision_says(network: str, entry: torchvision.models.WeightsEnum) -> None:
    row = published(network)[entry.name]
    assert row.spec == SPECS[network]
    assert row.spec.parameters == entry.meta["num_params"]
    assert row.classes == tuple(entry.meta["categories"])
    assert len(row.classes) == len(set(row.classes)) == 1000
    accuracies = entry.meta["_metrics"]["ImageNet-1K"]
    assert 100 - row.metrics["top1_error_percent"] == pytest.approx(accuracies["acc@1"], abs=1e-9)
    assert 100 - row.metrics["top5_error_percent"] == pytest.approx(accuracies["acc@5"], abs=1e-9)
    assert (row.data, row.recipe, row.url) == ("ImageNet-1K", entry.meta["recipe"], entry.url)
    assert len(row.sha256) == 8
    assert int(row.sha256, 16)
    # A file holds four bytes for each parameter and statistic. torchvision's own figure for three of the wide and
    # 101-layer ones is half of that, since they were stored in half precision.
    assert row.megabytes is not None
    assert row.megabytes * 1e6 == pytest.approx(4 * row.spec.parameters, rel=0.02) or row.megabytes * 1e6 == (
        pytest.approx(2 * row.spec.parameters, rel=0.02)
    )


@pytest.mark.parametrize(("network", "entry"), THEIRS, ids=lambda value: str(value))
def test_preprocess_equals_torchvisions(
    network: str, entry: torchvision.models.WeightsEnum, photograph: Image.Image
) -> None:
    ours, transforms = published(network)[entry.name].preprocess, entry.transforms()
    resized = functional.resize(photograph, transforms.resize_size, transforms.interpolation)
    cropped = functional.center_crop(resized, transforms.crop_size)
    assert np.array_equal(ours.pixels(photograph), np.asarray(cropped))
    assert np.abs(ours(photograph) - transforms(photograph).numpy()).max() < 1e-6


def test_known_figures() -> None:
    assert {name: row.metrics["top1_error_percent"] for name, row in published("resnet50").items()} == {
        "IMAGENET1K_V1": 23.87,
        "IMAGENET1K_V2": 19.142,
    }
    assert [row.preprocess.resize for row in published("resnet50").values()] == [256, 232]
    assert imagenet_classes()[::333] == ("tench", "hamster", "mortar", "toilet tissue")


@pytest.mark.parametrize("network", IN_TORCHVISION)
def test_default_is_torchvisions(network: str) -> None:
    assert find_weights(network, "DEFAULT").url == get_model_weights(network).DEFAULT.url


def test_a_member_of_the_enumeration_is_a_name() -> None:
    assert find_weights("resnet50", ResNet50_Weights.IMAGENET1K_V2) == published("resnet50")["IMAGENET1K_V2"]
    assert find_weights("resnet50", ResNet50_Weights.DEFAULT) == published("resnet50")["IMAGENET1K_V2"]


@pytest.mark.parametrize(
    ("network", "weights", "message"),
    [
        ("resnet50", "IMAGENET1K_V3", "did you mean IMAGENET1K_V2? It has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("resnet50", "imagenet1k_v1", "did you mean IMAGENET1K_V1?"),
        ("resnet18", "IMAGENET1K_V2", "did you mean IMAGENET1K_V1? It has IMAGENET1K_V1"),
        ("resnet50", "best", "resnet50 has no weights best. It has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("resnet50", ResNet18_Weights.IMAGENET1K_V1, "resnet50 has no weights ResNet18_Weights.IMAGENET1K_V1. It has"),
        ("resnet50", True, "resnet50 has no weights True. It has"),
        ("resnet20", "IMAGENET1K_V1", "resnet20 has no published weights IMAGENET1K_V1; "),
        ("resnt50", "IMAGENET1K_V1", 'unknown model "resnt50"; did you mean "resnet50"?'),
        ("resnet50", "timm/", '"timm/" is no repository of the Hub; write OWNER/NAME'),
    ],
)
def test_unknown_weights_are_named_with_what_there_is(network: str, weights: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        find_weights(network, weights)
    assert message in str(error.value)


def test_known_file() -> None:
    digest = published("wide_resnet50_2")["IMAGENET1K_V2"].sha256.ljust(64, "0")
    assert known_file(digest) == ("wide_resnet50_2", published("wide_resnet50_2")["IMAGENET1K_V2"])
    assert known_file("f" * 64) is None


# The constructors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": True, "weights": "DEFAULT"}, "`pretrained` and `weights` both name weights"),
        ({"pretrained": "IMAGENET1K_V2"}, "`pretrained` is 'IMAGENET1K_V2'; it takes true or false. Give `weights`="),
        ({"weights": "IMAGENET1K_V2", "num_classes": 10}, "IMAGENET1K_V2 has 1000 classes, not 10. Load it with all"),
        ({"pretrained": True, "num_classes": 10}, "fine-tune with resnetkit train DATA --init"),
        ({"weights": "DEFAULT", "width_per_group": 128}, "IMAGENET1K_V2 is for another network: width_per_group"),
    ],
)
def test_what_does_not_belong_together(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        resnetkit.resnet50(**arguments)
    assert message in str(error.value)


def test_offline_says_what_to_put_where(
    own_cache: Path, theirs: tuple[torch.nn.Module, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_cache / "weights" / "resnet18-f37072fd.pth"
    url = ResNet18_Weights.IMAGENET1K_V1.url
    with pytest.raises(DataError) as error:
        resnetkit.resnet18(pretrained=True)
    assert str(error.value) == f"RESNETKIT_OFFLINE is set: download {url} elsewhere and put it at {path}"
    path.write_bytes(theirs[1])
    with pytest.raises(DataError, match=r"is not the expected file .sha256 [0-9a-f]{64}, not f37072fd.; download"):
        resnetkit.resnet18(pretrained=True)
    assert path.is_file()
    digest = hashlib.sha256(theirs[1]).hexdigest()
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", f"https://nowhere.invalid/resnet18-{digest}.pth")
    path.rename(path.with_name(f"resnet18-{digest}.pth"))
    assert resnetkit.resnet18(pretrained=True).spec == SPECS["resnet18"]


def test_from_the_server_to_logits(server: Files, theirs: tuple[torch.nn.Module, bytes], capsys: Shell) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs[0](images)
        for net in (
            resnetkit.resnet18(pretrained=True, progress=False),
            resnetkit.resnet18(weights="IMAGENET1K_V1"),
            resnetkit.resnet18(weights=ResNet18_Weights.IMAGENET1K_V1, zero_init_residual=True),
            resnetkit.load("resnet18:DEFAULT").net,
            resnetkit.load("resnet18").net,
        ):
            assert torch.equal(net.eval()(images), expected)
        dilated = resnetkit.resnet18(pretrained=True, replace_stride_with_dilation=[False, True, True])
        assert dilated.features(images)[-1].shape == (2, 512, 8, 8)
    assert len(server.asked) == 1
    assert capsys.readouterr() == ("", "")


def test_says_what_it_fetches(server: Files, capsys: Shell) -> None:
    resnetkit.resnet18(pretrained=True)
    name = next(iter(server.files)).strip("/")
    assert capsys.readouterr() == ("", f"{name}: fetching {len(server.files['/' + name]) / 1e6:.1f} MB\n")


@pytest.mark.parametrize(("fault", "requests"), [("breaks off", 2), ("too long", 1), ("no ranges", 1)])
def test_a_server_that_errs_but_not_always(server: Files, fault: str, requests: int, own_cache: Path) -> None:
    server.fault = fault
    resnetkit.resnet18(pretrained=True)
    assert len(server.asked) == requests
    ((name, content),) = server.files.items()
    assert (own_cache / "weights" / name.strip("/")).read_bytes() == content


def test_wrong_bytes_do_not_get_in(server: Files, own_cache: Path) -> None:
    server.fault = "wrong bytes"
    with pytest.raises(DataError, match=r"sent other bytes than expected .* deleted"):
        resnetkit.resnet18(pretrained=True)
    assert not list((own_cache / "weights").glob("*.pth"))
    assert not list((own_cache / "weights").glob("*.part"))


def test_a_right_hash_of_wrong_contents(server: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(content: bytes) -> None:
        name = f"/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        server.files[name] = content
        monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", server.address + name)

    file = io.BytesIO()
    torch.save(build("resnet34").state_dict(), file)
    publish(file.getvalue())
    with pytest.raises(
        ModelFileError, match=r"IMAGENET1K_V1 does not fit: 80 of 182 tensors differ, first layer1.2.conv1.weight: not"
    ):
        resnetkit.resnet18(pretrained=True)
    publish(b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(ModelFileError, match="contains no weights that torch can read without running code"):
        resnetkit.resnet18(pretrained=True)


@pytest.mark.slow
def test_two_processes_fetch_once(server: Files, own_cache: Path) -> None:
    server.fault = "breaks off"
    code = (
        "import sys, resnetkit\nfrom torchvision.models import ResNet18_Weights as W\n"
        "W.IMAGENET1K_V1.value.url = sys.argv[1]\nprint(resnetkit.resnet18(pretrained=True).fc.weight.sum().item())"
    )
    command = [sys.executable, "-c", code, ResNet18_Weights.IMAGENET1K_V1.url]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len([request for request in server.asked if not request.endswith("-")]) == 1
    assert len(server.asked) == 2


# MODEL as NAME:WEIGHTS


def test_inspect_downloads_nothing(own_cache: Path) -> None:
    header = modelfile.inspect("resnet50:IMAGENET1K_V2")
    assert (header.spec, header.preprocess) == (SPECS["resnet50"], Preprocess(size=224, resize=232))
    assert header.classes[281] == "tabby"
    assert header.metrics == {"top1_error_percent": 19.142, "top5_error_percent": 4.566}
    assert header.data == {"name": "ImageNet-1K"}
    assert header.origin["url"] == ResNet50_Weights.IMAGENET1K_V2.url
    assert not list(own_cache.iterdir())
    modelfile.Header.from_json(header.to_json(), source="itself")


def test_predict_takes_it(server: Files, photograph: Image.Image, tmp_path: Path, capsys: Shell) -> None:
    path = tmp_path / "grace.png"
    photograph.save(path)
    assert main(["predict", "resnet18:IMAGENET1K_V1", str(path), "--top", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)[0]["predictions"]
    predicted = resnetkit.Predictor("resnet18:IMAGENET1K_V1")(photograph, top=2)
    assert [row["label"] for row in printed] == [best.label for best in predicted]
    assert predicted[0].label == imagenet_classes()[predicted[0].index]
    assert len(server.asked) == 1


def test_train_takes_it(server: Files, picture_folder: Path, tmp_path: Path, capsys: Shell) -> None:
    arguments = "--recipe folder --model resnet18 --init resnet18:IMAGENET1K_V1 --size 32 --iterations 1 --threads 1"
    run = tmp_path / "run"
    assert main(["train", str(picture_folder), "--out", str(run), "--batch-size", "4", *arguments.split()]) == 0
    net = modelfile.load(run).net
    first = torch.load(io.BytesIO(next(iter(server.files.values()))), weights_only=True)
    assert torch.allclose(net.conv1.weight, first["conv1.weight"], atol=0.1)
    assert net.fc.weight.shape == (3, 512)
    assert "resnet18:IMAGENET1K_V1" in (run / "recipe.yaml").read_text()
    capsys.readouterr()


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = build("resnet20", classes=2)
    header = modelfile.Header(net.spec, Preprocess(size=32), ("a", "b"))
    for name in ("resnet18:IMAGENET1K_V1", "resnet18"):
        modelfile.save(name, net, header)
        assert modelfile.load(name).header.classes == ("a", "b")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("resnt18:DEFAULT", ModelFileError, "does not exist; .* Did you mean resnet18:DEFAULT?"),
        ("resnet33:cifar10", ModelFileError, "Did you mean resnet32:cifar10?"),
        ("resnet18:IMAGENET1K_V9", UsageError, "resnet18 has no weights IMAGENET1K_V9; did you mean"),
        ("resnet18:", UsageError, "resnet18 has no weights"),
        ("resnet56", UsageError, "resnet56 has no published weights"),
        ("hf:timm", UsageError, "is no repository of the Hub"),
        ("hf:../..", DataError, "can't get model.safetensors of ../.. from the Hub"),
        (
            "hf:nobody/none",
            DataError,
            "no network is allowed, and it is not in the cache.*put it at .*/hub/nobody/none",
        ),
        ("none.safetensors", ModelFileError, "does not exist; give a model file, a run folder, or NAME:WEIGHTS$"),
    ],
)
def test_a_model_that_is_not_there(model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        modelfile.load(model)


# timm's, on the Hub


def put(model: torch.nn.Module, repository: str, cache: Path, **config: object) -> Path:
    """The files that timm uploads, in the folder for files that were downloaded by hand."""
    folder = cache / "hub" / repository
    folder.mkdir(parents=True)
    save_for_hf(model, folder, safe_serialization=True)
    said = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        where = said["pretrained_cfg"] if name in said["pretrained_cfg"] or name == "crop_mode" else said
        where[name] = value
    (folder / "config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.sampled(4)
def test_tensors_are_those_of_timm(architecture: str) -> None:
    with torch.device("meta"):
        ours = build(ARCHITECTURES[architecture]).state_dict()
        timms = timm.create_model(architecture).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in timms.items()
    }


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "resnet26d", "resnet50c", "resnet50_gn", "resnetblur18", "seresnet18", "resnext50_32x4d"],
)
def test_timm_gives_the_same_logits(architecture: str, own_cache: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model(architecture, num_classes=7, zero_init_last=False)
    images = torch.randn(2, 3, 96, 96)
    for tensor in net.parameters():  # not the first values: a gain of 0 would hide a whole block
        torch.nn.init.normal_(tensor, 1.0 if tensor.ndim == 1 else 0.0, 0.2 if tensor.ndim == 1 else 0.05)
    net(images)
    put(net.eval(), f"timm/{architecture}.none", own_cache)
    model = modelfile.load(f"hf:timm/{architecture}.none")
    with torch.no_grad():
        theirs = net(images)
        assert torch.allclose(model.net(images), theirs, atol=1e-5 * theirs.abs().max().item())
        assert theirs.std() > 0.01
    assert model.header.classes == tuple("0123456")


@pytest.mark.parametrize(
    "model", ["resnet50.a1_in1k", "resnet18d.ra2_in1k", "resnet50.tv_in1k", "resnet50_gn.a1h_in1k"]
)
def test_preprocess_equals_timms(model: str, photograph: Image.Image) -> None:
    cfg = timm.get_pretrained_cfg(model).to_dict()
    theirs = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    assert np.abs(preprocess_of(cfg, where="x")(photograph) - theirs(photograph).numpy()).max() < 1e-6


def test_timm_in_every_way(own_cache: Path) -> None:
    net = timm.create_model("resnet18.a1_in1k", pretrained=False)
    put(net, "timm/resnet18.a1_in1k", own_cache)
    row = find_weights("resnet18", "timm/resnet18.a1_in1k")
    assert (row.licence, row.source, row.classes) == ("apache-2.0", "timm", imagenet_classes())
    assert row.preprocess == Preprocess(size=224, resize=235, interpolation="bicubic")
    for ours in (
        resnetkit.resnet18(weights="timm/resnet18.a1_in1k"),
        resnetkit.resnet18(weights="hf:timm/resnet18.a1_in1k"),
        resnetkit.load("resnet18:timm/resnet18.a1_in1k").net,
        resnetkit.load("hf:timm/resnet18.a1_in1k").net,
    ):
        assert torch.equal(ours.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    with pytest.raises(UsageError, match=r"does not contain a resnet50; load it as hf:timm/resnet18.a1_in1k"):
        resnetkit.resnet50(weights="timm/resnet18.a1_in1k")
    with pytest.raises(UsageError, match=r"resnet18\.pth is a file: open a model file with resnetkit\.load"):
        resnetkit.resnet18(weights="mine/resnet18.pth")
    with pytest.raises(UsageError, match=r"timm/resnet18.a1_in1k has 1000 classes, not 3"):
        resnetkit.resnet18(weights="timm/resnet18.a1_in1k", num_classes=3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnet51q"}, "describes a resnet51q, which is not supported; supported are: resnet18"),
        ({"model_args": {"output_stride": 8}}, "describes a resnet18 with output_stride=8, which is not supported"),
        ({"global_pool": "max"}, "describes a resnet18 with global_pool='max'"),
        ({"crop_mode": "squash"}, "x/y: crop_mode is squash; only center is supported"),
        ({"input_size": [3, 224, 192]}, "x/y: inputs of 224x192 pixels"),
        ({"interpolation": "random"}, "x/y: `interpolation` is 'random'; choose one of"),
        ({"input_size": None}, "x/y is not a config.json of timm"),
        ({"pretrained_cfg": {}}, "x/y does not describe the preprocessing .input_size in .*config.json"),
    ],
)
def test_what_timm_says_and_no_row_can(config: dict[str, object], message: str, own_cache: Path) -> None:
    put(timm.create_model("resnet18"), "x/y", own_cache, **config)
    with pytest.raises((UsageError, ModelFileError), match=message):
        timm_weights("x/y")


@pytest.mark.parametrize("labels", [["a", "b", "c"], {"0": "a", "1": "b", "2": "c"}])
def test_timms_class_names(labels: object, own_cache: Path) -> None:
    put(timm.create_model("resnet18", num_classes=3, in_chans=1), "x/y", own_cache, label_names=labels)
    row = timm_weights("x/y")
    assert row.classes == ("a", "b", "c")
    assert row.spec == parse_spec("resnet18", classes=3, in_channels=1)
    assert row.preprocess.mode == "L"


def test_timm_file_that_does_not_fit(own_cache: Path) -> None:
    folder = put(timm.create_model("resnet18"), "x/y", own_cache)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architecture": "resnet34"}))
    with pytest.raises(ModelFileError, match=r"x/y does not fit: 80 of 182 tensors differ, first layer1.2.*: missing"):
        modelfile.load("hf:x/y")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"model.safetensors is not a whole .safetensors file"):
        modelfile.load("hf:x/y")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"pip install 'resnetkit\[hub\]'"):
        modelfile.load("hf:timm/resnet50.a1_in1k")


# resnetkit models NAME


def test_models_lists_them(capsys: Shell) -> None:
    assert main(["models", "resnet50"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "\nresnet50:IMAGENET1K_V1\n",
        "\nresnet50:IMAGENET1K_V2\n",
        "80.858 / 95.434 %, ImageNet-1K",
        "torchvision, 103 MB",
        "BSD-3-Clause (torchvision)",
        "232 px, crop 224, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
        ResNet50_Weights.IMAGENET1K_V2.url,
        "hf:timm/resnet50.TAG",
    ):
        assert part in printed
    assert main(["models", "resnet50", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    assert [(row["model"], row["top1_accuracy_percent"]) for row in rows] == [
        ("resnet50:IMAGENET1K_V1", 76.13),
        ("resnet50:IMAGENET1K_V2", 80.858),
    ]
    assert Preprocess.from_dict(rows[1]["preprocess"]) == Preprocess(size=224, resize=232)


@pytest.mark.parametrize("name", ["resnet20", "resnet50,classes=10"])
def test_models_without_weights(name: str, capsys: Shell) -> None:
    assert main(["models", name]) == 0
    assert "accuracy" not in capsys.readouterr().out
    assert main(["models", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == []


def test_only_asking_for_weights_imports_torchvision() -> None:
    code = (
        "import sys; from resnetkit.cli import main; import resnetkit.models.resnet\n"
        "main(['models', 'resnet20']); print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_row_is_data() -> None:
    row = published("resnet18")["IMAGENET1K_V1"]
    assert replace(row, url="elsewhere").url == "elsewhere"
    assert registry.check_fits(parse_spec("resnet18,dilated=false-false-true"), row) is None
