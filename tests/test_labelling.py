"""`evaluate` and `data next` on labels, as whole commands on small folders of coloured pictures."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
WRONG = {"red/03.png": "green", "blue/07.png": "red"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build("resnet18,width=16", classes=3).eval()
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32, resize=36), tuple(COLOURS)))
    return tmp_path / "m.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/<colour>/<number>.png, sixteen of each; those of WRONG have another colour than their folder."""
    rng = np.random.default_rng(0)
    for name in COLOURS:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(16):
            colour = COLOURS[WRONG.get(f"{name}/{number:02d}.png", name)]
            pixels = np.clip(np.array(colour) + rng.normal(0, 25, (40, 44, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number:02d}.png")
    return tmp_path / "photos"


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(one) for one in argv])
    return code, *capsys.readouterr()


def test_label_errors_are_found_reviewed_and_corrected(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answered(
        capsys, "evaluate", model, photos, "--label-errors", "--review", tmp_path / "r.html", "--json"
    )
    assert code == 0, err
    found = json.loads(out)["label_errors"]
    assert {f"{Path(one['path']).parent.name}/{Path(one['path']).name}": one["suggested"] for one in found} == WRONG
    assert [set(one) for one in found] == 2 * [{"path", "label", "suggested", "score"}]
    assert found[0]["score"] <= found[1]["score"] < 0.5
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all(f'data-path="{path}"' in page for path in WRONG)

    (tmp_path / "c.csv").write_text("path,action,label\nred/03.png,relabel,green\nblue/07.png,keep,\n")
    code, out, err = answered(
        capsys, "evaluate", model, photos, "--label-errors", "--corrections", tmp_path / "c.csv", "--json"
    )
    assert json.loads(out)["label_errors"] == []
    assert "c.csv: 1 picture got another class, 0 left out" in err


def test_words_and_the_report(model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answered(
        capsys, "evaluate", model, photos, "--label-errors", "--learning-curve", "--report", tmp_path / "r.html"
    )
    assert code == 0, err
    assert "likely label errors: 2 of 48 pictures, worst first" in out
    assert "twice the pictures save" in out
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Are the labels right?" in page
    assert "Would more pictures help?" in page


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--features-of", "x"), "--features-of needs --label-errors, --review or --learning-curve"),
        (("--label-errors", "--cache-gb", "0"), "--cache-gb is 0; it must be over 0"),
        (("--corrections", "nowhere.csv"), "nowhere.csv can't be read: No such file"),
    ],
)
def test_wrong_flags(
    model: Path, photos: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = answered(capsys, "evaluate", model, photos, *flags)
    assert code in (1, 2)
    assert said in err


def test_a_network_that_learnt_from_the_pictures_is_named(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from resnetkit.data.dataset import open_dataset
    from resnetkit.data.parts import record

    net = build("resnet18,width=16", classes=3).eval()
    train = open_dataset(photos).train
    assert train is not None
    header = Header(net.spec, Preprocess(size=32, resize=36), tuple(COLOURS), data={"pictures": record(train)})
    save(tmp_path / "trained.safetensors", net, header)
    _, _, err = answered(capsys, "evaluate", tmp_path / "trained.safetensors", photos, "--label-errors")
    assert "was trained on 39 of these pictures: it may know wrong labels" in err
    _, _, err = answered(
        capsys, "evaluate", tmp_path / "trained.safetensors", photos, "--label-errors", "--features-of", model
    )
    assert "by heart" not in err


def test_a_network_of_which_only_the_head_learnt_is_not_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from resnetkit.data.dataset import open_dataset
    from resnetkit.data.parts import record

    net = build("resnet18,width=16", classes=3).eval()
    train = open_dataset(photos).train
    assert train is not None
    kept = {"rung": "head"}  # the ladder's other rungs were not kept
    data = {"pictures": record(train)}
    save(
        tmp_path / "head.safetensors",
        net,
        Header(net.spec, Preprocess(size=32, resize=36), tuple(COLOURS), metrics=kept, data=data),
    )
    _, _, err = answered(capsys, "evaluate", tmp_path / "head.safetensors", photos, "--label-errors")
    assert "by heart" not in err


def test_next_pictures_as_table_json_and_csv(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    code, out, err = answered(capsys, "data", "next", model, photos, "--count", 4, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["pictures"] == 48
    assert list(document["unreadable"]) == [str(photos / "broken.png")]
    assert len({one["path"] for one in document["next"]}) == 4
    assert all(0 <= one["margin"] <= one["probability"] <= 1 for one in document["next"])
    _, again, _ = answered(capsys, "data", "next", model, photos, "--count", 4, "--csv")
    rows = list(csv.DictReader(io.StringIO(again)))
    assert [row["path"] for row in rows] == [one["path"] for one in document["next"]]
    _, table, err = answered(capsys, "data", "next", model, photos, "--count", 4)
    assert table.startswith("4 pictures of 48")
    assert "1 can't be read" in err

    for row, label in zip(rows, ("red", "green", "red", "green"), strict=True):
        row["label"] = label
    with (tmp_path / "filled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    from resnetkit.data.dataset import open_dataset

    assert open_dataset(tmp_path / "filled.csv").classes == ("green", "red")


def test_the_probabilities_are_those_of_predict(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = answered(capsys, "data", "next", model, photos, "--count", 3, "--json")
    for one in json.loads(out)["next"]:
        _, predicted, _ = answered(capsys, "predict", model, one["path"], "--backend", "torch", "--json")
        best = json.loads(predicted)[0]["predictions"][0]
        assert best["label"] == one["predicted"]
        assert best["probability"] == pytest.approx(one["probability"], abs=1e-3)


@pytest.mark.parametrize(
    ("folder", "flags", "said"),
    [
        ("nowhere", (), "nowhere is not a folder"),
        ("empty", (), "empty contains no pictures"),
        ("photos", ("--count", "0"), "--count is 0; it must be at least 1"),
        ("photos", ("--json", "--csv"), "--json and --csv both set the format"),
    ],
)
def test_next_refuses_in_words(
    model: Path, photos: Path, folder: str, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos.parent / "empty").mkdir()
    code, _, err = answered(capsys, "data", "next", model, photos.parent / folder, *flags)
    assert code in (1, 2)
    assert said in err
