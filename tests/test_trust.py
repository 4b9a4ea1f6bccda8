"""What the command line says about trust: calibration, sets, comparisons, class shares, and the receipt of `verify`."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit as rk
from resnetkit.cli import main
from resnetkit.data.dataset import open_dataset
from resnetkit.data.first_look import FirstLook
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.finetune.trust import LABELS, LEAKS, SHORTCUTS, WORK_PER_SECOND, left_out, look_sections, seconds_of
from resnetkit.modelfile import Header, load, save
from resnetkit.models.resnet import build
from resnetkit.verification.classifiers import Way
from resnetkit.verification.pictures import GENERATED
from resnetkit.verification.receipt import verify

Shell = pytest.CaptureFixture[str]
CLASSES = ("cat", "frog", "ship")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model file of an untrained network of three classes, in the working folder, next to the folder `pictures`."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3).eval()
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32), CLASSES))
    monkeypatch.chdir(tmp_path)
    return "m.safetensors"


def answer(capsys: Shell, *argv: str, code: int = 0) -> dict:
    """Run a verb with --json and return its document."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_what_scripts_can_count_on(model: str, picture_folder: Path, capsys: Shell) -> None:
    plain = answer(capsys, "evaluate", model, "pictures")
    assert {"images", "top1_error_percent", "top5_error_percent", "loss", "per_class"} < plain.keys()
    low, high = plain["interval_percent"]
    assert 0 <= low < plain["top1_error_percent"] < high <= 100
    assert plain["calibration"].keys() == {"ece_percent", "ece_percent_before", "interval_percent", "temperature"}
    assert (plain["calibration"]["temperature"], plain["reject"]) == (1.0, None)
    of_cats = plain["per_class"]["cat"]
    assert of_cats["recall_percent"] == pytest.approx(100 - of_cats["top1_error_percent"])


def test_a_model_is_calibrated_and_then_rejects_and_gives_sets(model: str, picture_folder: Path, capsys: Shell) -> None:
    before = answer(capsys, "evaluate", model, "pictures")
    written = answer(capsys, "evaluate", model, "pictures", "--calibrate", "hot.safetensors")
    again = answer(capsys, "evaluate", "hot.safetensors", "pictures")
    assert written.pop("calibrated_model") == "hot.safetensors"
    assert written == again
    assert again["loss"] == before["loss"]
    assert again["calibration"]["ece_percent"] < before["calibration"]["ece_percent"]
    assert again["calibration"]["ece_percent_before"] == before["calibration"]["ece_percent"]
    assert again["reject"]["rejected_known_percent"] == pytest.approx(100 * 2 / 60, abs=1e-3), "3 of 61, exclusive"
    assert load("hot.safetensors").header.calibration is not None

    found = answer(capsys, "predict", "hot.safetensors", "pictures", "--reject", "--sets", "0.9", "--backend", "torch")
    assert sum(one["rejected"] for one in found) == 2
    labels = [Path(one["path"]).parent.name for one in found]
    assert sum(label in one["set"] for label, one in zip(labels, found, strict=True)) >= 54
    assert all(one["set"][0] == one["predictions"][0]["label"] for one in found)
    assert (
        main(["predict", "hot.safetensors", "pictures", "--reject", "--sets", "0.9", "--csv", "--backend=torch"]) == 0
    )
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["rejected"] for row in rows} == {"true", "false"}
    assert json.loads(rows[0]["set"]) == found[0]["set"]
    assert main(["predict", "hot.safetensors", "pictures/cat", "--reject", "--reject-rate=0.5", "--backend=torch"]) == 0
    assert "none of the known classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["predict", "m.safetensors", "pictures", "--reject"], "--calibrate FILE"),
        (["predict", "m.safetensors", "pictures", "--reject", "--logits"], "--logits and --reject can't be combined"),
        (
            ["evaluate", "m.safetensors", "pictures", "--class-share", "cat"],
            "--class-share cat: give the name of a class",
        ),
        (
            ["evaluate", "m.safetensors", "pictures", "--class-share", "cow=1"],
            "--class-share names cow; the classes are",
        ),
        (
            ["evaluate", "m.safetensors", "pictures", "--calibrate", "x", "--views", "multi-scale"],
            "--calibrate fits the single view",
        ),
        (
            ["evaluate", "m.safetensors", "pictures", "--calibrate", "m.safetensors", "--force"],
            "is the model or the data",
        ),
    ],
)
def test_wrong_use_is_named(model: str, picture_folder: Path, capsys: Shell, argv: list[str], words: str) -> None:
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_too_few_pictures_are_not_calibrated_on(model: str, picture_folder: Path, capsys: Shell) -> None:
    for path in sorted(picture_folder.rglob("*.*"))[::2]:
        path.unlink()
    sorted(picture_folder.rglob("*.*"))[0].unlink()
    assert main(["evaluate", model, "pictures", "--calibrate", "x.safetensors"]) == 1
    assert "--calibrate needs 30 pictures or more" in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


