"""Models that are found but not loaded: their fingerprints, and the places for their tuning."""

import shutil
from pathlib import Path

import pytest

from resnetkit.infer import unloaded
from resnetkit.infer.unloaded import find_model


def test_places(run_folder: Path, own_cache: Path) -> None:
    best = run_folder / "best.safetensors"
    shutil.copy(best, run_folder / "last.safetensors")
    shutil.copy(best, run_folder.parent / "birds.safetensors")
    places = {
        name: find_model(name).places[0]
        for name in (
            run_folder,
            best,
            run_folder / "last.safetensors",
            run_folder.parent / "birds.safetensors",
            "resnet20:cifar10",
        )
    }
    assert (places[run_folder].file, places[run_folder].folder) == (run_folder / "tune.json", run_folder / "tuned")
    assert places[best] == places[run_folder]  # the same model by another name
    assert places[run_folder / "last.safetensors"].file == run_folder / "last.tuned" / "tune.json"
    assert places[run_folder.parent / "birds.safetensors"].file == run_folder.parent / "birds.tuned" / "tune.json"
    assert places["resnet20:cifar10"].file == own_cache / "tuned" / "resnet20-cifar10" / "tune.json"
    assert len({find_model(name).fingerprint for name in places}) == 2


def test_a_folder_that_can_not_be_written(run_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model(run_folder)
    monkeypatch.setattr(unloaded, "can_write", lambda folder: not folder.is_relative_to(run_folder))
    assert model.writable_place().file.is_relative_to(own_cache)
