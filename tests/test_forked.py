"""Predictors in forked and spawned processes: they predict, or raise an error without waiting."""

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.forked import apart, is_forked
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import Header, Model, save
from resnetkit.models.resnet import build

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
TOO_LONG = 120  # seconds: what waits for threads that are not there waits for ever

FORKED = r"""
import json, multiprocessing, os, sys, warnings
import numpy as np
from resnetkit.infer.predictor import Predictor

model, backend, how, picture = sys.argv[1:]
def say(line):  # in one piece, however Python buffers: two processes speak at once
    os.write(1, f"{line}\n".encode())

warnings.showwarning = lambda message, *_: say(f"warned: {message}")
stated = {} if backend == "any" else {"backend": backend}
pictures = list(np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8))
predictor = Predictor(model, **stated)
expected = predictor.probabilities(pictures) if how != "unused" else None
if how == "gone":  # whose threads the runtime keeps for the next of its kind
    del predictor

def answer(number):
    try:
        own = predictor if how != "gone" else Predictor(model, **stated)
        found = own.probabilities(pictures)
        assert own.probabilities(pictures[number]).shape == (1, 3)
        assert own.features(pictures[0]).shape == (1, 64)
        if expected is not None:
            np.testing.assert_allclose(found, expected, atol=1e-5)
        best = int(found[0].argmax())
        assert own.explain(pictures[0]).index == best
        rows = list(own.predict_paths([picture, picture], workers=2))
        assert [row["predictions"][0]["index"] for row in rows] == [best] * 2, rows
        return own.choice.backend
    except Exception as error:
        return f"{type(error).__name__}: {error}"

with multiprocessing.get_context("fork").Pool(2) as pool:
    say(json.dumps(pool.map(answer, range(2), chunksize=1)))
if (child := os.fork()) == 0:
    say(json.dumps(answer(0)))
    # As a program ends, and not as multiprocessing ends its own. Where onnxruntime was imported, none ends so.
    os._exit(0) if backend == "onnxruntime" else sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
if how != "gone":
    assert predictor.probabilities(pictures).shape == (40, 3)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3).eval()
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save(path, net, Header(net.spec, Preprocess(size=64), ("cat", "frog", "ship")))
    return path


def said(program: str, *arguments: object) -> list[str]:
    """Return the output of a program of several processes, which compute with threads. All of them are ended."""
    threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=threads, start_new_session=True)
    try:
        out, _ = running.communicate(timeout=TOO_LONG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, out
    return out.splitlines()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the program's first picture."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["used", "unused", "gone"])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.sampled(5)
def test_a_forked_process_predicts(model: Path, picture: Path, backend: str, how: str) -> None:
    if backend == "onnxruntime":
        pytest.importorskip(backend)
    assert said(FORKED, model, backend, how, picture) == [f'["{backend}", "{backend}"]', f'"{backend}"']


@pytest.mark.parametrize("how", ["used", "gone"])
def test_where_openvino_was_stated_a_forked_process_says_why_not(model: Path, picture: Path, how: str) -> None:
    pytest.importorskip("openvino")
    for line in said(FORKED, model, "openvino", how, picture):
        assert "UsageError: OpenVINO can't compute in a process that was forked from one that had used it" in line
        assert "multiprocessing's spawn" in line


@pytest.mark.slow
@pytest.mark.parametrize("how", ["used", "unused", "gone"])
@pytest.mark.sampled(3)
def test_else_torch_takes_its_place_and_that_is_said(model: Path, picture: Path, how: str) -> None:
    pytest.importorskip("openvino")
    lines = said(FORKED, model, "any", how, picture)
    warned = [line for line in lines if line.startswith("warned:")]
    assert len(warned) == 3
    assert all(
        "openvino float32 can't be used, so torch float32 is used: OpenVINO can't compute" in line for line in warned
    )
    assert [line for line in lines if line not in warned] == ['["torch", "torch"]', '"torch"']


SPAWNED = """
import multiprocessing, sys, warnings
import numpy as np
from resnetkit.infer.predictor import Predictor

if __name__ == "__main__":
    predictor = Predictor(sys.argv[1], batch_size=3)
    picture = np.zeros((64, 64, 3), np.uint8)
    here = predictor.probabilities(picture)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(predictor.probabilities, [picture])
    print(np.array_equal(here, there))
"""


def test_a_spawned_process_gets_one_of_its_own(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "spawned.py"
    program.write_text(SPAWNED)
    assert said(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", model) == ["True"]


@pytest.mark.parametrize("in_memory", [False, True])
def test_goes_through_pickle(model: Path, in_memory: bool) -> None:
    opened = Predictor(model, backend="torch")
    given = Predictor(opened.model if in_memory else model, backend="torch", batch_size=5, output="pool")
    copy = pickle.loads(pickle.dumps(given))
    assert (copy.choice, copy.batch_size, copy.classes) == (given.choice, 5, ("cat", "frog", "ship"))
    assert list(copy._session._here.backends) == ["pool"]
    picture = np.zeros((9, 9, 3), np.uint8)
    np.testing.assert_array_equal(copy.logits(picture), opened.logits(picture))


def test_many_threads_open_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first calls for an output and for the model may be made at the same time."""
    predictor = Predictor(model, backend="torch")
    loaded, got = [], []
    load = "resnetkit.infer.session.load"
    monkeypatch.setattr(load, lambda name: loaded.append(name) or Model(net, predictor._given.header))
    net = build("resnet20", depths=(1, 1, 1), classes=3).eval()
    predictor._session._loaded = None
    together = Barrier(8)

    def ask() -> None:
        together.wait()
        got.append((id(predictor.backend_for("c5")), id(predictor.model)))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == len(loaded) == 1


def test_work_stays_in_its_thread_where_nothing_was_forked() -> None:
    assert not is_forked()
    assert apart(lambda: os.getpid()) == os.getpid()