def test_a_model_against_itself_and_class_shares(model: str, picture_folder: Path, capsys: Shell) -> None:
    found = answer(capsys, "evaluate", model, "pictures", "--against", model, "--class-share", "cat=0.5,frog=0.5")
    difference = found["difference"]
    assert (difference["percent"], difference["p"], difference["verdict"]) == (0, 1, "can't be told apart")
    errors = [found["per_class"][name]["top1_error_percent"] for name in ("cat", "frog")]
    assert found["weighted"]["top1_error_percent"] == pytest.approx(sum(errors) / 2, abs=1e-3)
    assert main(["evaluate", model, "pictures", "--against", model]) == 0
    assert "p = 1.000: can't be told apart" in capsys.readouterr().out


def test_leaking_pictures_are_counted_out(model: str, split_folder: Path, capsys: Shell) -> None:
    """Two training pictures are copied to the test part under another name."""
    for name in ("cat", "frog"):
        source = next((split_folder / "train" / name).glob("*.png"))
        (split_folder / "test" / name / "copy.png").write_bytes(source.read_bytes())
    dataset = open_dataset("split", val_fraction=0)
    assert dataset.train is not None
    net = build("resnet20", depths=(1, 1, 1)).eval()
    data = {"fingerprint": dataset.train.fingerprint(), "split": {"rule": "as given"}}
    save("own.safetensors", net, Header(net.spec, Preprocess(size=32), dataset.classes, data=data))
    found = answer(capsys, "evaluate", "own.safetensors", "split", "--report", "page.html", "--csv", "all.csv")
    assert (found["part"], found["images"], found["leaking"]) == ("test", 122, 2)
    rows = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
    wrong = [row["label"] != row["class_1"] for row in rows if not row["picture"].endswith("copy.png")]
    assert len(wrong) == 120
    assert found["top1_error_percent_without_leaks"] == pytest.approx(100 * sum(wrong) / 120, abs=1e-3)
    page = Path("page.html").read_text()
    assert "<td>pictures that are alike to training pictures</td><td>2; without them" in page
    assert page.count("<figure>") == 12
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "resnetkit evaluate own.safetensors split --report page.html --csv all.csv --json" in page


