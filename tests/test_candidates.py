"""The ways to compute a model that a Predictor tries: what tuning found, unless it can't be used here."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from resnetkit.infer.choice import Choice
from resnetkit.infer.graphs import cached_graph
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.unloaded import find_model
from resnetkit.machine import read_machine
from tunings import CHOICE, tuned


def test_tuning_of_other_weights_is_not_used(run_folder: Path) -> None:
    tuned("another").write(find_model(run_folder))
    with pytest.warns(
        UserWarning,
        match=r"tune\.json is not used: it was measured with other weights than .* now; measure again: resnetkit tune",
    ):
        assert Predictor(run_folder, backend="torch").choice == Choice("torch", batch_size=32)


def test_predictor_uses_the_choice_of_tuning(run_folder: Path) -> None:
    model = find_model(run_folder)
    tuned(model.fingerprint).write(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Predictor(run_folder).choice == CHOICE
        assert Predictor(run_folder, goal="throughput").batch_size == 4
        assert Predictor(run_folder, threads=2, batch_size=3).choice == Choice("onnxruntime", threads=2, batch_size=3)
        assert Predictor(run_folder, backend="torch").choice.threads == 0
    tuned(model.fingerprint, processor="an abacus").write(model)
    with pytest.warns(UserWarning, match=r"was measured on another machine \(an abacus, .*resnetkit tune") as caught:
        assert Predictor(run_folder).choice == CHOICE
    assert caught[0].filename == __file__  # the warning names the line that made the Predictor


def test_integers_that_were_judged_by_other_instructions_are_not_trusted(run_folder: Path) -> None:
    model = find_model(run_folder)
    cached_graph(model, backend="openvino")
    place = model.places[0]
    place.folder.mkdir()
    for file in model.graph_cache.glob("logits.[bx]*"):
        shutil.copy(file, place.folder / f"int8-{file.name}")
    int8 = Choice("openvino", "int8", threads=1)
    tuned(model.fingerprint, choice=int8, allowed_cores=99).write(model)
    with pytest.warns(UserWarning, match=r"another machine \(.*, 99 cores\); measure on this machine"):
        assert Predictor(run_folder).choice == int8
    others = [*read_machine().instructions, "another"]
    tuned(model.fingerprint, choice=int8, instructions=others).write(model)
    with pytest.warns(
        UserWarning, match="another machine .*, so its int8 graph is not used; measure on this machine: resnetkit"
    ):
        assert Predictor(run_folder).choice == Choice("openvino", batch_size=32)


@pytest.mark.parametrize("row", [{}, {"choice": {"backend": "tpu"}}, {"choice": {"backend": "torch", "threads": "x"}}])
def test_a_choice_of_a_later_version_is_not_used(run_folder: Path, row: dict) -> None:
    model = find_model(run_folder)
    replace(tuned(model.fingerprint), goals={"latency": row}).write(model)
    with pytest.warns(
        UserWarning, match=r"tune\.json contains no choice that can be used here; measure again: resnetkit tune"
    ):
        assert Predictor(run_folder, may_export=False).choice == Choice("torch", batch_size=32)


def test_a_backend_that_is_not_installed_any_more(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model(run_folder)
    tuned(model.fingerprint).write(model)
    monkeypatch.setattr("resnetkit.infer.candidates.installed", lambda name: name == "torch")
    with pytest.warns(UserWarning, match="names onnxruntime, which is not installed: pip install"):
        assert Predictor(run_folder).choice == Choice("torch", batch_size=32)
