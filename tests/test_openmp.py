"""The kernels' threads are those of torch's OpenMP library."""

import ctypes
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

from resnetkit.kernels import library, openmp

SOURCE = Path(__file__).parents[1] / "src"
LLVM = find_library("omp")

pytestmark = pytest.mark.skipif(library.library() is None, reason=f"the kernels are {library.status()}")


def run(code: str, *arguments: str) -> str:
    """Run code in a new process that has the kernels of this one, and a function `statistics` of two threads."""
    start = (
        "import sys, torch; from torch import nn\n"
        "from resnetkit.kernels import library, openmp, operations as kernels\n"
        "y = torch.randn(8, 64, 9, 9, generator=torch.Generator().manual_seed(0))\n"
        "y = y.contiguous(memory_format=torch.channels_last)\n"
        "def statistics(threads):\n"
        "    torch.set_num_threads(threads)\n"
        "    return kernels.norm_forward(y, nn.BatchNorm2d(64), relu=False)[1]\n"
    )
    cache = str(Path(library.library()._name).parents[1])
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "RESNETKIT_CACHE": cache}
    command = [sys.executable, "-c", start + code, *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of loaded libraries")
def test_there_is_one_openmp_library() -> None:
    maps = run("statistics(2); print(open('/proc/self/maps').read())")
    assert len(set(re.findall(r"\S*/lib(?:g|i)?omp\d?[-.]\S*", maps))) == 1


@pytest.mark.skipif(not LLVM, reason="there is no OpenMP library of LLVM: apt-get install libomp5")
@pytest.mark.parametrize("interface", openmp.INTERFACES)
def test_both_interfaces_give_the_same_threads(interface: str) -> None:
    """LLVM's library has both. Sums of a thread's part are rounded, so bits tell how many threads there were."""
    code = (
        "one, two = statistics(1), statistics(2)\n"
        "assert not torch.equal(one, two)\n"
        "take, path = sys.argv[1:]\n"
        "openmp.INTERFACES = {take: openmp.INTERFACES[take]}\n"
        "assert openmp.connect(library.library(), openmp.Library(path))\n"
        "for _ in range(10):\n"
        "    assert torch.equal(statistics(2), two)\n"
        "assert torch.equal(statistics(1), one)\n"
        "print('equal')"
    )
    assert run(code, interface, LLVM) == "equal\n"


def test_a_library_without_the_functions_is_not_taken() -> None:
    kernels = library.library()
    assert kernels is not None
    assert not openmp.connect(kernels, ctypes.CDLL(kernels._name))


def test_kernels_of_one_thread_say_so(monkeypatch: pytest.MonkeyPatch, compiled_once: None) -> None:
    monkeypatch.setattr(openmp, "_libraries", list)
    found, why = library._load.__wrapped__()
    assert found is not None
    assert why.endswith("; on one thread, because torch has no OpenMP library")
