"""The OpenMP library that torch has loaded. The kernels use its threads, so that there is only one pool of them."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

from resnetkit.native import Library

COMMON = ("omp_get_thread_num", "omp_get_num_threads")
INTERFACES = {
    "use_gomp": (*COMMON, "GOMP_parallel", "GOMP_barrier"),
    "use_kmpc": (
        *COMMON,
        *("__kmpc_fork_call", "__kmpc_push_num_threads", "__kmpc_global_thread_num", "__kmpc_barrier"),
    ),
}
"""Function of the kernels -> the functions of an OpenMP library that it takes: of GNU's and LLVM's, or only LLVM's."""


def use_threads(kernels: Library) -> bool:
    """Give the functions of torch's OpenMP library to the kernels. Return whether there is one.

    Without it, the kernels run on one thread. The function imports torch.
    """
    return any(connect(kernels, library) for library in _libraries())


def connect(kernels: Library, openmp: Library) -> bool:
    """Give the functions of an OpenMP library to the kernels. Return whether it has the functions they need."""
    for take, names in INTERFACES.items():
        if all(hasattr(openmp, name) for name in names):
            kernels[take](*(ctypes.cast(openmp[name], ctypes.c_void_p) for name in names))
            return True
    return False


def _libraries() -> Iterator[Library]:
    """Yield the libraries through which torch's calls of OpenMP are resolved, in the order of the system."""
    import torch

    if sys.platform == "win32":  # only the library itself is searched for a name, not those that it needs
        for path in sorted((Path(torch.__file__).parent / "lib").glob("lib*omp5md.dll")):
            yield Library(str(path))
    else:
        yield Library(None)  # the program and LD_PRELOAD
        yield Library(torch._C.__file__)  # all that torch needs
