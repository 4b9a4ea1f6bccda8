"""The interface of all backends, and the functions that they share."""

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
"""The network's output for a batch: logits (n, classes) or features (n, ...)."""

FIX = ". Delete it, and it will be made again; an int8 graph is made by resnetkit tune"
"""The end of an error message about a graph that can't be read."""
FEW_CLASSES = 100
"""From this number of classes, finding the highest probabilities is faster than sorting all of them."""
FORKED = (
    "{} can't compute in a process that was forked from one that had used it, as its threads do not exist there. "
    "Make the Predictor in the new process only, or start that process by multiprocessing's spawn"
)
"""The error message in a forked process, where the runtime would wait for ever."""


class Backend(Protocol):
    """A network that is ready to compute. Several threads may call it.

    In a forked process, a backend of OpenVINO or ONNX Runtime that was opened before the fork raises UsageError.
    """

    def __call__(self, pixels: Pixels) -> Values:
        """Return the output, logits or features, for pixels (n, size, size, channels) with any n."""
        ...

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Yield the outputs of many batches, in their order; `choice.streams` batches are computed at the same time.

        At most one batch more than are being computed is taken from the iterator.
        """
        ...


def in_order(compute: Any, batches: Iterable[Pixels], *, at_a_time: int) -> Iterator[Values]:
    """Call `compute` on each batch in `at_a_time` threads; yield the results in the order of the batches.

    One batch more is taken from `batches` meanwhile, so that it is ready when a thread becomes free.
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
) -> Iterator[tuple[Path, Values | Failure]]:
    """Yield for each picture, in order, its path and the backend's output, or the Failure of its reading."""
    waiting: deque[tuple[Path, Failure | None]] = deque()  # pictures without a result so far

    def batches() -> Iterator[Pixels]:
        while batch := list(islice(pictures, batch_size)):
            waiting.extend((path, pixels if isinstance(pixels, Failure) else None) for path, pixels in batch)
            if sound := [pixels for _, pixels in batch if not isinstance(pixels, Failure)]:
                yield np.stack(sound)

    for values in backend.stream(batches()):
        for value in values:
            path, failure = waiting.popleft()
            while failure is not None:
                yield path, failure
                path, failure = waiting.popleft()
            yield path, value
    yield from ((path, failure) for path, failure in waiting if failure is not None)


def softmax(logits: Values) -> Values:
    """Return probabilities for logits, both float32 (n, classes). All backends use this function."""
    powers = logits - logits.max(axis=1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def most_probable(probabilities: Values, top: int) -> NDArray[np.int64]:
    """Return the classes of the `top` highest probabilities, float32 (n, classes), the highest first: (n, top).

    Of equal probabilities, the class with the lower index is first. There are fewer columns if there are fewer classes.
    """
    classes = probabilities.shape[1]
    if classes < FEW_CLASSES or top >= classes:
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    # The bits of floats from 0 to 1 have the order of the floats. With the index below them, no two keys are equal.
    keys = (probabilities.view(np.int32).astype(np.int64) << 32) + np.arange(classes - 1, -1, -1)
    highest = np.sort(np.partition(keys, -top, axis=1)[:, -top:], axis=1)[:, ::-1]
    return classes - 1 - (highest & (2**32 - 1))


def refuse_forked(runtime: str, process: int) -> None:
    """Raise UsageError unless this is `process`, the one that has the threads of `runtime`."""
    if process != os.getpid():
        raise UsageError(FORKED.format(runtime))


def reason_of(error: Exception) -> str:
    """Return the line of an error that gives the reason. Other lines name places in the runtime's source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("Exception from", "Check "))), type(error).__name__)
