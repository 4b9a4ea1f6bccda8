"""tune.json: written, read, and not used if it is broken."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from resnetkit.infer.tuning.record import find_tuned
from resnetkit.infer.unloaded import find_model
from resnetkit.machine import read_machine
from tunings import CHOICE, tuned


def test_tuning_goes_through_its_file(run_folder: Path) -> None:
    model = find_model(run_folder)
    written = tuned(model.fingerprint)
    assert written.write(model) == run_folder / "tune.json"
    assert find_tuned(model) == (replace(written, table=[]), model.places[0])
    assert written.choice("latency") == written.choice("throughput") == CHOICE
    assert written.fits(read_machine())
    assert json.loads((run_folder / "tune.json").read_text())["goals"]["latency"]["choice"]["backend"] == "onnxruntime"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format_version": 99}',
        '{"format_version": 1}',
        '{"format_version": 1, "fingerprint": "", "machine": {}, "goals": {"latency": 3}}',
    ],
)
def test_a_broken_tune_file_is_not_used(run_folder: Path, text: str) -> None:
    (run_folder / "tune.json").write_text(text)
    with pytest.warns(UserWarning, match=r"run/tune\.json is not used \(.*\); tune again"):
        assert find_tuned(find_model(run_folder)) is None


def test_older_files_have_guard_for_accuracy(run_folder: Path) -> None:
    model = find_model(run_folder)
    asked = {"max_top1_loss": 0.25, "float32": {"images": 60}}
    row = {"choice": CHOICE.to_dict()}
    file = tuned(model.fingerprint).write(model)
    older = json.loads(file.read_text()) | {"guard": asked, "goals": {"latency": row | {"guard": asked}}}
    del older["accuracy"]
    file.write_text(json.dumps(older))
    found = find_tuned(model)
    assert found is not None
    assert found[0].accuracy == asked
    assert found[0].goals == {"latency": row | {"accuracy": asked}}
    assert found[0].choice("latency") == CHOICE
    found[0].write(model)
    assert '"guard"' not in file.read_text()
