"""Loading the compiled kernels."""

from functools import cache
from pathlib import Path

from resnetkit.kernels.openmp import use_threads
from resnetkit.native import Library, load

SOURCES = Path(__file__).parent
FLAGS = ("-fno-math-errno",)


@cache
def library() -> Library | None:
    """Return the compiled kernels; None if they can't be compiled (see `status` for the reason). Never raises.

    Call it only after `import torch`: both must share one OpenMP library, or their threads slow each other down.
    """
    return _load()[0]


def status() -> str:
    """Return one line on the kernels: that they are loaded, or the reason why not."""
    return _load()[1]


@cache
def _load() -> tuple[Library | None, str]:
    found, why = load(SOURCES, FLAGS)
    if found and not use_threads(found):
        why += "; on one thread, because torch has no OpenMP library"
    return found, why
