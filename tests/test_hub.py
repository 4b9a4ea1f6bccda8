"""Publishing: the card has the facts of the header, and a model is unchanged after upload and download."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import resnetkit
from resnetkit import hub
from resnetkit.cli import main
from resnetkit.data.published.huggingface import fetch_from_hub
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, ModelFileError, UsageError
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec
from scenes import scene
from servers import Files, HubHandler, environment, serving

HEADER = Header(
    parse_spec("resnet20", classes=3),
    Preprocess(size=32, mean=(0.5,) * (3 * 32 * 32)),
    ("cat", "Möwe", "a `quoted`\nname"),
    recipe={"model": "resnet20", "lr": 0.2, "milestones": [0.5, 0.75]},
    metrics={"step": 1150, "error_percent": 20.34},
    data={"name": "sea birds", "fingerprint": "ed03ea5c407c4712", "split": {"seed": 0}},
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run folder with a best model."""
    torch.manual_seed(0)
    run = tmp_path / "run"
    run.mkdir()
    save(run / "best.safetensors", build(HEADER.spec), HEADER)
    return run


@pytest.fixture
def server() -> Iterator[Files]:
    with serving(HubHandler) as running:
        yield running


def python(code: str, server: Files, home: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that uses `server` as the Hub."""
    around = {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", "import resnetkit as rk\n" + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**around | changes), check=False)


def test_folder_and_back(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "flowers"
    assert resnetkit.to_hub(model, folder) == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    there, back = resnetkit.load(model), resnetkit.from_hub(folder)
    assert back.header == there.header == HEADER
    assert all(map(torch.equal, there.net.state_dict().values(), back.net.state_dict().values()))
    assert (folder / "model.safetensors").read_bytes() == (model / "best.safetensors").read_bytes()
    assert resnetkit.load(folder).header == HEADER, "the folder is a MODEL as it is"


def test_the_card_says_what_the_header_says() -> None:
    card = hub.card(HEADER, address="hf:me/birds")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "resnetkit",
        "pipeline_tag": "image-classification",
        "tags": ["resnetkit", "resnet", "image-classification"],
    }
    for part in (
        "# resnet20 on sea birds\n",
        "20 layers, 269,267 parameters",  # 269,722 with ten classes
        "for 3 classes",
        "resnetkit predict hf:me/birds picture.jpg",
        'rk.Predictor("hf:me/birds")("picture.jpg", top=3)',
        "shorter side to 32 pixels (bilinear), the centre of 32 x 32",
        "mean of every pixel (in the file) and std 0.229, 0.224, 0.225",
        "`cat`, `Möwe`, `a 'quoted' name`",
    ):
        assert part in body
    blocks = dict(re.findall(r"## (\w+)\n\n```yaml\n(.*?)```", body, re.DOTALL))
    assert {title: yaml.safe_load(text) for title, text in blocks.items()} == {
        "Measured": HEADER.metrics,
        "Data": HEADER.data,
        "Training": HEADER.recipe,
    }


def test_the_card_claims_nothing_that_nobody_said() -> None:
    bare = hub.card(replace(HEADER, recipe={}, metrics={}, data={}), address="x")
    assert bare.count("\n## ") == 2
    assert "licen" not in bare.lower()
    assert "Measured" not in bare
    assert "None" not in bare
    licensed = hub.card(HEADER, address="x", licence="apache-2.0")
    assert yaml.safe_load(licensed.split("---\n")[1])["license"] == "apache-2.0"


def test_the_card_says_where_converted_weights_come_from() -> None:
    origin = {"source": "torchvision", "licence": "BSD-3-Clause", "sha256": "0f"}
    body = hub.card(replace(HEADER, recipe={}, origin=origin), address="x")
    assert "## Training" not in body
    (block,) = re.findall(r"## Origin\n\n```yaml\n(.*?)```", body, re.DOTALL)
    assert yaml.safe_load(block) == origin


def test_many_classes_are_counted() -> None:
    spec = parse_spec("resnet18,depths=1-1-1-1")
    card = hub.card(Header(spec, Preprocess(size=224), tuple(map(str, range(1000)))), address="x")
    assert "`99` and 900 more, in the file" in card
    assert "# residual network of 10 layers\n" in card


def test_the_cards_commands_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resnetkit.to_hub(model, "flowers")
    scene(40, 40).save("picture.jpg")
    card = Path("flowers", "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^resnetkit (predict .*)$", card, re.MULTILINE)
    assert main(command.split()) == 0
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, {})


def test_what_is_there_stays(model: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ModelFileError, match=r"README.md exist already; give another folder, or `replace_files`"):
        resnetkit.to_hub(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not (tmp_path / "model.safetensors").exists()
    resnetkit.to_hub(model, tmp_path, replace_files=True)
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: resnetkit")


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("hf:flowers", UsageError, '"flowers" is no repository of the Hub; write OWNER/NAME'),
        ("hf:me/a/b", UsageError, "is no repository of the Hub"),
        ("hf:me/flowers", DataError, "RESNETKIT_OFFLINE is set: nothing can be sent to hf:me/flowers; give a folder"),
        ("run/best.safetensors/flowers", ModelFileError, "could not be written: Not a directory"),
    ],
)
def test_where_nothing_can_be_written(
    where: str, error: type[Exception], message: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(error, match=message):
        resnetkit.to_hub(model, where)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model.safetensors does not exist; .* or hf:OWNER/NAME for the Hub"):
        resnetkit.from_hub(tmp_path)
    with pytest.raises(ModelFileError, match="nowhere does not exist"):
        resnetkit.to_hub("nowhere", tmp_path)
    with pytest.raises(DataError, match=r"no network is allowed, .* put it at .*hub/me/flowers/model.safetensors"):
        resnetkit.from_hub("hf:me/flowers")


def test_without_the_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: resnetkit.to_hub(model, "hf:me/x"), lambda: resnetkit.from_hub("hf:me/x")):
        with pytest.raises(UsageError, match=r"pip install 'resnetkit\[hub\]'"):
            call()


def test_a_file_put_by_hand_needs_no_client(model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = own_cache / "hub" / "me" / "flowers"
    resnetkit.to_hub(model, folder)
    assert fetch_from_hub("me/flowers", "model.safetensors") == folder / "model.safetensors"
    assert resnetkit.from_hub("hf:me/flowers").header == HEADER
    assert resnetkit.Predictor("hf:me/flowers")(Image.new("RGB", (40, 40)))[0].label in HEADER.classes


@pytest.mark.slow
def test_the_real_client_there_and_back(server: Files, model: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    refused = python(f"rk.to_hub({str(model)!r}, 'hf:me/flowers')", server, home, HF_TOKEN="hf_wrong")
    assert "resnetkit.errors.DataError: the Hub did not accept me/flowers (" in refused.stderr
    assert "hf auth login" in refused.stderr

    sent = python(f"print(rk.to_hub({str(model)!r}, 'hf:me/flowers'))", server, home, HF_TOKEN="hf_secret")
    assert (sent.returncode, sent.stdout) == (0, f"{server.address}/me/flowers\n"), sent.stderr
    content = (model / "best.safetensors").read_bytes()
    assert server.files["/me/flowers/resolve/main/model.safetensors"] == content
    assert b"resnetkit predict hf:me/flowers picture.jpg" in server.files["/me/flowers/resolve/main/README.md"]

    read = "m = rk.from_hub('hf:me/flowers'); print(m.header.classes, m.net.fc.weight.sum().item())"
    got = python(read, server, home)
    assert got.returncode == 0, got.stderr
    assert got.stdout == f"{HEADER.classes} {resnetkit.load(model).net.fc.weight.sum().item()}\n"
    server.files.clear()
    asked = len(server.asked)
    assert python(read, server, home, RESNETKIT_OFFLINE="1").stdout == got.stdout  # from the client's cache
    assert python(read, server, home, HF_HUB_OFFLINE="1").stdout == got.stdout
    assert len(server.asked) == asked

    missing = python("rk.load('hf:me/none')", server, home)
    assert "DataError: can't get model.safetensors of me/none from the Hub (" in missing.stderr
    assert "put it at" in missing.stderr

    (blob,) = [path for path in home.rglob("blobs/*") if re.fullmatch("[0-9a-f]{64}", path.name)]
    blob.write_bytes(bytes(len(content)))
    damaged = python(read, server, home, RESNETKIT_OFFLINE="1")
    assert (
        "model.safetensors of me/flowers came with other bytes than the Hub states; they were deleted" in damaged.stderr
    )
    assert not blob.exists()
