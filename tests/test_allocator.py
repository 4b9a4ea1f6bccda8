"""Freed memory is kept if glibc is the allocator and has no other settings; otherwise nothing changes."""

import os
import platform
import subprocess
import sys

import pytest

import resnetkit
from resnetkit import allocator

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone can be told to")

CHURN = """
import resource
import torch
from resnetkit.allocator import keep_memory
print(keep_memory() if {call} else None)
for _ in range(20):  # until glibc has found places that hold a block and its alignment
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def churn(*, call: bool, **environ: str) -> list[str]:
    """Return, from a new process, the result of keep_memory and the page faults of ten tensors of 64 MiB in turn."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    code = CHURN.format(call=call)
    done = subprocess.run([sys.executable, "-c", code], env=clean | environ, capture_output=True, text=True, check=True)
    return done.stdout.split()


@glibc
def test_a_tensor_takes_the_pages_of_the_last_one() -> None:
    returned, faults = churn(call=True)
    assert returned == "True"
    assert int(faults) < 100
    _, untouched = churn(call=False)
    assert int(untouched) >= 10 * 16  # 64 MiB in pages of 4 KiB are 16,384; in huge ones of 2 MiB, at least 16 a time


@glibc
@pytest.mark.parametrize(
    "environ", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}]
)
def test_what_somebody_has_set_stays(environ: dict[str, str]) -> None:
    returned, faults = churn(call=True, **environ)
    assert returned == "False"
    assert int(faults) >= 10 * 16


def test_who_has_set_it() -> None:
    assert allocator.chosen_by_user({"PATH": "/bin", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F"}) == ""
    assert allocator.chosen_by_user({"MALLOC_CONF": "narenas:1"}) == "MALLOC_CONF"
    assert allocator.chosen_by_user({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}) == "GLIBC_TUNABLES"


@glibc
def test_another_allocator_is_left_alone(tmp_path: object) -> None:
    """A preloaded library with its own malloc, as jemalloc and tcmalloc have."""
    compiler = next((name for name in ("gcc", "cc", "clang") if _runs(name)), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = "void *__libc_malloc(unsigned long); void *malloc(unsigned long size) { return __libc_malloc(size); }"
    library = f"{tmp_path}/other.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    code = "from resnetkit.allocator import allocator, keep_memory; print(allocator(), keep_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_PRELOAD": library},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["another", "False"]


def _runs(command: str) -> bool:
    try:
        return subprocess.run([command, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str | None) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(allocator, "CDLL", missing)  # musl has no libc.so.6
    assert (allocator.keep_memory(), allocator.allocator()) == (False, "another")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resnetkit.keep_memory() is False


@pytest.mark.parametrize(("argv", "kept"), [(["predict", "--help"], True), (["models", "--help"], False)])
def test_the_command_line_keeps_memory_where_it_computes(
    argv: list[str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnetkit import cli

    calls: list[bool] = []
    monkeypatch.setattr(cli, "keep_memory", lambda: calls.append(True))
    assert cli.main(argv) == 0
    assert calls == [True] * kept
