"""Graphs with one input of any shape and several outputs, computed by OpenVINO or ONNX Runtime."""

import os
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError
from resnetkit.infer.backends.backend import refuse_forked
from resnetkit.infer.backends.onnxruntime_backend import session
from resnetkit.infer.backends.opening import check_installed
from resnetkit.infer.backends.openvino_backend import compiled
from resnetkit.infer.choice import GRAPHS, Choice

Outputs: TypeAlias = tuple[NDArray[np.float32], ...]


def open_graph(choice: Choice, graph: Path, *, cache: Path | None = None) -> Callable[[NDArray[Any]], Outputs]:
    """Return a function that computes a graph: from its input to its outputs, in their order. Threads may share it.

    `cache` is the folder for OpenVINO's compiled graphs. Raises UsageError for a backend that computes no graphs or is
    not installed, ModelFileError for a graph that can't be read.
    """
    if choice.backend not in GRAPHS:
        raise UsageError(f"{choice.backend} computes a model, not the graph {graph}")
    check_installed(choice.backend)
    return (
        _OpenVino(compiled(choice, graph, cache=cache))
        if choice.backend == "openvino"
        else _OnnxRuntime(session(choice, graph))
    )


class _OpenVino:
    def __init__(self, network: Any) -> None:
        self._network = network
        self._process = os.getpid()
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, inputs: NDArray[Any]) -> Outputs:
        """Compute. Raises UsageError in a forked process."""
        refuse_forked("OpenVINO", self._process)
        import openvino

        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._network.create_infer_request()
        inputs = np.require(inputs, requirements=["C", "W"])
        request.set_input_tensor(openvino.Tensor(inputs, shared_memory=True))
        request.start_async()  # the caller's thread sleeps meanwhile: see OpenVino.__call__
        request.wait()
        outputs = tuple(tensor.data.copy() for tensor in request.output_tensors)  # the next call overwrites them
        self._idle.put(request)
        return outputs


class _OnnxRuntime:
    def __init__(self, opened: Any) -> None:
        self._session = opened
        self._process = os.getpid()
        self._input = opened.get_inputs()[0].name

    def __call__(self, inputs: NDArray[Any]) -> Outputs:
        """Compute. Raises UsageError in a forked process."""
        refuse_forked("ONNX Runtime", self._process)
        return tuple(np.asarray(values, np.float32) for values in self._session.run(None, {self._input: inputs}))
