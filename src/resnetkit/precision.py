"""float32 that is float32: NVIDIA's GPUs round the factors of a convolution to 10 bits (TF32) unless told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exact_float32() -> Iterator[None]:
    """Convolve and multiply float32 at its full precision within the block, whatever was set; no effect on a CPU.

    The setting is torch's own and holds for all threads. It comes back when the block ends; torch's older flags
    (`allow_tf32`) can't be read until then.
    """
    import torch

    backends: Any = torch.backends  # whose types don't know the newer settings
    places = (backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
