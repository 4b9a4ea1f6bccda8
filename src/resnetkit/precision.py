"""Precision of arithmetic: float32 without TF32, and whether the processor multiplies bfloat16.

By default, NVIDIA's GPUs round the factors of a convolution in float32 to 10 bits (TF32).
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN does not use instructions that multiply bfloat16."""

_lock = threading.Lock()
_found: list[list[str]] = []
"""For each active block, the settings before it began."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within the block, a GPU convolves and multiplies float32 at full precision; no effect on a CPU.

    The setting is torch's own and changes all threads. If blocks overlap, in any threads, it is restored when the last
    one ends; torch's older flags (`allow_tf32`) can't be read until then.
    """
    import torch

    backends: Any = torch.backends  # its types do not contain the newer settings
    places = (backends.cudnn.conv, backends.cuda.matmul)
    with _lock:
        _found.append([place.fp32_precision for place in places])
        for place in places:
            place.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            found = _found.pop()  # the last of overlapping blocks gets the settings before the first block
            if not _found:
                for place, precision in zip(places, found, strict=True):
                    place.fp32_precision = precision


def multiplies_bfloat16(capabilities: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether oneDNN uses instructions that multiply bfloat16, on an x86 processor.

    `capabilities` is the result of torch.cpu.get_capabilities(); `environ` may limit oneDNN to older instructions.
    """
    limit = environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or ""
    there = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return bool(there) and limit.upper() not in WITHOUT_BFLOAT16


def unfolds_bfloat16() -> bool:
    """Return whether torch convolves bfloat16 on this CPU by im2col, which copies maps into columns, without oneDNN."""
    import torch

    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
