"""float32 that is float32: NVIDIA's GPUs round the factors of a convolution to 10 bits (TF32) unless told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def exact_float32() -> Iterator[None]:
    """Convolve and multiply float32 at its full precision within the block, whatever was set; no effect on a CPU.

    The setting is torch's own and holds for all threads. It comes back when the block ends.
    """
    from torch import backends

    # All that one flag of torch's older interface covers: it can't be read while convolutions and rnn differ.
    places = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
