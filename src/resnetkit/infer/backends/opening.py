"""Open the backend that a choice names."""

from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.errors import UsageError
from resnetkit.infer.backends.backend import Backend
from resnetkit.infer.backends.onnxruntime_backend import OnnxRuntime
from resnetkit.infer.backends.openvino_backend import OpenVino
from resnetkit.infer.choice import GRAPHS, PACKAGES, BackendName, Choice, Output, installed

if TYPE_CHECKING:
    from resnetkit.modelfile import Model


def open_backend(
    choice: Choice,
    source: "Path | Model",
    *,
    output: Output = "logits",
    device: str = "cpu",
    cache: Path | None = None,
) -> Backend:
    """Open the backend that `choice` names.

    For OpenVINO and ONNX Runtime, `source` is the path of a graph (see graphs.cached_graph), which has one output. For
    torch it is a model; only torch uses `output` and `device`. `cache` is the folder for OpenVINO's compiled graphs.
    Raises UsageError for a backend that is not installed, ModelFileError for a graph that can't be read.
    """
    check_installed(choice.backend)
    if choice.backend not in GRAPHS:
        from resnetkit.infer.backends.torch_backend import TorchBackend

        if isinstance(source, Path):
            raise UsageError(f"{choice.backend} computes a model, not the graph {source}")
        return TorchBackend(choice, source, output=output, device=device)
    if not isinstance(source, Path):
        raise UsageError(f"{choice.backend} computes a graph, not a model in memory; save it to a file first")
    if choice.backend == "openvino":
        return OpenVino(choice, source, cache=cache)
    return OnnxRuntime(choice, source)


def check_installed(backend: BackendName) -> None:
    """Raise UsageError for a backend that is not installed."""
    if not installed(backend):
        extra = "torch" if PACKAGES[backend] == "torch" else "'resnetkit[export]'"
        raise UsageError(f"`backend` is {backend}, but {PACKAGES[backend]} is not installed; pip install {extra}")
