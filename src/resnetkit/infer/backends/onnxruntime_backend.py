"""Graphs computed by ONNX Runtime."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from resnetkit.errors import ModelFileError
from resnetkit.infer.backends.backend import ANEW, Pixels, Values, in_order, reason_of, refuse_forked
from resnetkit.infer.choice import Choice, usable_threads
from resnetkit.infer.unreported import unreported


class OnnxRuntime:
    """A graph computed by ONNX Runtime."""

    def __init__(self, choice: Choice, graph: Path) -> None:
        with unreported():
            import onnxruntime

        threads = choice.threads or usable_threads()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, threads // choice.streams)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's have no base of their own
            raise ModelFileError(f"{graph} can't be computed by ONNX Runtime: {reason_of(error)}{ANEW}") from error
        self._process = os.getpid()
        self._input = self._session.get_inputs()[0].name
        self._streams = choice.streams

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch."""
        refuse_forked("ONNX Runtime", self._process)
        (values,) = self._session.run(None, {self._input: pixels})
        return np.asarray(values, np.float32)

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batch after batch."""
        return in_order(self, batches, at_a_time=self._streams)
