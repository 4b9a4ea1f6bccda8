"""The last feature map of a graph beside its logits, for explanations, by OpenVINO."""

import os
from pathlib import Path
from typing import Any

from resnetkit.errors import ModelFileError
from resnetkit.infer.backends.backend import Pixels, Values, reason_of, refuse_forked
from resnetkit.infer.backends.openvino_backend import HINTS, openvino_core
from resnetkit.infer.choice import Choice, usable_threads


class WithLastMap:
    """A graph of OpenVINO with two outputs: the input of its global pooling, and the logits.

    It is the same graph as the one that predicts, in the same precision, so it explains what was predicted. Several
    threads may call it.
    """

    def __init__(self, choice: Choice, graph: Path) -> None:
        """Read and compile the graph. Raises ModelFileError for one that can't be read or has no global pooling."""
        core = openvino_core()
        import openvino

        try:
            model = core.read_model(graph)
            (result,) = model.get_results()
            logits = result.input_value(0)
            make: Any = openvino.Model  # its declared types have no such list of outputs
            network = make([_pooled(logits, graph), logits], model.get_parameters(), "explained")
            settings = {
                "INFERENCE_PRECISION_HINT": HINTS[choice.precision],
                "INFERENCE_NUM_THREADS": choice.threads or usable_threads(),
                "NUM_STREAMS": 1,
            }
            self._network = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise ModelFileError(f"{graph} can't be computed by OpenVINO: {reason_of(error)}") from error
        self._process = os.getpid()

    def __call__(self, pixels: Pixels) -> tuple[Values, Values]:
        """Return the map, float32 (n, channels, h, w), and the logits (n, classes). Raises UsageError after a fork."""
        refuse_forked("OpenVINO", self._process)
        request = self._network.create_infer_request()
        request.infer([pixels])
        return request.get_output_tensor(0).data.copy(), request.get_output_tensor(1).data.copy()


def _pooled(logits: Any, graph: Path) -> Any:
    """Return what the global pooling before the last layer takes: an output of a node, (n, channels, h, w)."""
    node = logits.get_node()
    while node.get_input_size() and node.get_type_name() not in ("ReduceMean", "Convolution"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "ReduceMean" or len(node.input_value(0).get_partial_shape()) != 4:
        raise ModelFileError(f"{graph} does not end in global pooling and a linear layer")
    return node.input_value(0)
