"""Compile the C++ sources of this package for this machine, keep the library and load it. No torch here."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from resnetkit.files import cache_folder
from resnetkit.machine import read_machine

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
BUILDS = {"1": "-march=native", "avx2": "-march=x86-64-v3"}
"""`$RESNETKIT_KERNELS` -> the compiler's flag for the instructions to use: all of this processor, or up to AVX2."""
SECONDS = 300  # for the compiler; it takes five

logger = logging.getLogger(__name__)

Library = ctypes.CDLL


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: `$CXX`, or the first of COMPILERS there is."""
    given = os.environ.get("CXX")
    for command in [_words(given)] if given else [[name] for name in COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark without its other one
        return [command]


def load(folder: Path, flags: Sequence[str], *, make: bool = True) -> tuple[Library | None, str]:
    """The library of a folder's C++ sources, and one line: that it is on, or why not. Never raises.

    The compiler gets FLAGS and `flags`. Without `make` nothing is compiled: the library is one of an earlier call.
    """
    asked = os.environ.get("RESNETKIT_KERNELS", "1")
    if asked not in BUILDS:
        known = " or ".join(["0", *BUILDS])
        return None, "off (RESNETKIT_KERNELS=0)" if asked == "0" else f"off: RESNETKIT_KERNELS={asked}; give {known}"
    if asked == "avx2" and "avx2" not in read_machine().instructions:
        return None, "off: RESNETKIT_KERNELS=avx2, and the processor has no AVX2; give 1"
    compiler = find_compiler()
    if compiler is None:
        given = os.environ.get("CXX")
        none = f"CXX is {given}, which is not there" if given else "there is no C++ compiler"
        return None, f"off: {none}; install g++, or set CXX"
    try:
        path = _compiled(folder, [*compiler, *FLAGS, BUILDS[asked], *flags], make=make)
        if path is None:
            return None, "off: not compiled yet"
        try:
            return Library(str(path)), f"on, compiled by {compiler[0]}: {path}"
        except OSError as error:  # say of a file system that nothing may be run from
            return None, f"off: {error}; set RESNETKIT_CACHE to a folder that libraries may be loaded from"
    except subprocess.CalledProcessError as error:
        logger.debug("%s", error.stderr)
        lines = (error.stderr or "").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        return None, f"off: {shlex.join(compiler)} failed: {first}"
    except OSError as error:
        mend = "; set RESNETKIT_CACHE to a folder that can be written" if error.filename else ""
        return None, f"off: {error}{mend}"
    except (RuntimeError, subprocess.TimeoutExpired) as error:  # RuntimeError: there is no home folder
        return None, f"off: {error}"


def _compiled(sources: Path, command: list[str], *, make: bool) -> Path | None:
    """The path of the library for this processor, command and source; with `make` it is compiled where there is none.

    Its name ends with the digest of its bytes: loading half a file would crash the process.
    """
    digest = hashlib.sha256("\0".join([*command, _processor()]).encode())
    for source in [*sorted(sources.glob("*.cpp")), *sorted(sources.glob("*.h"))]:
        digest.update(source.read_bytes())
    folder, name = cache_folder() / "kernels", digest.hexdigest()[:24]
    for path in folder.glob(f"{name}-*.so"):
        if path.name == _name(name, path):
            return path
    if not make:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    # Processes that compile at the same time each write their own file; the last to finish wins, with the same bytes.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "made.so"
        _run([*command, *map(str, sorted(sources.glob("*.cpp"))), "-o", str(made)])
        path = folder / _name(name, made)
        made.replace(path)
    return path


def _name(name: str, path: Path) -> str:
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _run(command: list[str]) -> None:
    """Run the compiler. Its messages may be in any encoding."""
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=SECONDS)


def _processor() -> str:
    """What -march=native depends on, as several machines may share a cache."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.lower().startswith(("model name", "flags", "features"))}))
