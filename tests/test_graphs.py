"""Where a model's graphs and its tuning are kept: found again, never another model's, made once."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.infer import graphs
from resnetkit.infer.choice import Choice
from resnetkit.infer.graphs import Tuned, find_tuned, open_source, served_graph, writable_place
from resnetkit.infer.predictor import Predictor
from resnetkit.machine import read_machine
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build

CHOICE = Choice("onnxruntime", threads=1, batch_size=4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a small model."""
    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder / "best.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    return folder


def tuned(fingerprint: str, *, choice: Choice = CHOICE, **machine: object) -> Tuned:
    here = asdict(read_machine())
    return Tuned(
        fingerprint,
        here | {"instructions": list(here["instructions"])} | machine,
        {"latency": {"choice": choice.to_dict()}},
    )


def test_places(run: Path, own_cache: Path) -> None:
    best = run / "best.safetensors"
    shutil.copy(best, run / "last.safetensors")
    shutil.copy(best, run.parent / "birds.safetensors")
    places = {
        name: open_source(name).places[0]
        for name in (run, best, run / "last.safetensors", run.parent / "birds.safetensors", "resnet20:cifar10")
    }
    assert (places[run].file, places[run].folder) == (run / "tune.json", run / "tuned")
    assert places[best] == places[run]  # the same model by another name
    assert places[run / "last.safetensors"].file == run / "last.tuned" / "tune.json"
    assert places[run.parent / "birds.safetensors"].file == run.parent / "birds.tuned" / "tune.json"
    assert places["resnet20:cifar10"].file == own_cache / "tuned" / "resnet20-cifar10" / "tune.json"
    assert len({open_source(name).fingerprint for name in places}) == 2


