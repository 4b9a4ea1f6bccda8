"""Every backend gives the outputs of the plain network, for any batch, in single calls and in a stream."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.infer.backends.backend import FEW_CLASSES, Backend, most_probable
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import GRAPHS, Choice
from resnetkit.infer.graphs import export_graph
from resnetkit.modelfile import Header, Model
from resnetkit.models.resnet import build

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.2)
OUTPUTS = ("logits", "pool", "c5")


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3).train()
    with torch.no_grad():
        net(torch.randn(16, 3, 32, 32))
    return Model(net.eval(), Header(net.spec, Preprocess(size=32, mean=MEAN, std=STD), ("cat", "frog", "ship")))


@pytest.fixture(scope="module")
def pixels(cifar_subset: tuple[Samples, Samples]) -> np.ndarray:
    images = cifar_subset[1].images
    assert images is not None
    return images[::10]


@pytest.fixture(scope="module")
def expected(model: Model, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Each output of the plain network for (x / 255 - mean) / std."""
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        last = model.net.features(images)[-1]
        return {"logits": model.net(images).numpy(), "pool": last.mean((2, 3)).numpy(), "c5": last.numpy()}


@pytest.fixture(scope="module")
def graphs(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("graphs")
    made = {}
    for backend in GRAPHS:
        pytest.importorskip(backend)
        for output in OUTPUTS:
            made[backend, output] = export_graph(model, folder, backend=backend, output=output)
    return made


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("backend", ["torch", *GRAPHS])
def test_computes_what_the_network_computes(backend, output, model, graphs, pixels, expected) -> None:
    source = graphs[backend, output] if backend in GRAPHS else model
    computed = open_backend(Choice(backend), source, output=output)
    for count in (12, 1, 5):
        values = computed(pixels[:count])
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[output][:count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("backend", ["torch", *GRAPHS])
def test_streams_in_order(backend, streams, model, graphs, pixels, expected) -> None:
    choice = Choice(backend, streams=streams, threads=2)
    compute = open_backend(choice, graphs[backend, "logits"] if backend in GRAPHS else model)
    batches = [pixels[:5], pixels[5:6], pixels[6:], *(pixels[i : i + 1] for i in range(12))]
    results = list(compute.stream(iter(batches)))
    assert [len(values) for values in results] == [len(batch) for batch in batches]
    np.testing.assert_allclose(np.concatenate(results), np.tile(expected["logits"], (2, 1)), atol=1e-5)
    assert list(compute.stream(iter([]))) == []


@pytest.mark.parametrize("backend", ["torch", *GRAPHS])
def test_a_stream_takes_no_more_than_it_needs(backend, model, graphs, pixels) -> None:
    compute = open_backend(Choice(backend, streams=1), graphs[backend, "logits"] if backend in GRAPHS else model)
    taken = []

    def batches() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            yield pixels[:2]

    stream = compute.stream(batches())
    for done in range(1, 4):
        next(stream)
        assert len(taken) <= done + 1
    stream.close()
    assert compute(pixels).shape == (12, 3)  # and can be used again


@pytest.mark.parametrize(("backend", "gap"), [("torch", 0.05), ("openvino", 0.05)])
def test_bfloat16_is_near(backend, gap, model, graphs, pixels, expected) -> None:
    source = graphs[backend, "logits"] if backend in GRAPHS else model
    values = open_backend(Choice(backend, "bfloat16"), source)(pixels)
    assert np.abs(values - expected["logits"]).max() < gap * expected["logits"].std()


def test_openvino_is_told_the_precision(graphs: dict[tuple[str, str], Path]) -> None:
    """Without the hint, it uses bfloat16 on processors that multiply it fast."""
    network = open_backend(Choice("openvino", threads=1, streams=1), graphs["openvino", "logits"])._network
    assert network.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert network.get_property("INFERENCE_NUM_THREADS") == 1
    assert network.get_property("NUM_STREAMS") == 1


def test_what_is_compiled_is_kept(graphs: dict[tuple[str, str], Path], tmp_path: Path, pixels: np.ndarray) -> None:
    first, second = (
        open_backend(Choice("openvino"), graphs["openvino", "logits"], cache=tmp_path / "compiled") for _ in range(2)
    )
    assert not first._network.get_property("LOADED_FROM_CACHE")
    assert second._network.get_property("LOADED_FROM_CACHE")
    np.testing.assert_array_equal(first(pixels), second(pixels))


def test_inputs_stay_as_they_are(model: Model, graphs: dict[tuple[str, str], Path], pixels: np.ndarray) -> None:
    compute: Backend = open_backend(Choice("openvino"), graphs["openvino", "logits"])
    turned = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]  # not contiguous, and pixels can't be written
    np.testing.assert_array_equal(compute(turned), compute(pixels))
    first = compute(pixels[:1])
    kept = first.copy()
    compute(pixels[1:2])
    np.testing.assert_array_equal(first, kept)


def test_wrong_sources(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("<net>")
    with pytest.raises(ModelFileError, match=r"broken\.xml can't be computed by OpenVINO"):
        open_backend(Choice("openvino"), broken)
    with pytest.raises(ModelFileError, match=r"broken\.xml can't be computed by ONNX Runtime"):
        open_backend(Choice("onnxruntime"), broken)
    with pytest.raises(UsageError, match="torch computes a model, not the graph"):
        open_backend(Choice("torch"), broken)
    with pytest.raises(UsageError, match="onnxruntime computes a graph, not a model"):
        open_backend(Choice("onnxruntime"), model)
    monkeypatch.setattr("resnetkit.infer.choice.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"`backend` is openvino, but openvino is not installed; pip install 'resnetkit"
    ):
        open_backend(Choice("openvino"), broken)


@pytest.mark.slow
def test_inductor(model: Model, pixels: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    compute = open_backend(Choice("inductor", batch_size=8), model)
    for count in (12, 3):  # more than a batch, and less
        np.testing.assert_allclose(compute(pixels[:count]), expected["logits"][:count], atol=1e-5)


INTERRUPTED = """
import faulthandler, gc, signal, sys
from pathlib import Path
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import Choice
from resnetkit.infer.exports.formats import FILE_FORMATS

faulthandler.enable()  # as pytest and services do
choice = Choice("openvino")
first = open_backend(choice, Path(sys.argv[1]), cache=Path(sys.argv[2]))
second = FILE_FORMATS["openvino"].open(Path(sys.argv[1]))
third = open_backend(choice, Path(sys.argv[1]), cache=Path(sys.argv[2]))
del first
gc.collect()
del second, third
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.raise_signal(signal.SIGTERM)
"""


def test_signals_are_handled_after_graphs_have_come_and_gone(
    graphs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    """With more than one openvino.Core, the process would keep a stack for signal handlers in freed memory."""
    command = [sys.executable, "-c", INTERRUPTED, str(graphs["openvino", "logits"]), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 7


@pytest.mark.parametrize("classes", [3, FEW_CLASSES - 1, FEW_CLASSES, 1000])
@pytest.mark.parametrize("top", [1, 5, 1000])
def test_the_most_probable_classes_are_those_of_a_stable_sort(classes: int, top: int) -> None:
    """Also with equal probabilities, of which many are 0, and for outputs that are not numbers."""
    drawn = np.random.default_rng(0).random((20, classes), np.float32)
    rows = np.concatenate([drawn, drawn.round(1), np.where(drawn < 0.99, np.float32(0), drawn), drawn[:1] * np.nan])
    expected = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    np.testing.assert_array_equal(most_probable(rows, top), expected)
