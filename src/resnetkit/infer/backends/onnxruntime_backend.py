"""Graphs computed by ONNX Runtime."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.errors import ModelFileError
from resnetkit.infer.backends.backend import FIX, Pixels, Values, in_order, reason_of, refuse_forked
from resnetkit.infer.choice import Choice, usable_threads
from resnetkit.infer.unreported import unreported


def session(choice: Choice, graph: Path) -> Any:
    """Return a session of ONNX Runtime for a graph. Raises ModelFileError if it can't be read."""
    with unreported():
        import onnxruntime

    threads = choice.threads or usable_threads()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = max(1, threads // choice.streams)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ModelFileError(f"{graph} can't be computed by ONNX Runtime: {reason_of(error)}{FIX}") from error


class OnnxRuntime:
    """A graph computed by ONNX Runtime."""

    def __init__(self, choice: Choice, graph: Path) -> None:
        """Load the graph. Raises ModelFileError if it can't be read."""
        self._session = session(choice, graph)
        self._process = os.getpid()
        self._input = self._session.get_inputs()[0].name
        self._streams = choice.streams

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch. Raises UsageError in a forked process."""
        refuse_forked("ONNX Runtime", self._process)
        (values,) = self._session.run(None, {self._input: pixels})
        return np.asarray(values, np.float32)

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batches, see Backend.stream."""
        return in_order(self, batches, at_a_time=self._streams)
