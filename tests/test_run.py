"""Starting a run and going on with one: its folder, pictures, length and precision."""

import re
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnetkit import Predictor, evaluate, load, resume, train
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.kernels.library import library, status
from resnetkit.train import run as runs
from resnetkit.train.computing import compute, measuring
from resnetkit.train.loop import InterruptedTrainingError
from resnetkit.train.monitor import Monitor, read_metrics
from resnetkit.train.recipe import Recipe
from resnetkit.train.run_folder import RunFolder

TINY = Recipe(
    model="resnet20,depths=1-1-1",
    iterations=4,
    batch_size=16,
    lr=0.05,
    precision="float32",
    threads=1,
    compile="off",
    schedule="constant",
    log_every=1,
    save_every=1e9,
)
ON_FILES = {"size": 32, "normalize": "imagenet"}


@pytest.fixture
def dataset(cifar_subset: tuple[Samples, Samples]) -> Dataset:
    """64 training pictures and 20 validation pictures."""
    pictures, test = cifar_subset
    order = np.random.default_rng(0).permutation(len(pictures))
    return Dataset("subset", test.classes, pictures.subset(order[:64]), pictures.subset(order[64:84]), test)


def same_weights(one: Path, other: Path) -> bool:
    return (one / "last.safetensors").read_bytes() == (other / "last.safetensors").read_bytes()


# Whose folder


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    started, made = threading.Barrier(8), []

    def start() -> None:
        started.wait()
        made.append(RunFolder(tmp_path / "runs" / "a").create_beside().path)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in made) == ["a", *(f"a-{number}" for number in range(2, 9))]
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="can't be made: "):
        RunFolder(tmp_path / "file" / "a").create_beside()


def test_a_default_folder_is_never_anothers(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "default_folder", lambda *_: RunFolder(Path("runs/now")))
    recipe = TINY.replace(iterations=1)
    assert [train(recipe, dataset, quiet=True).run for _ in range(2)] == [Path("runs/now"), Path("runs/now-2")]


def test_a_run_that_another_process_has_begun_meanwhile_is_left_alone(dataset, tmp_path, monkeypatch):
    prepare = runs.prepare

    def slow(*given):
        task = prepare(*given)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.yaml").write_text("lr: 0.1")
        return task

    monkeypatch.setattr(runs, "prepare", slow)
    with pytest.raises(TrainingError, match="run exists already"):
        train(TINY, dataset, out=tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "lr: 0.1"


def test_home_is_a_folder_wherever_a_path_is_given(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recipe = TINY.replace(**ON_FILES)
    train(recipe, "~/pictures", out="~/run", quiet=True)
    assert not (tmp_path / "~").exists()
    about = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["run"]
    assert about["data"] == str(picture_folder)
    resume("~/run", quiet=True)
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(text.replace(f"data: {picture_folder}", "data: ~/pictures"))
    resume(tmp_path / "run", quiet=True)
    assert train(recipe.replace(init="~/run"), Path("~/pictures"), out=Path("~/second"), quiet=True).model.is_file()


# Which pictures


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (
            ("folder", "cifar10"),
            "train takes a Recipe first and then the data, not 'folder'; RECIPES contains recipes by name",
        ),
        ((Path("pictures"), TINY), "train takes a Recipe first and then the data, not a PosixPath"),
        ((TINY, None), "`data` is None; give cifar10, cifar100, a folder, a .csv file or a Dataset"),
        ((TINY, 5), "`data` is 5; give cifar10"),
    ],
)
def test_arguments_of_another_kind_are_named(first, then):
    with pytest.raises(UsageError, match=re.escape(then)):
        train(*first)


def test_other_arguments_of_another_kind_are_named(dataset):
    with pytest.raises(UsageError, match="`out` is 7; give a path"):
        train(TINY, dataset, out=7)
    with pytest.raises(UsageError, match="`run_folder` is None; give a path"):
        resume(None)
    with pytest.raises(DataError, match="missing: no such data"):
        train(TINY, Path("missing"))


def test_a_path_is_data(picture_folder, tmp_path):
    result = train(TINY.replace(**ON_FILES), picture_folder, out=str(tmp_path / "run"), quiet=True)
    assert resume(result.run, picture_folder, quiet=True).best == result.best


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_long_pictures_are_seen_whole_by_every_verb(fit, tmp_path):
    """The class is at the right end of the picture, which a centre crop cuts off."""
    for number in range(12):
        for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
            picture = Image.new("RGB", (96, 32), (number, 90, 60))
            picture.paste(color, (72, 0, 96, 32))
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{number}.png")
    recipe = TINY.replace(**ON_FILES, fit=fit, crop="none", flip=False, iterations=20, batch_size=8, evaluate_every=99)
    result = train(recipe, tmp_path / "photos", out=tmp_path / "run", quiet=True)
    assert load(result.model).header.preprocess.fit == fit
    evaluated = evaluate(result.model, tmp_path / "photos", split="all")
    assert evaluated.top1_error_percent == 0
    predict = Predictor(result.model, backend="torch")
    for name in ("red", "blue"):
        assert [best[0].label for best in predict(sorted((tmp_path / "photos" / name).iterdir()))] == [name] * 12
    longer = recipe.replace(init=str(result.run), fit=None, iterations=1)
    further = train(longer, tmp_path / "photos", out=tmp_path / "further", quiet=True)
    assert load(further.model).header.preprocess.fit == fit, "as for the first weights"


