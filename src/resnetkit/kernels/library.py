"""Loading the kernels."""

from functools import cache
from pathlib import Path

from resnetkit.kernels.openmp import use_threads
from resnetkit.native import Library, load

SOURCES = Path(__file__).parent
FLAGS = ("-fno-math-errno",)


@cache
def library() -> Library | None:
    """Return the kernels; None if there are none (see `status` for the reason). Never raises. It imports torch."""
    return _load()[0]


def status() -> str:
    """Return one line on the kernels: which build is loaded, or why there is none."""
    return _load()[1]


@cache
def _load() -> tuple[Library | None, str]:
    found, why = load(SOURCES, FLAGS)
    if found and not use_threads(found):
        why += "; on one thread, because torch has no OpenMP library"
    return found, why
