"""Several trainings as one result: folds and seeds, stopped and gone on with, and one report."""

import json
import statistics

import pytest
import torch

from resnetkit import evaluate
from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.finetune import features, ladder
from resnetkit.finetune.repeats import go_on, train_repeatedly
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build
from resnetkit.train.recipe import RECIPES, Recipe

TINY = Recipe(
    model="resnet20,depths=1-1-1",
    iterations=2,
    batch_size=8,
    size=32,
    normalize="imagenet",
    precision="float32",
    threads=1,
    compile="off",
)


def test_folds_give_one_report_of_all_pictures_and_go_on(picture_folder, tmp_path, monkeypatch):
    started, start = [], ladder.start

    def until_the_third(recipe, part, *, out, **more):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(out.name)
        return start(recipe, part, out=out, **more)

    monkeypatch.setattr(ladder, "start", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_repeatedly(TINY, str(picture_folder), kind="folds", count=3, out=tmp_path / "out", quiet=True)
    first = (tmp_path / "out" / "fold-1" / "last.safetensors").read_bytes()
    monkeypatch.setattr(ladder, "start", start)
    done = go_on(tmp_path / "out", quiet=True)
    assert started == ["fold-1", "fold-2"]
    assert (tmp_path / "out" / "fold-1" / "last.safetensors").read_bytes() == first
    assert [run.run.name for run in done.runs] == ["fold-1", "fold-2", "fold-3"]
    assert done.out_of_fold.images == 60
    assert done.out_of_fold.top1_error_percent == pytest.approx(statistics.fmean(done.errors), abs=0.01), "even folds"
    assert done.deviation == pytest.approx(statistics.stdev(done.errors))
    written = json.loads((tmp_path / "out" / "repeats.json").read_text())
    assert written["error_percent"]["mean"] == pytest.approx(done.mean, abs=1e-3)
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"{done.mean:.2f} ± {done.deviation:.2f} %" in report
    assert "On 60 pictures" in report
    for run in done.runs:  # the pictures that evaluate chooses by itself are those of the fold
        measured = evaluate(run.model, picture_folder)
        assert measured.images == 20
        assert measured.top1_error_percent == pytest.approx(run.best["error_percent"])


def test_seeds_share_the_pictures_and_nothing_else(picture_folder, tmp_path, capsys):
    flags = ["--model", TINY.model, "--iterations", "2", "--batch-size", "8", "--size", "32", "--compile", "off"]
    given = ["train", str(picture_folder), "--seeds", "2", "--seed", "7", "--out", str(tmp_path / "out"), *flags]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found["runs"]] == [str(tmp_path / "out" / f"seed-{seed}") for seed in (7, 8)]
    weights = [(tmp_path / "out" / f"seed-{seed}" / "last.safetensors").read_bytes() for seed in (7, 8)]
    assert weights[0] != weights[1]
    assert main(["runs", str(tmp_path / "out"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len({run["data"]["validation_fingerprint"] for run in listed}) == 1
    assert [sorted(run["differences"]) for run in listed] == [["seed"], ["seed"]]
    assert main(["train", "--resume", str(tmp_path / "out"), "--epochs", "9"]) == 2
    assert "contains several runs; leave out --epochs" in capsys.readouterr().err
    assert main([*given, "--folds", "3"]) == 2
    assert "--folds and --seeds can't be given together" in capsys.readouterr().err


def test_what_cannot_be_repeated_is_refused(picture_folder, tmp_path):
    with pytest.raises(UsageError, match="`seeds` is 1; it must be at least 2"):
        train_repeatedly(TINY, picture_folder, kind="seeds", count=1, out=tmp_path / "out")
    with pytest.raises(UsageError, match="there are no validation pictures"):
        train_repeatedly(TINY.replace(val_fraction=0.0), picture_folder, kind="seeds", count=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folds_go_up_the_ladder_and_share_their_features(picture_folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = build("resnet18,width=8", classes=10)
    weights = tmp_path / "first.safetensors"
    save(weights, net, Header(net.spec, Preprocess(size=32, resize=36), tuple("0123456789")))
    recipe = RECIPES["folder"].replace(model="resnet18,width=8", init=str(weights), workers=0, rung="stage", lr=1e-3)
    computed = []
    compute = features.FeatureCache.compute

    def counted(cache, samples, **more):
        found = compute(cache, samples, **more)
        computed.append(cache.computed)
        return found

    monkeypatch.setattr(features.FeatureCache, "compute", counted)
    done = train_repeatedly(recipe, picture_folder, kind="folds", count=3, out=tmp_path / "out", quiet=True)
    assert [[row["rung"] for row in run.rungs] for run in done.runs] == [["head", "stage"]] * 3
    # Each fold's val is computed as in validation, its train also mirrored: 20 + 80, 0 + 20, then everything is there.
    # The third of each is for the report, which finds them all.
    assert computed == [20, 100, 0, 0, 20, 0, 0, 0, 0]
    assert done.out_of_fold.images == 60
    assert done.out_of_fold.top1_error_percent == pytest.approx(statistics.fmean(done.errors), abs=0.01)
    assert done.to_dict()["runs"][0]["rungs"][0]["rung"] == "head"
    again = go_on(tmp_path / "out", quiet=True)
    assert again.out_of_fold.to_dict() == done.out_of_fold.to_dict()
    assert "of rung" in (tmp_path / "out" / "report.html").read_text()