def test_training_in_the_folder_of_the_pictures(picture_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(picture_folder)
    result = train(TINY.replace(**ON_FILES), ".", out=tmp_path / "run", quiet=True)
    monkeypatch.chdir(tmp_path)
    assert resume(result.run, quiet=True).best == result.best


def test_what_the_set_is_worth_is_said(picture_folder, tmp_path):
    result = train(TINY.replace(**ON_FILES), picture_folder, out=tmp_path / "run", quiet=True)
    assert (
        "val is drawn: 12 of the 60 training pictures, the same ones each time (seed 0)"
        in (result.run / "log.txt").read_text()
    )


@pytest.mark.parametrize("changed", ["pixels", "fewer", "none"])
def test_other_validation_pictures_are_refused(changed, dataset, tmp_path):
    run = train(TINY, dataset, out=tmp_path / "run", quiet=True).run
    val = dataset.val
    other = {
        "pixels": replace(val, images=np.concatenate([val.images[:-1], 255 - val.images[-1:]])),
        "fewer": val.subset(np.arange(5)),
        "none": None,
    }[changed]
    words = r"its validation pictures \(fingerprint \w+\) are not those of subset \(\d+ of 10 classes"
    with pytest.raises(TrainingError, match=words):
        resume(run, replace(dataset, val=other), quiet=True)
    # A run of an earlier version knows nothing of them.
    about = yaml.safe_load((run / "recipe.yaml").read_text())
    del about["run"]["validation_fingerprint"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(about))
    resume(run, replace(dataset, val=other), quiet=True)


def test_another_set_is_named_before_its_classes_are_counted(dataset, picture_folder, tmp_path):
    run = train(TINY, dataset, out=tmp_path / "run", quiet=True).run
    words = rf"are not those of {picture_folder} \(48 of 3 .* start a new run: resnetkit train DATA --init {run}"
    with pytest.raises(TrainingError, match=words):
        resume(run, picture_folder, quiet=True)


# How long


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "alternate_flip": True}, {"ema_decay": 0.9}])
def test_a_longer_run_has_the_bits_of_one_that_was_as_long_from_the_start(changes, dataset, tmp_path):
    long = TINY.replace(iterations=11, **changes)
    train(long, dataset, out=tmp_path / "long", quiet=True)
    train(long.replace(iterations=6), dataset, out=tmp_path / "run", quiet=True)
    resume(tmp_path / "run", dataset, iterations=11, quiet=True)
    assert same_weights(tmp_path / "run", tmp_path / "long")
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("long", "run")]
    assert [state["position"]["plan"] for state in states] == [{"knots": ((0, 0.0), (11, 1.0))}] * 2
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["iterations"] == 11
    resume(tmp_path / "run", dataset, quiet=True)  # as it is, it is finished
    assert "run is finished; train on with: resnetkit train --resume" in (tmp_path / "run" / "log.txt").read_text()
    assert same_weights(tmp_path / "run", tmp_path / "long")


