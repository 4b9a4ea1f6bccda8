"""Load the C++ sources of this package as a library: built ahead and part of the package, or compiled on this machine.

torch is not imported.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnetkit.files import cache_folder
from resnetkit.machine import read_instructions

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
SECONDS = 300  # limit for the compiler, which usually needs ten
BUILT = "built"  # subfolder of a folder of sources, with libraries that were built ahead
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")

logger = logging.getLogger(__name__)

Library = ctypes.CDLL


@dataclass(frozen=True)
class Build:
    """Machine code for processors that have certain instructions."""

    title: str
    """The name of the instructions, for people."""
    instructions: tuple[str, ...]
    """The instructions that the processor must have, as `machine.read_instructions` names them."""
    flags: tuple[str, ...]
    """Flags of the compiler."""
    reason: str
    """Why this build is the fastest that a processor can run."""


_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
# The width is for loops that the compiler turns into vectors: clang would take half of it.
_WIDE = ("-march=skylake-avx512", "-mprefer-vector-width=512")
BUILDS: Mapping[str, Build] = {
    "avx512_bf16": Build(
        *("AVX512-BF16", (*_AVX512, "avx512_bf16"), (*_WIDE, "-mavx512bf16"), "the processor has AVX512-BF16")
    ),
    "avx512": Build("AVX-512", _AVX512, _WIDE, "the processor has no AVX512-BF16"),
    "avx2": Build("AVX2", ("avx2", "fma"), ("-march=x86-64-v3",), "the processor has no AVX-512"),
    "neon": Build("NEON", ("asimd",), ("-march=armv8-a",), "the processor has NEON"),
    "generic": Build("", (), (), "neither AVX2 nor NEON was found"),
}
"""Builds by their names, which are values of `$RESNETKIT_KERNELS`; the fastest first."""


def find_compiler() -> list[str] | None:
    """Return the command of the C++ compiler: `$CXX`, or the first of COMPILERS that is installed; None if none is."""
    given = os.environ.get("CXX")
    for command in [_words(given)] if given else [[name] for name in COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark is not closed
        return [command]


def choose_build(asked: str, instructions: frozenset[str]) -> tuple[str | None, str]:
    """Return the name of the build for a processor with these instructions, and the reason.

    `asked` is the value of `$RESNETKIT_KERNELS`; "1" asks for the fastest build that the processor can run. The name is
    None if there is to be no library.
    """
    usable = [name for name, build in BUILDS.items() if instructions.issuperset(build.instructions)]
    if asked == "0":
        return None, "off (RESNETKIT_KERNELS=0)"
    if asked == "1":
        return usable[0], BUILDS[usable[0]].reason
    if asked in usable:
        return asked, f"RESNETKIT_KERNELS={asked}"
    if asked in BUILDS:
        return None, f"off: RESNETKIT_KERNELS={asked}, and the processor has no {BUILDS[asked].title}; give 1"
    return None, f"off: RESNETKIT_KERNELS={asked}; give {' or '.join(['0', '1', *BUILDS])}"


def load(folder: Path, flags: Sequence[str], *, make: bool = True) -> tuple[Library | None, str]:
    """Return the library of a folder's C++ sources, or None, and one line: which build it is, or why there is none.

    A library that was built ahead is taken if the package has it; else one from the cache, or it is compiled. The
    compiler gets FLAGS, those of the build, and `flags`. Without `make`, nothing is compiled. Never raises.
    """
    name, why = choose_build(os.environ.get("RESNETKIT_KERNELS", "1"), read_instructions())
    if name is None:
        return None, why
    try:
        path = folder / BUILT / f"{name}{SUFFIX}"
        return Library(str(path)), f"on: {name}, part of the package ({why}): {path}"
    except OSError as error:  # there is no such file, or it needs another C library
        logger.debug("%s", error)
    compiler = find_compiler()
    if compiler is None:
        given = os.environ.get("CXX")
        none = f"CXX is {given}, which does not exist" if given else "there is no C++ compiler"
        return None, f"off: {none}; install g++, or set CXX"
    try:
        path = _compiled(folder, [*compiler, *FLAGS, *BUILDS[name].flags, *flags], make=make)
        if path is None:
            return None, "off: not compiled yet"
        try:
            return Library(str(path)), f"on: {name}, compiled by {compiler[0]} ({why}): {path}"
        except OSError as error:  # for example, a file system from which nothing may be executed
            return None, f"off: {error}; set RESNETKIT_CACHE to a folder from which libraries may be loaded"
    except subprocess.CalledProcessError as error:
        logger.debug("%s", error.stderr)
        lines = (error.stderr or "").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else "without a message")
        return None, f"off: {shlex.join(compiler)} failed: {first}"
    except OSError as error:
        advice = "; set RESNETKIT_CACHE to a folder that can be written" if error.filename else ""
        return None, f"off: {error}{advice}"
    except (RuntimeError, subprocess.TimeoutExpired) as error:  # RuntimeError: there is no home folder
        return None, f"off: {error}"


def _compiled(sources: Path, command: list[str], *, make: bool) -> Path | None:
    """Return the path of the library for this command and source. With `make`, it is compiled if needed.

    The name of the file ends with the digest of its bytes, since loading an incomplete file would crash the process.
    """
    digest = hashlib.sha256("\0".join([*command, platform.machine()]).encode())  # machines may share a cache
    for source in [*sorted(sources.glob("*.cpp")), *sorted(sources.glob("*.h"))]:
        digest.update(source.read_bytes())
    folder, name = cache_folder() / "kernels", digest.hexdigest()[:24]
    for path in folder.glob(f"{name}-*{SUFFIX}"):
        if path.name == _name(name, path):
            return path
    if not make:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    # Processes that compile at the same time write different files with the same bytes; the last file is kept.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / f"made{SUFFIX}"
        _run([*command, *map(str, sorted(sources.glob("*.cpp"))), "-o", str(made)])
        path = folder / _name(name, made)
        made.replace(path)
    return path


def _name(name: str, path: Path) -> str:
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}{SUFFIX}"


def _run(command: list[str]) -> None:
    """Run the compiler. Its messages may have any encoding."""
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=SECONDS)
