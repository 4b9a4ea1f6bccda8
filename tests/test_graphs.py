"""The graphs of a model in the cache: made once for each model, and never another model's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.infer import graphs
from resnetkit.infer.graphs import cached_graph
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.unloaded import find_model
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build


def test_graphs_are_made_once_for_each_model(run_folder: Path, own_cache: Path) -> None:
    model = find_model(run_folder)
    path = cached_graph(model, backend="openvino")
    assert path.is_relative_to(own_cache)
    assert path.name == "logits.xml"
    made = path.stat().st_mtime_ns
    assert cached_graph(model, backend="openvino") == path
    assert path.stat().st_mtime_ns == made
    cached_graph(model, backend="onnxruntime")
    assert {file.name for file in path.parent.glob("logits.*")} >= {"logits.xml", "logits.bin", "logits.onnx"}
    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    save(run_folder / "best.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    changed = find_model(run_folder)
    assert changed.fingerprint != model.fingerprint
    assert not (changed.graph_cache / "logits.xml").exists()


def test_what_a_killed_process_left_is_made_anew(run_folder: Path) -> None:
    model = find_model(run_folder)
    folder = model.graph_cache
    folder.mkdir(parents=True)
    (folder / "logits.bin").write_bytes(b"part")
    (folder / ".logits.xml.abc").mkdir()
    assert Predictor(run_folder).choice.backend == "openvino"
    assert not list(folder.glob(".logits.xml.*"))


def test_a_cache_that_can_not_be_written(run_folder: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(graphs, "can_write", lambda folder: False)
    predictor = Predictor(run_folder)
    assert predictor.choice.backend == "openvino"
    assert len(predictor(np.zeros((9, 9, 3), np.uint8))) == 2
    assert not (own_cache / "graphs").exists()


def test_no_torch_if_there_is_a_graph(run_folder: Path, picture_folder: Path) -> None:
    """OpenVINO and ONNX Runtime need no torch, nor any other package that is slow to import."""
    picture = str(next(picture_folder.rglob("*.jpg")))
    for backend in ("openvino", "onnxruntime"):
        cached_graph(find_model(run_folder), backend=backend)
        code = (
            "import sys\nfrom resnetkit.cli import main\n"
            f"assert main(['predict', {str(run_folder)!r}, {picture!r}, '--backend', {backend!r}]) == 0\n"
            "slow = ('torch', 'torchvision', 'matplotlib', 'onnx', 'nncf', 'rich')\n"
            "print([name for name in slow if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        assert "%" in done.stdout
