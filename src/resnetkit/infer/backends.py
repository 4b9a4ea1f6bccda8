"""OpenVINO, ONNX Runtime and torch behind one call, from a batch of uint8 pixels to the network's output."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.infer.choice import GRAPHS, PACKAGES, Choice, Output, installed, usable_threads
from resnetkit.infer.unreported import unreported

if TYPE_CHECKING:
    from resnetkit.infer.decoding import Decoded
    from resnetkit.modelfile import Model

Pixels: TypeAlias = NDArray[np.uint8]
"""A batch of pictures from `Preprocess.pixels`: (n, size, size, channels), contiguous."""
Values: TypeAlias = NDArray[np.float32]

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""The precision that OpenVINO is told; in an int8 graph, that of the layers in float. Without the hint, it would choose
bfloat16 on a processor with AMX. With the hint bf16 on a processor without bfloat16, it takes float32."""
ANEW = ". Delete it, and it will be made again; an int8 one by resnetkit tune"
"""What to do about a graph that can't be read."""
FORKED = (
    "{} can't compute in a process that was forked from one that had used it: its threads are not there. Make the "
    "Predictor in the new process only, or start that by multiprocessing's spawn"
)
"""The error message where the runtime would wait for ever."""


class Backend(Protocol):
    """A network that is ready to compute. Several threads may call it.

    In a forked process, a backend of OpenVINO or ONNX Runtime that was opened before the fork raises UsageError.
    """

    def __call__(self, pixels: Pixels) -> Values:
        """(n, size, size, channels), any n, to (n, classes) logits, or to the features that were asked for."""
        ...

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute many batches, `choice.streams` of them at the same time; outputs come in the order of the batches.

        A batch is taken from the iterator when it is needed: one more than are being computed.
        """
        ...


def open_backend(
    choice: Choice,
    source: "Path | Model",
    *,
    output: Output = "logits",
    device: str = "cpu",
    cache: Path | None = None,
) -> Backend:
    """Open the backend that `choice` names.

    For OpenVINO and ONNX Runtime, `source` is a graph of graphs.served_graph, which was made for one output. For torch
    it is a model; only torch uses `output` and `device`. `cache` is a folder where OpenVINO keeps compiled graphs.
    Raises UsageError for a backend that is not installed, ModelFileError for a graph that can't be read.
    """
    if not installed(choice.backend):
        extra = "torch" if PACKAGES[choice.backend] == "torch" else "'resnetkit[export]'"
        raise UsageError(
            f"`backend` is {choice.backend}, but {PACKAGES[choice.backend]} is not installed; pip install {extra}"
        )
    if choice.backend not in GRAPHS:
        from resnetkit.infer.torch_backend import TorchBackend

        if isinstance(source, Path):
            raise UsageError(f"{choice.backend} computes a model, not the graph {source}")
        return TorchBackend(choice, source, output=output, device=device)
    if not isinstance(source, Path):
        raise UsageError(f"{choice.backend} computes a graph, not a model in memory; save it to a file first")
    if choice.backend == "openvino":
        return OpenVino(choice, source, cache=cache)
    return OnnxRuntime(choice, source)


def openvino_core() -> Any:
    """OpenVINO's runtime: one for the whole process, kept until the process ends.

    Raises UsageError in a process that was forked from one that had it. There, a network could get the threads of one
    that was freed before the fork, which do not exist any more, and would wait for them for ever.
    """
    core, process = _core()
    _refuse_forked("OpenVINO", process)
    return core


@cache
def _core() -> tuple[Any, int]:
    """The runtime, and the id of the process that made it.

    Its CPU plugin sets a stack for signal handlers. If two runtimes with such a stack end in the wrong order, the
    process is left with a stack in freed memory, and its next signal, such as Ctrl-C, kills it.
    """
    with unreported():
        import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin before any other runtime is loaded
    return core, os.getpid()


class OpenVino:
    """A graph compiled by OpenVINO, whose threads (TBB's) do not spin while they wait."""

    def __init__(self, choice: Choice, graph: Path, *, cache: Path | None = None) -> None:
        core = openvino_core()
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[choice.precision],
            "INFERENCE_NUM_THREADS": choice.threads or usable_threads(),
            "NUM_STREAMS": choice.streams,
        }
        try:
            if cache is None:
                self._network = core.compile_model(core.read_model(graph), "CPU", settings)
            else:  # given a path, it finds a compiled graph in the cache without reading the graph itself
                self._network = core.compile_model(graph, "CPU", settings | {"CACHE_DIR": str(cache)})
        except RuntimeError as error:
            raise ModelFileError(f"{graph} can't be computed by OpenVINO: {_reason(error)}{ANEW}") from error
        self._process = os.getpid()
        self._streams = choice.streams
        self._tensor = openvino.Tensor
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch."""
        return self._result(self._start(pixels))

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batch after batch."""
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
        """Start to compute a batch, not copied: the caller must keep the returned pixels until it has the result."""
        _refuse_forked("OpenVINO", self._process)
        pixels = np.require(pixels, np.uint8, ["C", "W"])
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._network.create_infer_request()
        # The runtime's own call, which copies nothing; openvino's wrapper takes several times as long.
        request.set_input_tensor(self._tensor(pixels, shared_memory=True))
        request.start_async()
        return request, pixels

    def _result(self, started: tuple[Any, Pixels]) -> Values:
        request, _ = started
        request.wait()
        values = request.get_output_tensor().data.copy()  # the request will write there again
        self._idle.put(request)
        return values


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
            raise ModelFileError(f"{graph} can't be computed by ONNX Runtime: {_reason(error)}{ANEW}") from error
        self._process = os.getpid()
        self._input = self._session.get_inputs()[0].name
        self._streams = choice.streams

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch."""
        _refuse_forked("ONNX Runtime", self._process)
        (values,) = self._session.run(None, {self._input: pixels})
        return np.asarray(values, np.float32)

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batch after batch."""
        return in_order(self, batches, at_a_time=self._streams)


