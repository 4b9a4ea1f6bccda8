"""Graphs computed by OpenVINO."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from resnetkit.errors import ModelFileError
from resnetkit.infer.backends.backend import FIX, Pixels, Values, reason_of, refuse_forked
from resnetkit.infer.choice import Choice, usable_threads
from resnetkit.infer.unreported import unreported

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""OpenVINO's name of each precision; for int8, of the precision of the layers that stay in float. Without this hint,
OpenVINO chooses bfloat16 on a processor with AMX. With the hint bf16, a processor without bfloat16 uses float32."""


def openvino_core() -> Any:
    """Return OpenVINO's runtime. A process has only one, until the process ends.

    Raises UsageError in a process that was forked from one that had a runtime. There, a network could be given threads
    of the parent process, which do not exist any more, and would wait for them for ever.
    """
    core, process = _core()
    refuse_forked("OpenVINO", process)
    return core


@cache
def _core() -> tuple[Any, int]:
    """Return the runtime and the id of the process that made it.

    There is only one because the runtime's CPU plugin sets a stack for signal handlers. If two runtimes with such a
    stack end in the wrong order, the stack is in freed memory, and the next signal, such as Ctrl-C, kills the process.
    """
    with unreported():
        import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before any other runtime is loaded
    return core, os.getpid()


def compiled(choice: Choice, graph: Path, *, cache: Path | None = None) -> Any:
    """Return a compiled graph, from `cache` if it is there. Raises ModelFileError for a graph that can't be read."""
    core = openvino_core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[choice.precision],
        "INFERENCE_NUM_THREADS": choice.threads or usable_threads(),
        "NUM_STREAMS": choice.streams,
    }
    try:
        if cache is None:
            return core.compile_model(core.read_model(graph), "CPU", settings)
        # With a path, OpenVINO reads the compiled graph from the cache, and not the graph itself.
        return core.compile_model(graph, "CPU", settings | {"CACHE_DIR": str(cache)})
    except RuntimeError as error:
        raise ModelFileError(f"{graph} can't be computed by OpenVINO: {reason_of(error)}{FIX}") from error


class OpenVino:
    """A graph compiled by OpenVINO, whose threads (TBB's) do not spin while they wait."""

    def __init__(self, choice: Choice, graph: Path, *, cache: Path | None = None) -> None:
        """Compile the graph, or take it from `cache`. Raises ModelFileError for a graph that can't be read."""
        self._network = compiled(choice, graph, cache=cache)
        import openvino

        self._process = os.getpid()
        self._streams = choice.streams
        self._tensor = openvino.Tensor
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch. Raises UsageError in a forked process."""
        # This thread could compute, too, which takes a twentieth less time for a small network. But beside busy
        # processes it takes four times as long, because the system stops a thread that never sleeps for longer.
        return self._result(self._start(pixels))

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batches, see Backend.stream."""
        running: deque[tuple[Any, Pixels]] = deque()
        try:
            for pixels in batches:
                running.append(self._start(pixels))
                if len(running) > self._streams:
                    yield self._result(running.popleft())
            while running:
                yield self._result(running.popleft())
        finally:
            for request, _ in running:
                request.wait()

    def _start(self, pixels: Pixels) -> tuple[Any, Pixels]:
        """Start to compute a batch without copying it: the caller must keep the returned pixels until the result."""
        refuse_forked("OpenVINO", self._process)
        pixels = np.require(pixels, np.uint8, ["C", "W"])
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._network.create_infer_request()
        # This call of the runtime copies nothing; openvino's wrapper takes several times as long.
        request.set_input_tensor(self._tensor(pixels, shared_memory=True))
        request.start_async()
        return request, pixels

    def _result(self, started: tuple[Any, Pixels]) -> Values:
        request, _ = started
        request.wait()
        values = request.get_output_tensor().data.copy()  # the next batch of the request overwrites it
        self._idle.put(request)
        return values
