"""The accuracy of 8-bit integers, with the network and the pictures of the package."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.samples import Samples
from resnetkit.errors import UsageError
from resnetkit.files import HEADER_KEY
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.exports.export import export
from resnetkit.infer.quantizing import quantize as module
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict
from resnetkit.infer.quantizing.quantize import quantize, rank_by_noise
from resnetkit.modelfile import Header

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 graph of a trained ResNet-20, with 20 layers."""
    path = tmp_path_factory.mktemp("graph") / "logits.xml"
    return export("resnet20:cifar10", path, to="openvino", with_preprocess=True, output="logits").path


@pytest.fixture
def calibration(cifar_subset: tuple[Samples, Samples]) -> np.ndarray:
    """32 training pictures."""
    images = cifar_subset[0].images
    assert images is not None
    return images[::9][:32]


def compute(graph: Path, pixels: np.ndarray) -> np.ndarray:
    return openvino_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)[0]


def verdict(passes: bool) -> Verdict:
    return Verdict(120, 0.0, None, None, 0.0, 0.0, passes)


def after(tries: int) -> Callable[[Path], Verdict]:
    """Return a judge that accepts the graph after so many others."""
    seen: list[Path] = []

    def judge(graph: Path) -> Verdict:
        seen.append(graph)
        return verdict(len(seen) > tries)

    return judge


def eight_bit_weights(graph: Path) -> int:
    """Return the number of layers with weights in 8 bits."""
    nodes = openvino_core().read_model(graph).get_ops()
    return sum(node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8 for node in nodes)


def test_integers_keep_the_accuracy(
    graph: Path, calibration: np.ndarray, cifar_subset: tuple[Samples, Samples], tmp_path: Path
) -> None:
    test = cifar_subset[1]
    assert test.images is not None
    images = test.images
    check = AccuracyCheck.of(compute(graph, images), test.labels, max_top1_loss=2)
    made = quantize(graph, tmp_path / "int8.xml", calibration, lambda path: check.judge(compute(path, images)))
    assert check.labels is not None
    assert (made.layers, made.layers_in_float, made.verdict.passes) == (20, (), True)
    assert made.verdict.agreement_percent >= 95
    assert eight_bit_weights(tmp_path / "int8.xml") >= 20
    assert (tmp_path / "int8.bin").stat().st_size < graph.with_suffix(".bin").stat().st_size / 3
    rt_info = openvino_core().read_model(tmp_path / "int8.xml").get_rt_info([HEADER_KEY]).astype(str)
    assert Header.from_json(rt_info, source="int8.xml").classes[3] == "cat"


def test_layers_go_back_to_float_until_it_passes(graph: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    lines: list[str] = []
    all_eight = quantize(graph, tmp_path / "all.xml", calibration[:8], after(0))
    some = quantize(graph, tmp_path / "some.xml", calibration[:8], after(3), say=lines.append)
    assert (len(all_eight.layers_in_float), len(some.layers_in_float)) == (0, 4)
    assert eight_bit_weights(tmp_path / "all.xml") - eight_bit_weights(tmp_path / "some.xml") == 4
    assert [line.split(":")[0] for line in lines] == [
        "int8",
        "int8, 1 of 20 layers in float",
        "int8, 2 of 20 layers in float",
        "int8, 4 of 20 layers in float",
    ]


@pytest.mark.slow
def test_with_half_of_the_layers_in_float_it_gives_up(graph: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    made = quantize(graph, tmp_path / "int8.xml", calibration[:8], after(99))
    assert (len(made.layers_in_float), made.verdict.passes) == (8, False)


def test_no_try_is_begun_when_time_is_up(graph: Path, calibration: np.ndarray, tmp_path: Path) -> None:
    made = quantize(graph, tmp_path / "int8.xml", calibration[:8], after(99), seconds=0)
    assert (made.layers_in_float, made.verdict.passes) == ((), False)


def test_the_noisiest_layer_is_found(graph: Path, calibration: np.ndarray) -> None:
    core = openvino_core()
    noisy = core.read_model(graph)
    layers = [node for node in noisy.get_ops() if module._is_layer(node)]
    assert len(layers) == 20
    for place in (0, 7, 19):
        noisy = core.read_model(graph)
        layer = [node for node in noisy.get_ops() if module._is_layer(node)][place]
        weights = layer.input_value(1).get_node().data
        coarse = openvino.opset13.constant(np.round(weights * 8) / 8)
        layer.input(1).replace_source_output(coarse.output(0))
        assert rank_by_noise(core.read_model(graph), noisy, calibration[:4])[0] == layer.get_friendly_name()


def test_without_nncf_it_says_what_to_install(
    graph: Path, calibration: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'resnetkit\[export\]'"):
        quantize(graph, tmp_path / "int8.xml", calibration, after(0))
