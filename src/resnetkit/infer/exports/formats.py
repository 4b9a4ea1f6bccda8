"""The formats of exported files: how each is written, with the model's header as metadata, and how it is run."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.files import HEADER_KEY
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.exports.parity import Compute
from resnetkit.infer.unreported import unreported

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

    from resnetkit.infer.network import ExportedNetwork

Format: TypeAlias = Literal["onnx", "openvino", "pt2"]
OPSET = 18
"""The version of ONNX's operators. ONNX Runtime knows it since 1.14 and OpenVINO since 2023."""


@dataclass(frozen=True)
class FileFormat:
    """A format of exported files: how a file is written, and how it is run."""

    suffixes: tuple[str, ...]
    """Suffixes of its files; the first is that of the file that is opened."""
    packages: tuple[str, ...]
    """The packages that write and run it; the extra `export` installs them."""
    write: Callable[["ExportedNetwork", Path, str], None]
    """Writes a network and the JSON of its header to a file, and to those that belong to it."""
    open: Callable[[Path], Compute]
    """Loads a file, and returns the function that runs it in float32 on the CPU."""


def trace(network: "ExportedNetwork") -> "ExportedProgram":
    """Return the graph of a network in evaluation mode, for batches of any size."""
    import torch

    # Two pictures, since torch.export takes a batch of one for a constant.
    example = torch.zeros(network.input_shape(2), dtype=torch.uint8 if network.with_preprocess else torch.float32)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def to_onnx(network: "ExportedNetwork", header: str) -> "ModelProto":
    """Return the graph as an ONNX model of opset OPSET, checked by onnx.checker. Its first dimension is named batch."""
    import onnx
    import torch

    with warnings.catch_warnings(action="ignore"), unreported():  # warnings about its own code
        program = torch.onnx.export(
            trace(network),
            dynamo=True,
            opset_version=OPSET,
            input_names=[network.input],
            output_names=[network.output],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, model):
        del part.metadata_props[:]  # torch's notes on where each node comes from: a third of a small file
    model.producer_name = HEADER_KEY
    model.metadata_props.add(key=HEADER_KEY, value=header)
    onnx.checker.check_model(model, full_check=True)
    return model


def _write_onnx(network: "ExportedNetwork", path: Path, header: str) -> None:
    path.write_bytes(to_onnx(network, header).SerializeToString())


def _open_onnx(path: Path) -> Compute:
    with unreported():
        import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: np.asarray(session.run(None, {name: inputs})[0])


def _write_openvino(network: "ExportedNetwork", path: Path, header: str) -> None:
    core = openvino_core()
    import openvino
    from openvino.passes import ConstantFolding, Manager

    # Through ONNX, since openvino.convert_model may report to Intel where other code has imported it.
    model = core.read_model(to_onnx(network, header).SerializeToString())
    folding = Manager()
    folding.register_pass(ConstantFolding())  # else biases have computed shapes, and NNCF takes them for activations
    folding.run_passes(model)
    model.set_rt_info(header, [HEADER_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path) -> Compute:
    # Without this hint it computes in bfloat16 wherever the processor can.
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: compiled(inputs)[0]


def _write_pt2(network: "ExportedNetwork", path: Path, header: str) -> None:
    import torch

    torch.export.save(trace(network), path, extra_files={HEADER_KEY: header})


def _open_pt2(path: Path) -> Compute:
    import torch

    module = torch.export.load(path).module()

    def compute(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(inputs)).numpy()

    return compute


FILE_FORMATS: Mapping[Format, FileFormat] = {
    "onnx": FileFormat((".onnx",), ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
    "openvino": FileFormat((".xml", ".bin"), ("onnx", "onnxscript", "openvino"), _write_openvino, _open_openvino),
    "pt2": FileFormat((".pt2",), (), _write_pt2, _open_pt2),
}
