"""Runs as a table: found, ordered by data and error, compared field by field."""

import json
from pathlib import Path

import pytest

from resnetkit import train
from resnetkit.cli import main
from resnetkit.errors import DataError
from resnetkit.train.history import differences, find_runs, read_run, unusual
from resnetkit.train.recipe import Recipe, as_yaml
from resnetkit.train.run_folder import RunFolder

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


def write_run(
    folder: Path, recipe: Recipe, *, errors: list[float], data: str = "photos", finished: bool = True
) -> None:
    """Write the files of a run that the table reads."""
    folder.mkdir(parents=True)
    about = {"version": "1", "name": data, "fingerprint": "f", "validation_fingerprint": data, "split": {}}
    (folder / "recipe.yaml").write_text(as_yaml(recipe.to_dict() | {"run": about}))
    rows = [
        {"part": "val", "step": 10 * (i + 1), "epoch": i + 1, "error_percent": error, "loss": 1.0, "images": 40}
        for i, error in enumerate(errors)
    ]
    text = "".join(json.dumps(row | {"seconds": 30.0 * row["epoch"]}) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        (folder / "report.html").write_text("")


def test_a_real_run_is_read(picture_folder, tmp_path):
    result = train(TINY, picture_folder, out=tmp_path / "runs" / "one", quiet=True)
    (run,) = find_runs([tmp_path / "runs"])
    assert run.status == "finished"
    assert run.best["error_percent"] == result.best["error_percent"]
    assert (run.step, run.recipe["model"], run.data["name"]) == (2, TINY.model, str(picture_folder))
    assert "peak_at" in run.recipe
    assert "muon_lr" not in run.recipe, "it has no effect"
    with RunFolder(run.path).locked():
        assert read_run(run.path).status == "running"


def test_runs_are_ordered_by_data_and_error(tmp_path):
    recipe = Recipe(epochs=3)
    write_run(tmp_path / "a", recipe, errors=[30, 20, 25])
    write_run(tmp_path / "b", recipe.replace(lr=0.1, workers=7), errors=[30, 10], finished=False)
    write_run(tmp_path / "deep" / "c", recipe, errors=[5], data="cells")
    write_run(tmp_path / "d", recipe, errors=[])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.yaml").write_text("lr: [")
    (tmp_path / "own.d").mkdir()
    (tmp_path / "own.d" / "recipe.yaml").write_text("lr: 0.1\n")
    runs = find_runs([tmp_path, tmp_path / "a"])
    assert [run.path.name for run in runs] == ["c", "b", "a", "d"]
    assert [run.status for run in runs] == ["finished", "stopped", "finished", "finished"]
    assert runs[2].best["error_percent"] == 20
    assert runs[1].seconds == 60
    assert differences(runs[1:]) == [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.2}]
    assert unusual(differences(runs[1:])) == [{"lr": 0.1}, {}, {}]
    with pytest.raises(DataError, match="no such folder"):
        find_runs([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no run"):
        find_runs([tmp_path / "empty"])


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 1
    assert "runs: no such folder" in capsys.readouterr().err
    for number in range(6):
        write_run(Path("runs", str(number)), Recipe(lr=0.01 if number == 3 else 0.2), errors=[20.0 - number])
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data photos, 40 validation pictures"
    assert lines[1].split()[:2] == ["run", "error"]
    assert [line.split()[0] for line in lines[2:]] == [f"runs/{number}" for number in (5, 4, 3, 2, 1, 0)]
    assert lines[4].endswith("finished  lr=0.01")
    assert lines[3].endswith("finished        -")
    assert main(["runs", "runs/3", "runs/4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["lr", "0.2", "0.01"]
    assert main(["runs", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["path"] == "runs/5"
    assert first["differences"] == {"lr": 0.2}
    assert first["best"]["error_percent"] == 15


def test_rungs_are_no_runs_of_their_own_and_changed_classes_are_finished(tmp_path):
    write_run(tmp_path / "a", Recipe(epochs=3), errors=[30])
    (tmp_path / "a" / "ladder.json").write_text("{}")
    write_run(tmp_path / "a" / "stage", Recipe(epochs=3), errors=[40])
    write_run(tmp_path / "b", Recipe(epochs=3), errors=[], finished=False)
    assert {run.path.name: run.status for run in find_runs([tmp_path])} == {"a": "finished", "b": "stopped"}
    (tmp_path / "b" / "best.safetensors").write_bytes(b"")
    assert read_run(tmp_path / "b").status == "finished"