def test_a_longer_run_counts_no_plateau_for_having_ended(dataset, tmp_path):
    """It ends and is evaluated after step 6. The longer run is evaluated only after steps 4 and 8."""
    long = TINY.replace(epochs=3, schedule="plateau", plateau_patience=1, lr=1e-4)
    train(long, dataset, out=tmp_path / "long", quiet=True)
    train(long.replace(iterations=6), dataset, out=tmp_path / "run", quiet=True)
    resume(tmp_path / "run", dataset, epochs=3, quiet=True)
    rates = [
        {row["step"]: row["lr"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["part"] == "train"}
        for name in ("long", "run")
    ]
    assert rates[0] == rates[1]
    assert same_weights(tmp_path / "run", tmp_path / "long")


def test_a_run_on_the_clock_gets_more_time(dataset, tmp_path):
    train(TINY.replace(minutes=0.03), dataset, out=tmp_path / "run", quiet=True)
    steps = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]["step"]
    resume(tmp_path / "run", dataset, quiet=True)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]["step"] == steps
    with pytest.raises(UsageError, match="already; give a greater length"):
        resume(tmp_path / "run", dataset, minutes=1e-4, quiet=True)
    resume(tmp_path / "run", dataset, iterations=steps + 5, quiet=True)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]["step"] == steps + 5


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"schedule": "one-cycle", "peak_at": 0.25}, "`schedule` one-cycle"), ({"early_scale": 0.75}, "`early_scale`")],
)
def test_what_goes_by_shares_of_the_run_goes_on_as_a_longer_run_does(changes, setting, dataset, tmp_path):
    recipe = TINY.replace(iterations=6, **changes)
    train(recipe.replace(iterations=12), dataset, out=tmp_path / "whole", quiet=True)
    run = train(recipe, dataset, out=tmp_path / "run", quiet=True).run
    assert load(run / "last.safetensors").header.recipe.get("earlier_lengths") is None
    shutil.copytree(run, tmp_path / "again")
    resume(run, dataset, iterations=12, quiet=True)

    def rates(of: Path) -> dict[int, float]:
        return {row["step"]: row["lr"] for row in read_metrics(of / "metrics.jsonl") if row["part"] == "train"}

    whole, longer = rates(tmp_path / "whole"), rates(run)
    assert list(longer) == list(range(1, 13))
    assert [longer[step] for step in range(7, 13)] == pytest.approx([whole[step] for step in range(7, 13)])
    assert (longer != whole) == ("schedule" in changes), "the first six steps had the rates of the shorter run"
    text = (run / "log.txt").read_text()
    assert "going on as a run of the new length at 50 % of it" in text
    assert f"because {setting} depends on the length" in text
    lengths = [{"iterations": 6, "until_step": 6}]
    assert load(run / "last.safetensors").header.recipe["earlier_lengths"] == lengths
    assert yaml.safe_load((run / "recipe.yaml").read_text())["run"]["earlier_lengths"] == lengths
    resume(run, dataset, quiet=True)  # it is finished
    assert f"is finished; train on with: resnetkit train --resume {run} --iterations N" in (run / "log.txt").read_text()
    # The same, where the length was changed by hand, and stopped in between.
    other = tmp_path / "again"
    (other / "recipe.yaml").write_text((other / "recipe.yaml").read_text().replace("iterations: 6", "iterations: 12"))
    resume(other, dataset, quiet=True)
    assert same_weights(other, run)


def test_a_longer_run_is_stopped_and_goes_on_to_the_same_bits(dataset, tmp_path, monkeypatch):
    recipe = TINY.replace(schedule="one-cycle")
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    resume(tmp_path / "run", dataset, iterations=10, quiet=True)
    record = Monitor.record

    def recording(self, row):
        record(self, row)
        if row["step"] == 7 and self.run.path.name == "stopped":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Monitor, "record", recording)
    with pytest.raises(InterruptedTrainingError):
        resume(tmp_path / "stopped", dataset, iterations=10, quiet=True)
    monkeypatch.undo()
    resume(tmp_path / "stopped", dataset, quiet=True)
    assert same_weights(tmp_path / "stopped", tmp_path / "run")
    knots = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["position"]["plan"]["knots"]
    assert [tuple(knot) for knot in knots] == [(0, 0.0), (4, 1.0), (4, 0.4), (10, 1.0)]


def test_a_run_that_patience_stopped_gets_no_other_length(dataset, tmp_path):
    recipe = TINY.replace(iterations=40, lr=1e-9, evaluate_every=0.25, patience=1)
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    with pytest.raises(UsageError, match=r"was stopped by `patience`.*--init"):
        resume(tmp_path / "run", dataset, iterations=80, quiet=True)


@pytest.mark.parametrize("length", [{"iterations": 3}, {"iterations": 4, "epochs": 9}, {"epochs": 0.5}])
def test_a_length_that_is_behind_or_said_twice_is_refused(length, dataset, tmp_path):
    run = train(TINY, dataset, out=tmp_path / "run", quiet=True).run
    before = (run / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match=r"has done 4 steps .* give a greater length|are all lengths of the run"):
        resume(run, dataset, **length, quiet=True)
    assert (run / "recipe.yaml").read_text() == before


def test_a_run_of_an_earlier_version_goes_on(dataset, tmp_path):
    """It has epochs beside the length that holds, in its recipe and in its headers, and less about its pictures."""
    for recipe, name in ((TINY.replace(iterations=8), "whole"), (TINY, "run")):
        train(recipe, dataset, out=tmp_path / name, quiet=True)
    path = tmp_path / "run" / "recipe.yaml"
    old = yaml.safe_load(path.read_text())
    old |= {"epochs": 30.0, "minutes": None}
    old["run"] = {name: old["run"][name] for name in ("version", "precision", "computed_by", "fingerprint")}
    path.write_text(yaml.safe_dump(old))
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    state["header"] = state["header"].replace('"iterations": 4', '"iterations": 4, "epochs": 30.0, "minutes": null')
    torch.save(state, tmp_path / "run" / "state.pt")
    resume(tmp_path / "run", dataset, quiet=True)
    assert "is finished" in (tmp_path / "run" / "log.txt").read_text()
    resume(tmp_path / "run", dataset, iterations=8, quiet=True)
    assert same_weights(tmp_path / "run", tmp_path / "whole")


