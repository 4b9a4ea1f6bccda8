"""Make a graph in 8-bit integers with NNCF, and leave as many layers in float as its accuracy needs."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnetkit.display import line
from resnetkit.errors import ExportError, UsageError
from resnetkit.files import HEADER_KEY
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.unreported import unreported
from resnetkit.machine import read_machine

if TYPE_CHECKING:
    from openvino import Model as Graph

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's names of the operations that are computed in 8-bit integers."""
EXACT = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that add products of 8-bit numbers in 32 bits. Others add pairs in 16 bits, which may overflow."""
RANKED_BY = 8
"""Number of pictures with which the noise of layers is measured."""


class Judged(Protocol):
    """A verdict on a graph; as a text, it says how accurate the graph is."""

    @property
    def passes(self) -> bool:
        """Whether the loss of accuracy is allowed."""
        ...


Verdict = TypeVar("Verdict", bound=Judged)
Inputs: TypeAlias = "NDArray[Any] | Sequence[NDArray[Any]]"
"""The graph's input for n pictures: one array (n, ...), or for each picture an array without the first dimension, which
may have another shape than the others."""


@dataclass(frozen=True)
class Quantized(Generic[Verdict]):
    """An int8 graph that was made, and its accuracy."""

    layers: int
    """Convolutions and fully connected layers of the network."""
    layers_in_float: tuple[str, ...]
    """Names, in the graph, of the layers that stay in float: bfloat16 if the processor has it, else float32."""
    verdict: Verdict

    def __repr__(self) -> str:
        return line(type(self), f"{len(self.layers_in_float)} of {self.layers} layers in float", str(self.verdict))


def quantize(
    graph: Path,
    target: Path,
    calibration: Inputs,
    judge: Callable[[Path], Verdict],
    *,
    seconds: float = 90.0,
    say: Callable[[str], None] = lambda line: None,
) -> Quantized[Verdict]:
    """Write the float32 graph at `graph` to `target` (.xml, with a .bin) in 8-bit integers, and judge it.

    `calibration` is the graph's input for n pictures like those that will be predicted, such as uint8 (n, size, size,
    channels); it gives the ranges of the activations. `judge` returns the verdict on the graph in a file. While a
    verdict does not pass, more layers are left in float, and the graph is made again: first the first layer, then also
    the layers with the most noise relative to their signal, in total 1, 2, 4 and so on, up to half of all layers. After
    `seconds`, no further graph is made. The last graph stays at `target` even if its verdict does not pass.

    The graph is made for this processor: if its sums of products may overflow 16 bits, weights have 7 bits. `say` is
    called with a line of text for every graph. Raises UsageError without NNCF, ExportError if NNCF fails.
    """
    if find_spec("nncf") is None:
        raise UsageError("8-bit integers need nncf; pip install 'resnetkit[export]'")
    source = openvino_core().read_model(graph)
    layers = [node.get_friendly_name() for node in source.get_ordered_ops() if _is_layer(node)]
    began = time.monotonic()
    kept: tuple[str, ...] = ()
    ranked: Sequence[str] = ()
    while True:
        made = _write(source, target, calibration, kept)
        verdict = judge(target)
        in_float = f", {len(kept)} of {len(layers)} layers in float" if kept else ""
        say(f"int8{in_float}: {verdict}")
        enough = max(1, 2 * len(kept))
        if verdict.passes or 2 * enough > len(layers) or time.monotonic() - began > seconds:
            return Quantized(len(layers), kept, verdict)
        # The noise of the first layer goes through all others. With only this layer in float, the error of ResNet-50's
        # logits was a fifth lower, although other layers have more noise relative to their signal.
        ranked = ranked or sorted(rank_by_noise(source, made, calibration[:RANKED_BY]), key=lambda n: n != layers[0])
        kept = tuple(ranked[:enough])


def quantize_for_speed(graph: Path, target: Path, pictures: Inputs) -> None:
    """Write the graph at `graph` to `target` in 8-bit integers, to measure its speed and not its accuracy.

    Each picture of `pictures`, the graph's input, takes time; one is enough. Raises ExportError if NNCF fails.
    """
    _write(openvino_core().read_model(graph), target, pictures, ())


def rank_by_noise(source: "Graph", quantized: "Graph", pixels: Inputs) -> list[str]:
    """Return the names of the layers of `source`, the noisiest first.

    A layer's noise is the difference between its output in `quantized` and the output of its float weights for the same
    input before rounding. Layers are ranked by the mean square of the noise divided by that of the float output. All
    layers are measured in one run of one graph for each shape of the graph's input, `pixels`.
    """
    import openvino
    from openvino import opset13 as op

    make: Any = openvino.Model  # its type stubs lack this call
    floats = {node.get_friendly_name(): node for node in source.get_ops() if _is_layer(node)}
    twins: Any = quantized.clone()
    ratios: list[Any] = []
    names: list[str] = []
    for node in twins.get_ops():
        name = node.get_friendly_name()
        if name not in floats:
            continue
        weights = op.constant(floats[name].input_value(1).get_node().data)
        twin = _with_inputs(node, _before_rounding(node.input_value(0)), weights)
        axes = np.arange(len(twin.output(0).get_partial_shape()))
        noise, signal = (
            op.reduce_mean(op.power(values, np.float32(2)), axes)
            for values in (op.subtract(node.output(0), twin.output(0)), twin.output(0))
        )
        ratios.append(op.divide(noise, op.add(signal, np.float32(1e-12))))
        names.append(name)
    measuring = make([op.result(ratio) for ratio in ratios], twins.get_parameters())
    compiled = openvino_core().compile_model(measuring, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    batches = [pixels] if isinstance(pixels, np.ndarray) else [picture[None] for picture in pixels]
    noise = np.mean([[float(value) for value in compiled(batch).to_tuple()] for batch in batches], axis=0)
    return [name for _, name in sorted(zip(noise, names, strict=True), key=lambda pair: -pair[0])]


def _is_layer(node: Any) -> bool:
    """Whether a node is a layer with weights; a product of two activations has no weights."""
    return node.get_type_name() in LAYERS and node.input_value(1).get_node().get_type_name() == "Constant"


def _before_rounding(value: Any) -> Any:
    node = value.get_node()
    return node.input_value(0) if node.get_type_name() == "FakeQuantize" else value


def _with_inputs(node: Any, values: Any, weights: Any) -> Any:
    """Return a layer like `node` with other inputs."""
    from openvino import opset13 as op

    attributes = node.get_attributes()
    if node.get_type_name() == "MatMul":
        return op.matmul(values, weights, attributes["transpose_a"], attributes["transpose_b"])
    make = op.convolution if node.get_type_name() == "Convolution" else op.group_convolution
    names = ("strides", "pads_begin", "pads_end", "dilations", "auto_pad")
    return make(values, weights, *(attributes[name] for name in names))


def _write(source: "Graph", target: Path, calibration: Inputs, in_float: Sequence[str]) -> "Graph":
    """Write `source` in 8-bit integers to `target`, with its header, and return the graph."""
    import openvino

    made = _quantized(source, calibration, in_float)
    made.set_rt_info(source.get_rt_info([HEADER_KEY]).astype(str), [HEADER_KEY])
    openvino.save_model(made, target, compress_to_fp16=False)
    return made


def _quantized(graph: "Graph", calibration: Inputs, in_float: Sequence[str]) -> "Graph":
    with _quiet():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        exact = any(name in EXACT for name in read_machine().instructions)
        try:
            return nncf.quantize(
                graph,
                nncf.Dataset([picture[None] for picture in calibration]),
                subset_size=len(calibration),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                ignored_scope=nncf.IgnoredScope(names=list(in_float)) if in_float else None,
                advanced_parameters=AdvancedQuantizationParameters(
                    # NNCF's default, 7 bits for the first layer on every processor, changed the best class of 8 of 100
                    # photographs in ResNet-50; 8 bits changed at most one.
                    overflow_fix=OverflowFix.DISABLE if exact else OverflowFix.ENABLE,
                    # Bias correction takes time and gains nothing: the error of ResNet-50's logits is 9.6 % without it
                    # and 10.1 % with it, of ResNet-20's 14.2 % and 14.5 %.
                    disable_bias_correction=True,
                ),
            )
        except Exception as error:  # the errors of NNCF and OpenVINO have no common base class
            raise ExportError(f"NNCF can't quantize this network: {str(error).splitlines()[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what NNCF prints on standard output, and its reports to Intel."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides that there is no CUDA compiler
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), unreported():
        yield
