"""Make glibc keep freed memory, since a network needs it again immediately.

By default, glibc gets large blocks from the kernel and returns them when they are freed. So every operation of a
network gets new memory pages, which the kernel must map and clear. This is slow, mainly in a virtual machine.
"""

import os
import sys
from collections.abc import Mapping
from ctypes import CDLL, c_void_p, cast

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER = -1
MIB = 2**20
MAPPED = (1024 * MIB, 32 * MIB)
"""Size in bytes from which a block is still returned to the kernel: data sets, but not activations. The second value is
for glibc before 2.35, which does not accept the first."""
STEP = 64 * MIB
"""Bytes by which the heap grows, for fewer system calls. They need address space, and memory only when used."""


def keep_memory() -> bool:
    """Make this process keep freed memory for its own next use; return whether it does.

    The setting changes the whole process and can't be undone. The command line calls this function before it computes.
    The library never calls it, so a program that trains or evaluates should call it before its first large tensor. It
    returns False and changes nothing if the allocator is not glibc's (macOS, Windows, musl, a preloaded jemalloc or
    tcmalloc), or if the environment sets the allocator (MALLOC_..., glibc.malloc in GLIBC_TUNABLES).

    The cost: memory that was used once stays with the process until it ends, except for blocks over 1 GiB. Measured
    on two cores of an EPYC with glibc 2.36, images per second and peak memory without and with it: resnet50 predicting,
    batch 16, float32: 9.5 and 15.4, 1.0 and 1.15 GB; resnet20 evaluating, batch 250, float32: 870 and 1,410, 0.8 GB
    both; resnet50 training at 224 px, batch 16, float32: 3.9 and 4.2, 2.9 and 3.4 GB. Training in bfloat16: resnet20 by
    our kernels, batch 128, 1,310 and 1,465; without the kernels there was no gain, and resnet50 at 224 px lost 3 to
    19 % in four pairs of runs, with a noise of 15 %.
    """
    libc = _glibc()
    if libc is None or chosen_by_user(os.environ):
        return False
    mapped = any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in MAPPED)
    return bool(mapped and libc.mallopt(M_TOP_PAD, STEP) and libc.mallopt(M_TRIM_THRESHOLD, NEVER))


def chosen_by_user(environ: Mapping[str, str]) -> str:
    """Return the variable in `environ` that sets the allocator; empty if there is none."""
    own = [name for name in environ if name.startswith("MALLOC_")]
    return own[0] if own else "GLIBC_TUNABLES" if "glibc.malloc" in environ.get("GLIBC_TUNABLES", "") else ""


def allocator() -> str:
    """Return the origin of this process's malloc: glibc, or another."""
    return "another" if _glibc() is None else "glibc"


def _glibc() -> CDLL | None:
    """Return the C library if it is glibc and this process uses its malloc, else None."""
    if sys.platform != "linux":
        return None
    try:
        process, libc = CDLL(None), CDLL("libc.so.6")
        # A preloaded allocator, or one linked into the interpreter, is found before the C library's.
        ours = cast(process.malloc, c_void_p).value == cast(libc.malloc, c_void_p).value
        return libc if ours and hasattr(libc, "gnu_get_libc_version") else None
    except (OSError, AttributeError):
        return None
