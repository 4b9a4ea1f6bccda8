"""The kernels' library."""

from functools import cache
from pathlib import Path

from resnetkit.native import Library, load

SOURCES = Path(__file__).parent
FLAGS = ("-fopenmp", "-fno-math-errno")


@cache
def library() -> Library | None:
    """The compiled kernels, or None where they can't be made; `status` then says why. Never raises.

    Only after `import torch`: both must share one OpenMP, or their threads wait for processors that the others hold.
    """
    return _load()[0]


def status() -> str:
    """One line on the kernels: loaded, or why not."""
    return _load()[1]


@cache
def _load() -> tuple[Library | None, str]:
    return load(SOURCES, FLAGS)
