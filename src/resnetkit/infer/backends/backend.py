"""What every backend offers, and what they share: batches in order, probabilities, errors of their runtimes."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.infer.decoding import Decoded

Pixels: TypeAlias = NDArray[np.uint8]
"""A batch of pictures from `Preprocess.pixels`: (n, size, size, channels), contiguous."""
Values: TypeAlias = NDArray[np.float32]

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


def refuse_forked(runtime: str, process: int) -> None:
    """Raise UsageError in any process but the one that has the runtime's threads."""
    if process != os.getpid():
        raise UsageError(FORKED.format(runtime))


def reason_of(error: Exception) -> str:
    """The line of an error that gives the reason. Others name places in the runtime's source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check "))), type(error).__name__)
