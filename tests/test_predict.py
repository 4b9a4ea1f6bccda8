"""`resnetkit predict`: numbers instead of labels, and flags that don't go together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import printable
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build

TORCH = ("--backend", "torch")


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3).eval()
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32), ("cat", "frog", "ship")))
    return str(tmp_path / "m.safetensors")


@pytest.mark.parametrize(("flags", "name"), [(["--features", "pool"], "pool"), (["--logits"], "logits")])
def test_numbers_as_json_lines(model, picture_folder, capsys, flags, name) -> None:
    (picture_folder / "cat" / "broken.png").write_bytes(b"")
    assert main(["predict", model, str(picture_folder), *flags, *TORCH]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 60
    assert "broken.png" in err
    predictor = Predictor(model, backend="torch")
    expected = predictor.logits(rows[7]["path"]) if name == "logits" else predictor.features(rows[7]["path"])
    np.testing.assert_allclose(rows[7][name], expected[0], atol=1e-5)


def test_numbers_into_a_file(model: str, picture_folder: Path, tmp_path: Path, capsys: object) -> None:
    file = tmp_path / "features.npz"
    assert main(["predict", model, str(picture_folder), "--features", "c5", "--out", str(file), *TORCH]) == 0
    arrays = np.load(file)
    assert (arrays["c5"].shape, arrays["c5"].dtype) == ((60, 64, 8, 8), np.float32)
    assert [Path(path).name for path in arrays["paths"][:2]] == ["cat 00.png", "cat 01.jpg"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--logits --features pool", "--logits and --features both set the output"),
        ("--logits --json", "--logits and --json can't be combined"),
        ("--out x.npz", "--out needs --logits or --features"),
        ("--logits --out x.txt", "--out is x.txt; give a name that ends in .npz"),
        ("--logits --out nowhere/x.npz", "there is no folder nowhere; create it"),
        ("--explain-class cat", "--explain-class needs --explain DIR"),
        ("--features c2", "--features takes c5, pool or null, not c2"),
        ("--workers -1", "--workers is -1; it must be at least 0"),
    ],
)
def test_wrong_flags(model: str, flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", model, "x.png", *flags.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "message"), [("class", "there is no class x"), ("stage", "there is no stage x")])
def test_what_can_not_be_explained_is_said_before_anything_is_printed(
    model: str, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    (picture_folder / "cat" / "aa.png").write_bytes(b"")
    flags = ["--json", "--explain", str(tmp_path / "drawn"), f"--explain-{flag}", "x"]
    assert main(["predict", model, str(picture_folder / "cat"), *flags, *TORCH]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_numbers_that_json_does_not_have_are_null(
    tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    torch.nn.init.constant_(net.fc.weight, 3e38)  # their sums are beyond float32
    save(tmp_path / "nan.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    picture = picture_folder / "cat" / "cat 00.png"
    assert main(["predict", str(tmp_path / "nan.safetensors"), str(picture), "--logits", *TORCH]) == 0
    assert json.loads(capsys.readouterr().out)["logits"] == [None, None]


def test_a_warning_is_one_line(model: str, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = Path(model).with_suffix(".tuned") / "tune.json"
    tune.parent.mkdir()
    tune.write_text("{")
    assert main(["predict", model, str(picture_folder / "cat" / "cat 00.png"), *TORCH]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resnetkit predict: warning: {tune} is not used")


LATIN = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def latin_name(picture_folder: Path) -> Path:
    try:
        return (picture_folder / "cat" / "cat 00.png").rename(picture_folder / LATIN)
    except OSError:
        pytest.skip("this file system takes only UTF-8")


@pytest.mark.parametrize(
    ("flag", "escaped"),
    [("--json", r"caf\\xe9.png"), ("--csv", r"caf\xe9.png"), ("", r"caf\xe9.png"), ("--logits", r"caf\\xe9.png")],
)
def test_a_name_that_is_not_utf8_is_escaped(model: str, latin_name: Path, flag: str, escaped: str, capsys) -> None:
    """Given by name, the file is predicted; in a folder it is reported, as by training. The output is always UTF-8."""
    other = latin_name.with_name("cat") / "cat 02.png"
    assert main(["predict", model, str(latin_name), str(other), *flag.split(), *TORCH]) == 0
    out, err = capsys.readouterr()
    assert f"/{escaped}" in out
    assert LATIN not in out
    assert err == ""
    if flag == "--json":
        assert [Path(row["path"]).name for row in json.loads(out)] == [r"caf\xe9.png", "cat 02.png"]
    assert main(["predict", model, str(latin_name.parent), *flag.split(), *TORCH]) == 1
    out, err = capsys.readouterr()
    reported = err if flag == "--logits" else out
    assert "its name is not UTF-8" in reported
    assert r"/caf\xe9.png" in err.replace("\\\\", "\\")


def test_a_terminal_that_lacks_a_letter_gets_it_escaped(
    model: str, picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (picture_folder / "cat" / "cat 00.png").rename("猫.png")
    for flag in ("--json", "--csv"):
        done = subprocess.run(
            [sys.executable, "-m", "resnetkit", "predict", model, "猫.png", flag, *TORCH],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert rb"\u732b.png" in done.stdout
        assert flag == "--csv" or json.loads(done.stdout)[0]["path"] == "猫.png"


def test_halves_of_characters_are_printable() -> None:
    assert printable("a\udcff\ud83d\udc00 猫 \\xe9") == r"a\xff\ud83d\udc00 猫 \xe9"


def test_what_is_there_is_replaced_on_request_only(
    model: str,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = ["predict", model, str(picture_folder / "cat"), "--logits", "--out=~/x.npz", *TORCH]
    assert main(command) == 0
    before = (tmp_path / "x.npz").read_bytes()
    assert main(command) == 2
    assert f"{tmp_path / 'x.npz'} exists already; give another file, or --force to replace it" in (
        capsys.readouterr().err
    )
    (tmp_path / "x.npz").write_bytes(b"old")
    assert main([*command, "--force"]) == 0
    assert len((tmp_path / "x.npz").read_bytes()) == len(before)


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_how_far_it_is(
    model: str, picture_folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The progress is on standard error if results are written elsewhere, and never among the results."""
    monkeypatch.setattr("resnetkit.progress.LINE_EVERY", 0.0)
    cats = sorted((picture_folder / "cat").iterdir())
    paths = [str(picture_folder / "cat")] if kind == "folder" else list(map(str, cats))
    assert main(["predict", model, *paths, "--json", *TORCH]) == 0
    out, err = capsys.readouterr()
    assert [row["path"] for row in json.loads(out)] == [str(path) for path in cats]
    assert err.splitlines()[-1] == ("predicting: 20 pictures" if kind == "folder" else "predicting: 20 of 20 pictures")