def in_order(compute: Any, batches: Iterable[Pixels], *, at_a_time: int) -> Iterator[Values]:
    """Call `compute` on each batch in `at_a_time` threads; results come in the order of the batches.

    One batch more is taken from `batches` meanwhile, so that it is ready when a thread is free.
    """
    with ThreadPoolExecutor(at_a_time) as pool:
        waiting: deque[Future[Values]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(compute, batch))
                if len(waiting) > at_a_time:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def stream_decoded(
    backend: Backend, pictures: "Iterator[Decoded]", batch_size: int
) -> Iterator[tuple[Path, Values | str]]:
    """For each picture in order: its path, and the backend's output for it or what is wrong with the picture."""
    waiting: deque[tuple[Path, str | None]] = deque()  # pictures without a result so far, and what is wrong with them

    def batches() -> Iterator[Pixels]:
        while batch := list(islice(pictures, batch_size)):
            waiting.extend((path, pixels.reason if isinstance(pixels, Failure) else None) for path, pixels in batch)
            if sound := [pixels for _, pixels in batch if not isinstance(pixels, Failure)]:
                yield np.stack(sound)

    for values in backend.stream(batches()):
        for value in values:
            path, error = waiting.popleft()
            while error is not None:
                yield path, error
                path, error = waiting.popleft()
            yield path, value
    yield from ((path, error or "") for path, error in waiting)


def softmax(logits: Values) -> Values:
    """Probabilities from logits (n, classes), both float32; the same function for every backend."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _refuse_forked(runtime: str, process: int) -> None:
    """Raise UsageError in any process but the one that has the runtime's threads."""
    if process != os.getpid():
        raise UsageError(FORKED.format(runtime))


def _reason(error: Exception) -> str:
    """The line of an error that gives the reason. Others name places in the runtime's source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check "))), type(error).__name__)
