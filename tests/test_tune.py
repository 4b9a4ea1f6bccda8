"""Tuning: the fastest choice that keeps the accuracy."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.infer.choice import Choice, Goal
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict
from resnetkit.infer.quantizing.quantize import quantize, quantize_for_speed
from resnetkit.infer.tuning import measurement
from resnetkit.infer.tuning import tune as module
from resnetkit.infer.tuning.record import find_int8_graph, find_tuned
from resnetkit.infer.tuning.tune import tune
from resnetkit.infer.unloaded import find_model
from resnetkit.machine import read_machine
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build

pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """The file of an untrained 8-layer network with CIFAR-10's classes."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1)).eval()
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    path = tmp_path / "net.safetensors"
    save(path, net, Header(net.spec, Preprocess(size=32), classes))
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for all tests of this file, so that graphs are made once. Results are next to the model file."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(autouse=True)
def short(own_cache: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measurements short, so that their numbers mean nothing, and leave out the first trial of int8."""
    monkeypatch.setattr(module, "quantize_for_speed", lambda *_: None)
    monkeypatch.setattr(module, "slower_int8", lambda *_: None)
    monkeypatch.setenv("RESNETKIT_CACHE", str(graphs))
    monkeypatch.setattr(measurement, "SECONDS", 0.001)
    monkeypatch.setattr(module, "ROUNDS", 2)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """Replace rates: torch is slow, int8 beats bfloat16, and larger batches are faster. Return measured choices."""
    choices: list[Choice] = []

    def rate(backend: object, one: measurement.Measured, pixels: np.ndarray) -> float:
        choices.append(one.choice)
        by_precision = {"float32": 80, "bfloat16": 90, "int8": 100}[one.choice.precision]
        return by_precision * (0.1 if one.choice.backend == "torch" else 1) + one.choice.batch_size

    monkeypatch.setattr(measurement, "_rate", rate)
    return choices


def forced(monkeypatch: pytest.MonkeyPatch, passing: Callable[[int], bool]) -> None:
    """Let `passing` decide by the number of a judgement whether it passes; float32's number is 0."""
    count = iter(range(99))
    monkeypatch.setattr(
        AccuracyCheck, "judge", lambda _, logits: Verdict(60, 99.0, None, None, 0.1, 0.2, passing(next(count)))
    )


def test_keeps_the_fastest_choice_and_predictor_uses_it(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, lambda number: True)
    lines: list[str] = []
    tuned = tune(model_file, str(split_folder), quick=True, say=lines.append)
    model = find_model(model_file)
    assert find_tuned(model) == (tuned, model.places[0])
    best = {goal: Choice.from_dict(found["choice"]) for goal, found in tuned.goals.items()}
    assert (best["latency"].backend, best["latency"].precision, best["latency"].batch_size) == ("openvino", "int8", 1)
    assert (best["throughput"].precision, best["throughput"].batch_size) == ("int8", max(measurement.BATCHES))
    assert tuned.goals["throughput"]["images_per_second"] == 100 + max(measurement.BATCHES)
    assert (model_file.with_suffix(".tuned") / "int8-logits.xml").is_file()
    assert "int8: 0 of 8 layers are in float" in lines
    assert Predictor(model_file).choice == best["latency"]
    assert Predictor(model_file, goal="throughput").choice == best["throughput"]
    assert not list(model_file.parent.rglob(".tuning-*"))


def test_what_is_slow_is_measured_once(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, lambda number: True)
    tuned = tune(model_file, str(split_folder), goal="throughput", quick=True)
    slow = [choice for choice in rates if choice.backend == "torch"]
    assert len(slow) == len(set(slow)) == len([row for row in tuned.table if row["choice"]["backend"] == "torch"]) > 0
    assert [row["rounds"] for row in tuned.table if row["choice"]["backend"] == "torch"] == [1] * len(slow)
    assert {row["goal"] for row in tuned.table} == set(tuned.goals) == {"throughput"}


def test_a_precision_that_loses_accuracy_is_not_measured(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, lambda number: False)
    lines: list[str] = []
    tuned = tune(model_file, str(split_folder), quick=True, say=lines.append)
    assert {row["choice"]["precision"] for row in tuned.table} == {"float32"}
    assert tuned.goals["latency"]["choice"]["precision"] == "float32"
    assert not (model_file.with_suffix(".tuned") / "int8-logits.xml").exists()
    assert any(line.startswith("int8: ") and line.endswith("so it is left out") for line in lines)
    assert tuned.accuracy["int8"]["passes"] is False


@pytest.mark.parametrize("slow", [True, False])
def test_int8_is_quantized_only_if_its_first_trial_is_the_fastest(
    model_file: Path, split_folder: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    forced(monkeypatch, lambda number: True)
    monkeypatch.setattr(module, "quantize_for_speed", quantize_for_speed)
    monkeypatch.setattr(module, "slower_int8", measurement.slower_int8)
    calls: list[tuple[str, str]] = []

    def rate(backend: object, one: measurement.Measured, pixels: np.ndarray) -> float:
        calls.append((one.goal, one.choice.precision))
        return 50.0 if one.choice.precision == "int8" and (slow or one.goal == "latency") else 60 - len(calls)

    monkeypatch.setattr(measurement, "_rate", rate)
    made: list[Path] = []
    monkeypatch.setattr(module, "quantize", lambda *given, **_: made.append(given[1]) or quantize(*given, **_))
    lines: list[str] = []
    tuned = tune(model_file, str(split_folder), quick=True, say=lines.append)
    assert len(made) == (not slow)
    assert ("int8" in tuned.accuracy) == (not slow)
    measured = {row["choice"]["precision"] for row in tuned.table}
    assert ("int8" in measured) == (not slow)
    why = [line for line in lines if line.startswith("int8 is left out: a first trial made 50.0 images/s, and ")]
    assert len(why) == slow
    assert not list(model_file.with_suffix(".tuned").glob("*.xml")) or not slow


def test_tuning_says_how_long_it_takes(model_file: Path, rates: list[Choice]) -> None:
    lines: list[str] = []
    tune(model_file, goal="latency", quick=True, say=lines.append)
    assert any(line.startswith("expected to take about ") and line.endswith(" seconds") for line in lines)
    assert lines[-1].startswith("took about ")
    assert any("on 16 pictures can't exclude a loss of 17 points" in line for line in lines)


def test_too_few_pictures_are_named_as_the_reason() -> None:
    shown = {"expected_loss": 0.2, "highest_loss": 0.7, "passes": False}
    verdict = Verdict(50, 99.0, None, None, **shown)
    assert "so few pictures can't show that it loses at most 0.5 points" in module._outcome(verdict, 0.5)
    assert "too much accuracy" in module._outcome(replace(verdict, expected_loss=0.6), 0.5)
    assert module._outcome(replace(verdict, passes=True), 0.5) == ""


def test_long_batches_are_not_measured(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = measurement.Trial(find_model(model_file), read_machine(), model_file.parent, lambda line: None)
    monkeypatch.setattr(measurement, "_rate_of_calls", lambda call: 10.0)  # a tenth of a second for a picture
    fitting = [(size, streams) for size in measurement.BATCHES for streams in (1, 2) if trial.fits(size, streams)]
    assert fitting == [(4, 1), (4, 2), (16, 1)]


def test_rounds_end_with_the_budget_or_with_one_choice_left(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raced(rates: dict[int, float], budget: float) -> list[int]:
        trial = measurement.Trial(find_model(model_file), read_machine(), model_file.parent, lambda line: None)
        monkeypatch.setattr(measurement, "BUDGET", budget)
        monkeypatch.setattr(measurement, "_rate", lambda backend, one, pixels: rates[one.choice.batch_size])
        choices = [measurement.Measured("throughput", Choice("openvino", batch_size=size)) for size in rates]
        measurement._race(trial, choices, np.zeros((4, 32, 32, 3), np.uint8), keep=0.9, rounds=5)
        return [len(one.rates) for one in choices]

    assert raced({1: 10, 2: 11}, budget=100) == [5, 5]
    assert raced({1: 10, 2: 11}, budget=0) == [2, 2]
    assert raced({1: 10, 2: 20}, budget=100) == [1, 2]


def files(model_file: Path) -> dict[str, bytes]:
    """Return the contents of the files that tuning keeps next to a model file."""
    return {path.name: path.read_bytes() for path in model_file.with_suffix(".tuned").iterdir()}


def test_each_goal_keeps_what_was_found_for_it(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice, the graph and the accuracy are kept, also if the next run makes no int8 graph or another one."""
    forced(monkeypatch, lambda number: True)
    first = tune(model_file, str(split_folder), goal="latency", quick=True)
    graph = files(model_file)["int8-logits.bin"]
    lines: list[str] = []
    second = tune(model_file, goal="throughput", quick=True, say=lines.append)  # without pictures: no integers
    assert second.goals["latency"] == {**first.goals["latency"], "accuracy": first.accuracy}
    assert second.goals["throughput"]["choice"]["precision"] != "int8"
    assert second.goals["throughput"]["graph"] is None
    assert files(model_file)["int8-logits.bin"] == graph
    assert f"latency: {Choice.from_dict(first.goals['latency']['choice'])} is kept from an earlier run" in lines
    assert {row["goal"] for row in second.table} == {"latency", "throughput"}
    assert Predictor(model_file).choice == Choice.from_dict(first.goals["latency"]["choice"])
    assert Predictor(model_file, goal="throughput").choice == Choice.from_dict(second.goals["throughput"]["choice"])

    third = tune(model_file, str(split_folder / "test"), goal="throughput", max_top1_loss=9, quick=True)
    assert third.goals["latency"] == second.goals["latency"]
    assert third.goals["throughput"]["graph"] == "int8-logits-2.xml"
    assert set(files(model_file)) == {
        "tune.json",
        *(f"int8-logits{number}{suffix}" for number in ("", "-2") for suffix in (".xml", ".bin")),
    }
    model = find_model(model_file)
    served = {goal: find_int8_graph(model, goal) for goal in get_args(Goal)}
    assert {goal: path.name for goal, path in served.items()} == {
        "latency": "int8-logits.xml",
        "throughput": "int8-logits-2.xml",
    }
    assert files(model_file)["int8-logits.bin"] == graph

    tune(model_file, str(split_folder), quick=True)
    assert set(files(model_file)) == {"tune.json", "int8-logits-3.xml", "int8-logits-3.bin"}


@pytest.mark.parametrize(
    "fault", ["refused", "gone", *(pytest.param(name, marks=pytest.mark.slow) for name in ("machine", "weights"))]
)
def test_what_does_not_hold_any_more_is_not_kept(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    forced(monkeypatch, lambda number: True)
    tune(model_file, str(split_folder), goal="latency", quick=True)
    tune_file = model_file.with_suffix(".tuned") / "tune.json"
    if fault == "refused":
        forced(monkeypatch, lambda number: False)
    if fault == "gone":
        tune_file.with_name("int8-logits.xml").unlink()
    if fault == "machine":
        values = json.loads(tune_file.read_text())
        tune_file.write_text(json.dumps(values | {"machine": values["machine"] | {"processor": "an abacus"}}))
    if fault == "weights":
        net = build("resnet20", depths=(1, 1, 1)).eval()
        save(model_file, net, Header(net.spec, Preprocess(size=32), find_model(model_file).header.classes))
    lines: list[str] = []
    tuned = tune(model_file, str(split_folder), goal="throughput", quick=True, say=lines.append)
    assert set(tuned.goals) == {"throughput"}
    said = {"refused": "is dropped: ", "gone": "its graph is missing", "machine": "of another machine is dropped"}
    if fault in said:
        assert any(line.startswith("latency: ") and said[fault] in line for line in lines)
    graph = tuned.goals["throughput"]["graph"]
    assert {name for name in files(model_file) if name.endswith(".xml")} == ({graph} if graph else set())
    assert Predictor(model_file).choice == Choice.from_dict(tuned.goals["throughput"]["choice"])


def test_fewer_pictures_do_not_overrule_more(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, lambda number: True)
    first = tune(model_file, str(split_folder), goal="latency", quick=True)
    forced(monkeypatch, lambda number: False)
    tuned = tune(model_file, goal="throughput", quick=True)  # judged by the 16 that come with the package
    assert tuned.goals["latency"]["choice"] == first.goals["latency"]["choice"]


def test_a_crash_before_the_end_leaves_each_choice_its_graph(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(monkeypatch, lambda number: True)
    tune(model_file, str(split_folder), quick=True)
    before = files(model_file)

    def crash(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Tuned, "write", crash)
    with pytest.raises(KeyboardInterrupt):
        tune(model_file, str(split_folder), quick=True)
    assert {name: files(model_file)[name] for name in before} == before
    assert Predictor(model_file).choice.precision == "int8"


@pytest.mark.slow
def test_the_accuracy_is_measured_on_labels(split_folder: Path) -> None:
    tuned = tune("resnet20:cifar10", str(split_folder), goal="latency", max_top1_loss=2, quick=True)
    assert tuned.accuracy["float32"]["top1_error_percent"] <= 15
    assert tuned.accuracy["int8"]["top1_loss"] <= 2
    assert tuned.accuracy["int8"]["agreement_percent"] >= 90
    assert tuned.accuracy["float32"]["images"] == 60


def test_without_pictures_there_are_no_integers(model_file: Path, rates: list[Choice]) -> None:
    lines: list[str] = []
    folder = model_file.with_suffix(".tuned")
    folder.mkdir()
    for suffix in (".xml", ".bin"):
        (folder / f"int8-logits{suffix}").write_text("of other weights")
    tuned = tune(model_file, goal="latency", quick=True, say=lines.append)
    assert [file.name for file in folder.iterdir()] == ["tune.json"]
    assert any("int8 is left out: it needs pictures" in line for line in lines)
    assert "int8" not in {choice.precision for choice in rates}
    assert tuned.accuracy["float32"]["images"] == 16


def test_an_interruption_leaves_what_was_kept(
    model_file: Path, split_folder: Path, rates: list[Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(model_file, goal="latency", quick=True)
    kept = {path: path.read_bytes() for path in model_file.with_suffix(".tuned").iterdir()}

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(model_file, str(split_folder), quick=True)
    assert {path: path.read_bytes() for path in model_file.with_suffix(".tuned").iterdir()} == kept


def test_the_machine_is_kept(model_file: Path, rates: list[Choice]) -> None:
    tune(model_file, goal="latency", quick=True)
    found = find_tuned(find_model(model_file))
    assert found is not None
    assert found[0].fits(read_machine())


def test_prints_one_json_document(model_file: Path, rates: list[Choice], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(model_file), "--goal", "latency", "--quick", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["goals"]["latency"]["choice"]["backend"] in ("openvino", "onnxruntime")
    assert document["accuracy"]["float32"]["images"] == 16
    assert "guard" not in document


def test_prints_a_table(model_file: Path, rates: list[Choice], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(model_file), "--goal=latency", "--quick"]) == 0
    printed = capsys.readouterr()
    header, *rows = printed.out.splitlines()
    assert header.split() == ["goal", "backend", "precision", "threads", "streams", "batch", "images/s", "ms"]
    assert [row.endswith("chosen") for row in rows] == [True] + [False] * (len(rows) - 1)
    assert "judged by 16 pictures that come with the package" in printed.err


def test_wrong_use(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(model_file), "--goal", "speed"]) == 2
    assert "--goal takes latency, throughput, both, not speed" in capsys.readouterr().err
    with pytest.raises(UsageError, match="`max_top1_loss` is -1"):
        tune(model_file, max_top1_loss=-1)