def test_a_folder_that_can_not_be_written(run: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(run)
    monkeypatch.setattr(graphs, "can_write", lambda folder: not folder.is_relative_to(run))
    assert writable_place(source).file.is_relative_to(own_cache)


def test_tuning_goes_through_its_file(run: Path) -> None:
    source = open_source(run)
    written = tuned(source.fingerprint)
    assert written.write(source) == run / "tune.json"
    assert find_tuned(source) == (replace(written, table=[]), source.places[0])
    assert written.choice("latency") == written.choice("throughput") == CHOICE
    assert written.fits(read_machine())
    assert json.loads((run / "tune.json").read_text())["goals"]["latency"]["choice"]["backend"] == "onnxruntime"


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
def test_a_broken_tune_file_is_left_aside(run: Path, text: str) -> None:
    (run / "tune.json").write_text(text)
    with pytest.warns(UserWarning, match=r"run/tune\.json is left aside .*; tune again"):
        assert find_tuned(open_source(run)) is None


def test_older_files_call_the_accuracy_guard(run: Path) -> None:
    source = open_source(run)
    asked = {"max_top1_loss": 0.25, "float32": {"images": 60}}
    row = {"choice": CHOICE.to_dict()}
    file = tuned(source.fingerprint).write(source)
    older = json.loads(file.read_text()) | {"guard": asked, "goals": {"latency": row | {"guard": asked}}}
    del older["accuracy"]
    file.write_text(json.dumps(older))
    found = find_tuned(source)
    assert found is not None
    assert found[0].accuracy == asked
    assert found[0].goals == {"latency": row | {"accuracy": asked}}
    assert found[0].choice("latency") == CHOICE
    found[0].write(source)
    assert '"guard"' not in file.read_text()


def test_tuning_of_other_weights_is_left_aside(run: Path) -> None:
    tuned("another").write(open_source(run))
    with pytest.warns(UserWarning, match=r"tune\.json is of other weights than .* measure again: resnetkit tune"):
        assert Predictor(run, backend="torch").choice == Choice("torch", batch_size=32)


def test_predictor_takes_what_tuning_found(run: Path) -> None:
    source = open_source(run)
    tuned(source.fingerprint).write(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Predictor(run).choice == CHOICE
        assert Predictor(run, goal="throughput").batch_size == 4
        assert Predictor(run, threads=2, batch_size=3).choice == Choice("onnxruntime", threads=2, batch_size=3)
        assert Predictor(run, backend="torch").choice.threads == 0
    tuned(source.fingerprint, processor="an abacus").write(source)
    with pytest.warns(UserWarning, match=r"was measured on another machine \(an abacus, .*resnetkit tune"):
        assert Predictor(run).choice == CHOICE


def test_integers_that_were_judged_by_other_instructions_are_not_trusted(run: Path) -> None:
    source = open_source(run)
    served_graph(source, backend="openvino")
    place = source.places[0]
    place.folder.mkdir()
    for file in graphs.cached_graphs(source.fingerprint).glob("logits.[bx]*"):
        shutil.copy(file, place.folder / f"int8-{file.name}")
    int8 = Choice("openvino", "int8", threads=1)
    tuned(source.fingerprint, choice=int8, allowed_cores=99).write(source)
    with pytest.warns(UserWarning, match=r"another machine \(.*, 99 cores\); measure this one"):
        assert Predictor(run).choice == int8
    others = [*read_machine().instructions, "another"]
    tuned(source.fingerprint, choice=int8, instructions=others).write(source)
    with pytest.warns(UserWarning, match="another machine .*, so its int8 is left aside; measure this one: resnetkit"):
        assert Predictor(run).choice == Choice("openvino", batch_size=32)


@pytest.mark.parametrize("row", [{}, {"choice": {"backend": "tpu"}}, {"choice": {"backend": "torch", "threads": "x"}}])
def test_a_choice_that_is_not_known_here_is_said(run: Path, row: dict) -> None:
    source = open_source(run)
    replace(tuned(source.fingerprint), goals={"latency": row}).write(source)
    with pytest.warns(
        UserWarning, match=r"tune\.json says nothing that can be used here; measure again: resnetkit tune"
    ):
        assert Predictor(run, may_export=False).choice == Choice("torch", batch_size=32)


def test_a_damaged_graph_is_gone_around(run: Path) -> None:
    served_graph(open_source(run), backend="openvino").with_suffix(".bin").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"openvino float32 can't be used, torch float32 is: .*Delete it, and it will be"
    ):
        assert Predictor(run).choice.backend == "torch"


def test_a_backend_that_is_gone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(run)
    tuned(source.fingerprint).write(source)
    monkeypatch.setattr("resnetkit.infer.predictor.installed", lambda name: name == "torch")
    with pytest.warns(UserWarning, match="says onnxruntime, which is not installed: pip install"):
        assert Predictor(run).choice == Choice("torch", batch_size=32)


def test_an_int8_graph_that_is_gone(run: Path) -> None:
    source = open_source(run)
    tuned(source.fingerprint, choice=Choice("openvino", "int8")).write(source)
    with pytest.warns(UserWarning, match=r"openvino int8 can't be used, openvino float32 is: .* has no int8 graph"):
        assert Predictor(run).choice == Choice("openvino", batch_size=32)
    with (
        pytest.raises(UsageError, match=r"no int8 graph that gives logits; make one .*resnetkit tune"),
    ):
        Predictor(run, backend="openvino", precision="int8")


def test_graphs_are_made_once_for_each_model(run: Path, own_cache: Path) -> None:
    source = open_source(run)
    path = served_graph(source, backend="openvino")
    assert path.is_relative_to(own_cache)
    assert path.name == "logits.xml"
    made = path.stat().st_mtime_ns
    assert served_graph(source, backend="openvino", precision="bfloat16") == path
    assert path.stat().st_mtime_ns == made
    served_graph(source, backend="onnxruntime")
    assert {file.name for file in path.parent.glob("logits.*")} >= {"logits.xml", "logits.bin", "logits.onnx"}
    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    save(run / "best.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    changed = open_source(run)
    assert changed.fingerprint != source.fingerprint
    assert not (graphs.cached_graphs(changed.fingerprint) / "logits.xml").exists()


def test_what_a_killed_process_left_is_made_anew(run: Path) -> None:
    source = open_source(run)
    folder = graphs.cached_graphs(source.fingerprint)
    folder.mkdir(parents=True)
    (folder / "logits.bin").write_bytes(b"part")
    (folder / ".logits.xml.abc").mkdir()
    assert Predictor(run).choice.backend == "openvino"
    assert not list(folder.glob(".logits.xml.*"))


def test_a_cache_that_can_not_be_written(run: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(graphs, "can_write", lambda folder: False)
    predictor = Predictor(run)
    assert predictor.choice.backend == "openvino"
    assert len(predictor(np.zeros((9, 9, 3), np.uint8))) == 2
    assert not (own_cache / "graphs").exists()


def test_no_torch_once_there_is_a_graph(run: Path, picture_folder: Path) -> None:
    """By OpenVINO and by ONNX Runtime; nor anything else that is slow to import."""
    picture = str(next(picture_folder.rglob("*.jpg")))
    for backend in ("openvino", "onnxruntime"):
        served_graph(open_source(run), backend=backend)
        code = (
            "import sys\nfrom resnetkit.cli import main\n"
            f"assert main(['predict', {str(run)!r}, {picture!r}, '--backend', {backend!r}]) == 0\n"
            "slow = ('torch', 'torchvision', 'matplotlib', 'onnx', 'nncf', 'rich')\n"
            "print([name for name in slow if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        assert "%" in done.stdout
