"""The formats of exported files: how a file is written, with the model's header as metadata, and how it is run."""

import warnings
from collections.abc import Callable, Mapping, Sequence
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
"""The version of ONNX's operators. ONNX Runtime supports it since 1.14 and OpenVINO since 2023."""


@dataclass(frozen=True)
class FileFormat:
    """A format of exported files."""

    suffixes: tuple[str, ...]
    """Suffixes of its files. The first belongs to the file that is opened."""
    packages: tuple[str, ...]
    """The packages that write and run it; the extra `export` installs them."""
    write: Callable[["ExportedNetwork", Path, str], None]
    """Writes a network, with the JSON of its header, to the file at a path and to the files that belong to it."""
    open: Callable[[Path], Compute]
    """Loads a file and returns a function that runs it in float32 on the CPU."""


def trace(network: "ExportedNetwork") -> "ExportedProgram":
    """Return the graph of a network in evaluation mode, for batches of any size."""
    import torch

    # Two pictures, because torch.export makes a batch of one a constant.
    example = torch.zeros(network.input_shape(2), dtype=torch.uint8 if network.with_preprocess else torch.float32)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains folder names of this machine
    return program


def to_onnx(network: "ExportedNetwork", header: str) -> "ModelProto":
    """Return the graph as an ONNX model of opset OPSET, checked by onnx.checker. Its first dimension is named batch."""
    return onnx_of(trace(network), header, inputs=[network.input], outputs=[network.output], dynamic=({0: "batch"},))


def onnx_of(
    program: "ExportedProgram",
    header: str,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: tuple[Mapping[int, Any], ...],
) -> "ModelProto":
    """Return a graph of torch.export as an ONNX model of opset OPSET, checked by onnx.checker.

    `inputs` and `outputs` are names; `dynamic` has for each input the names of its dimensions that may have any size.
    """
    import onnx
    import torch

    with warnings.catch_warnings(action="ignore"), unreported():  # torch warns about its own code
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, model):
        del part.metadata_props[:]  # torch's notes on the origin of each node, a third of a small file
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
    save_openvino(to_onnx(network, header), path, header)


def save_openvino(onnx: "ModelProto", path: Path, header: str) -> None:
    """Write an ONNX model as OpenVINO's .xml at `path`, and a .bin beside it."""
    core = openvino_core()
    import openvino
    from openvino.passes import ConstantFolding, Manager

    # Through ONNX, because openvino.convert_model may send a report to Intel if other code has imported openvino.
    model = core.read_model(onnx.SerializeToString())
    folding = Manager()
    folding.register_pass(
        ConstantFolding()
    )  # otherwise the shapes of biases are computed, and NNCF mistakes biases for activations
    folding.run_passes(model)
    model.set_rt_info(header, [HEADER_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path) -> Compute:
    # Without this hint OpenVINO computes in bfloat16 if the processor can.
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
