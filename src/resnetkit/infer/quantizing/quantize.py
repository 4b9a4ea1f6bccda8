"""A served graph in 8-bit integers, by NNCF, with as many layers left in float as its accuracy needs."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.display import line
from resnetkit.errors import ExportError, UsageError
from resnetkit.files import HEADER_KEY
from resnetkit.infer.backends import openvino_core
from resnetkit.infer.quantizing.accuracy import Verdict
from resnetkit.infer.unreported import unreported
from resnetkit.machine import read_machine

if TYPE_CHECKING:
    from openvino import Model as Graph

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""OpenVINO's names of what is computed in integers."""
EXACT = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that add products of 8 bits in 32. Others add pairs of them in 16, which may overflow."""
RANKED_BY = 8
"""Pictures by which layers are ranked."""


@dataclass(frozen=True)
class Quantized:
    """A graph that was made, and what it costs."""

    layers: int
    """Convolutions and fully connected layers of the network."""
    layers_in_float: tuple[str, ...]
    """Those that were left so, as the graph calls them: in bfloat16 where the processor has it, else in float32."""
    verdict: Verdict

    def __repr__(self) -> str:
        return line(type(self), f"{len(self.layers_in_float)} of {self.layers} layers in float", str(self.verdict))


def quantize(
    graph: Path,
    target: Path,
    calibration: NDArray[np.uint8],
    judge: Callable[[Path], Verdict],
    *,
    seconds: float = 90.0,
    say: Callable[[str], None] = lambda line: None,
) -> Quantized:
    """Write the graph at `graph` to `target` (.xml, with a .bin) in integers, and have it judged.

    `graph` is float32's of graphs.served_graph, and `calibration` uint8 pixels (n, size, size, channels) of the kind
    that the network is for: from them come the ranges of the activations. While `judge`, given a graph's file, does
    not pass it, layers stay in float: the first, then also those with the most noise for their signal, one, two, four
    and so on, up to half of them.
    After `seconds`, no other try is begun. The last graph is left at `target` whether it passes or not: see `verdict`.

    The graph is meant for this processor: where sums of products may overflow 16 bits, weights have 7 bits.
    Raises UsageError without NNCF, ExportError where NNCF fails.
    """
    if find_spec("nncf") is None:
        raise UsageError("8-bit integers need nncf; pip install 'resnetkit[export]'")
    source = openvino_core().read_model(graph)
    import openvino

    layers = [node.get_friendly_name() for node in source.get_ordered_ops() if _is_layer(node)]
    began = time.monotonic()
    kept: tuple[str, ...] = ()
    ranked: Sequence[str] = ()
    while True:
        made = _quantized(source, calibration, kept)
        made.set_rt_info(source.get_rt_info([HEADER_KEY]).astype(str), [HEADER_KEY])
        openvino.save_model(made, target, compress_to_fp16=False)
        verdict = judge(target)
        in_float = f", {len(kept)} of {len(layers)} layers in float" if kept else ""
        say(f"int8{in_float}: {verdict}")
        enough = max(1, 2 * len(kept))
        if verdict.passes or 2 * enough > len(layers) or time.monotonic() - began > seconds:
            return Quantized(len(layers), kept, verdict)
        # The first layer's noise goes through all others: in float, it alone took a fifth of the logits' error from a
        # ResNet-50, though others have more for their signal.
        ranked = ranked or sorted(rank_by_noise(source, made, calibration[:RANKED_BY]), key=lambda n: n != layers[0])
        kept = tuple(ranked[:enough])


def rank_by_noise(source: "Graph", quantized: "Graph", pixels: NDArray[np.uint8]) -> list[str]:
    """Names of the layers of `source`, the noisiest first.

    Noise is the mean square of what a layer of `quantized` gives less what its float weights make of the same input
    before rounding, by the mean square of that. One run of one graph tells it of all layers.
    """
    import openvino
    from openvino import opset13 as op

    make: Any = openvino.Model  # whose stubs know no such call
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
    noise = [float(value) for value in compiled(pixels).to_tuple()]
    return [name for _, name in sorted(zip(noise, names, strict=True), key=lambda pair: -pair[0])]


def _is_layer(node: Any) -> bool:
    """Whether it has weights, unlike a product of two activations."""
    return node.get_type_name() in LAYERS and node.input_value(1).get_node().get_type_name() == "Constant"


def _before_rounding(value: Any) -> Any:
    node = value.get_node()
    return node.input_value(0) if node.get_type_name() == "FakeQuantize" else value


def _with_inputs(node: Any, values: Any, weights: Any) -> Any:
    """A layer like `node`, of other inputs."""
    from openvino import opset13 as op

    attributes = node.get_attributes()
    if node.get_type_name() == "MatMul":
        return op.matmul(values, weights, attributes["transpose_a"], attributes["transpose_b"])
    make = op.convolution if node.get_type_name() == "Convolution" else op.group_convolution
    names = ("strides", "pads_begin", "pads_end", "dilations", "auto_pad")
    return make(values, weights, *(attributes[name] for name in names))


def _quantized(graph: "Graph", calibration: NDArray[np.uint8], in_float: Sequence[str]) -> "Graph":
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
                    # NNCF's own choice, 7 bits for the first layer everywhere, changed 8 of 100 photographs' best
                    # classes in ResNet-50; 8 bits changed one or none.
                    overflow_fix=OverflowFix.DISABLE if exact else OverflowFix.ENABLE,
                    # It takes time and brought nothing: the logits of ResNet-50 are 9.6 % off without
                    # it and 10.1 % with, those of ResNet-20 14.2 % and 14.5 %.
                    disable_bias_correction=True,
                ),
            )
        except Exception as error:  # NNCF's and OpenVINO's have no base in common
            raise ExportError(f"NNCF can't quantize this network: {str(error).splitlines()[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what NNCF prints on standard output, and without its reports to Intel."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA compiler
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), unreported():
        yield