# By which arithmetic


def test_other_arithmetic_is_for_those_who_ask(dataset, tmp_path, monkeypatch):
    run = train(TINY, dataset, out=tmp_path / "run", quiet=True).run
    first = yaml.safe_load((run / "recipe.yaml").read_text())["run"]
    monkeypatch.setattr(runs, "arithmetic_of", lambda task: {"precision": task.precision, "computed_by": "abacus"})
    with pytest.raises(TrainingError, match=r"its computed by was \w+ and is abacus now.*--allow-other-arithmetic"):
        resume(run, dataset, quiet=True)
    resume(run, dataset, iterations=6, allow_other_arithmetic=True, quiet=True)
    assert "is abacus now; the weights differ" in (run / "log.txt").read_text()
    about = yaml.safe_load((run / "recipe.yaml").read_text())["run"]
    assert about["computed_by"] == "abacus"
    assert about["earlier_arithmetic"] == [{"computed_by": first["computed_by"], "until_step": 4}]
    resume(run, dataset, iterations=7, quiet=True)  # from now on it is by this one


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_run_goes_on_without_the_kernels(optimizer, dataset, tmp_path):
    """Everything in float32, so that both ways give nearly the same result, though not the same bits."""
    recipe = TINY.replace(optimizer=optimizer, lr=0.001, muon_lr=0.001, compile="auto")
    path = train(recipe, dataset, out=tmp_path / "run", quiet=True).run / "recipe.yaml"
    if "computed_by: kernels" not in path.read_text():
        pytest.skip("needs the kernels")
    train(recipe.replace(iterations=8), dataset, out=tmp_path / "whole", quiet=True)
    path.write_text(path.read_text().replace("compile: auto", "compile: 'off'"))
    resume(tmp_path / "run", dataset, iterations=8, allow_other_arithmetic=True, quiet=True)
    losses = [[row["loss"] for row in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "run")]
    assert losses[1][-1] == pytest.approx(losses[0][-1], rel=1e-3)


def test_a_run_goes_on_as_it_was_measured(dataset, own_cache, tmp_path, monkeypatch):
    """Even if the other way is measured to be faster now: another cache, or a busy machine."""
    recipe = TINY.replace(compile="auto")
    if library() is None:
        pytest.skip(f"the kernels are {status()}")
    monkeypatch.setattr(compute, "worth_measuring", lambda *_args, **_lengths: True)
    monkeypatch.setattr(measuring, "measure", lambda *_args, **_sizes: {"kernels": 2.0, "eager": 1.0})
    run = train(recipe, dataset, out=tmp_path / "run", quiet=True).run
    train(recipe.replace(iterations=8), dataset, out=tmp_path / "whole", quiet=True)
    monkeypatch.setattr(measuring, "measure", lambda *_args, **_sizes: {"kernels": 1.0, "eager": 2.0})
    shutil.rmtree(own_cache / "computing")
    resume(run, dataset, iterations=8, quiet=True)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["run"]["computed_by"] == "eager"
    assert same_weights(run, tmp_path / "whole")


# Sizes


def test_sizes_that_a_network_cannot_take_are_refused(dataset, tmp_path):
    for changes, words in (
        ({"size": 4}, "`size` 4: resnet20,blur=5 takes pictures of 5 pixels or more"),
        (
            {"early_scale": 0.1},
            "crops of 3 pixels by `early_scale`: resnet20,blur=5 takes pictures of 5 pixels or more",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            train(TINY.replace(model="resnet20,blur=5", **changes), dataset, out=tmp_path / "run", quiet=True)


def test_torchs_threads_and_random_numbers_stay_its_users(dataset: Dataset, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(TINY.replace(iterations=1, threads=threads + 1), dataset, out=tmp_path / "run", quiet=True)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), wanted)


def test_pictures_that_have_moved_are_given_anew(picture_folder: Path, tmp_path: Path) -> None:
    run = train(TINY.replace(**ON_FILES), picture_folder, out=tmp_path / "run", quiet=True).run
    moved = picture_folder.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"If the pictures have moved: resnetkit train --resume {run} DATA"):
        resume(run, quiet=True)
    assert resume(run, moved, quiet=True).run == run