def test_all_ways_agree_on_drawn_and_on_given_pictures(model: str, picture_folder: Path, capsys: Shell) -> None:
    drawn = answer(capsys, "verify", model)
    assert (drawn["pictures"], drawn["agrees"], drawn["left_out"]) == (GENERATED, True, {})
    assert "drawn" in drawn["of"]
    assert {"predict", "predict by torch"} <= drawn["ways"].keys()
    for way in drawn["ways"].values():
        assert way["largest_difference"] < 1e-3
        assert way["other_best_class"] == 0
    (picture_folder / "cat" / "broken.png").write_bytes(b"\x89PNG")
    assert main(["verify", model, "pictures"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("60 pictures, of pictures\n")
    assert out.endswith("all ways agree\n")


def test_a_way_that_gives_something_else_fails(
    model: str, picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnetkit.infer.predictor import Predictor

    right = Predictor.probabilities
    monkeypatch.setattr(Predictor, "probabilities", lambda self, pictures: np.roll(right(self, pictures), 1, axis=1))
    monkeypatch.setattr("resnetkit.verification.classifiers.FILE_FORMATS", {"onnx": Nothing, "openvino": Nothing})
    found = answer(capsys, "verify", model, "pictures", code=1)
    assert not found["agrees"]
    assert found["ways"]["predict"]["other_best_class"] > 0


class Nothing:
    """A format that can't be written here."""

    packages = ("a_package_that_is_not_there",)


def test_nothing_to_compare_on_is_named(model: str, tmp_path: Path, capsys: Shell) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["verify", model, "empty"]) == 1
    assert "empty has no picture files to compare on" in capsys.readouterr().err


def test_what_agrees() -> None:
    expected = np.array([[0.5, 0.5], [0.9, 0.1]], np.float32)
    near = np.array([[0.4999, 0.5001], [0.9, 0.1]], np.float32)
    assert Way.of(expected, near, "float32") == Way(pytest.approx(1e-4, abs=1e-6), 0, "float32", agrees=True)
    far = np.array([[0.5, 0.5], [0.4, 0.6]], np.float32)
    assert (Way.of(expected, far, "float32").agrees, Way.of(expected, far, "float32").other_best_class) == (False, 1)
    assert Way.of(np.repeat(expected, 100, 0), np.repeat(far, 100, 0), "int8").agrees is False
    assert Way.of(np.repeat(expected, 100, 0), np.repeat(near, 100, 0), "int8").agrees is True
    assert not Way.of(expected, np.full((2, 2), np.nan, np.float32), "float32").agrees
    assert not Way.of(expected, expected[:, :1], "float32").agrees


def test_a_run_is_verified_on_its_own_validation_part(model: str, picture_folder: Path) -> None:
    recipe = rk.RECIPES["folder"].replace(
        model="resnet20,depths=1-1-1", size=32, iterations=1, batch_size=8, minutes=None, epochs=None, val_fraction=0.5
    )
    result = rk.train(recipe, "pictures", out="run", quiet=True)
    header = load(result.model).header
    assert header.calibration is not None
    assert header.calibration.pictures == 30
    found = verify("run")
    assert found.pictures == 30
    assert found.agrees
    assert found.of.startswith("the val part of")
    assert Image.open("run/curves.png")


def test_what_a_report_says_of_the_pictures(picture_folder: Path) -> None:
    """A planted shortcut, a picture in two classes; large sets are left to evaluate."""
    for path in (picture_folder / "frog").iterdir():
        picture = Image.open(path).convert("RGB")
        path.unlink()
        picture.resize((48, 48)).save(path.with_suffix(".png"))
    assert {LEAKS, SHORTCUTS} == look_sections(open_dataset(picture_folder), FirstLook(workers=0)).keys()
    shutil.copy(picture_folder / "cat" / "cat 00.png", picture_folder / "ship" / "no ship.png")
    found = look_sections(open_dataset(picture_folder), FirstLook(workers=0))
    assert "Contradiction: 1 group of same or alike pictures is in several classes" in found[LEAKS]
    assert "<td>file size</td>" in found[SHORTCUTS]
    assert seconds_of(2000, 512, 10) == pytest.approx(2000 * 5120 / WORK_PER_SECOND)
    assert seconds_of(50_000, 512, 1000) is None
    assert "resnetkit evaluate runs/a photos --report" in left_out("runs/a", "photos")[LABELS]


def test_an_evaluation_says_whether_facts_tell_the_label(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "page.html"
    net = build("resnet20,depths=1-1-1", classes=3)
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32), ("cat", "frog", "ship")))
    given = ["evaluate", str(tmp_path / "m.safetensors"), str(picture_folder), "--split", "all"]
    assert main([*given, "--report", str(report)]) == 0
    for heading in (LEAKS, SHORTCUTS):
        assert f"<h2>{heading}</h2>" in report.read_text()
    assert "tells the label no better than chance" in report.read_text()
