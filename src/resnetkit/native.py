"""Compile the C++ sources of this package for this machine, cache the library and load it. torch is not imported."""

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
SECONDS = 300  # limit for the compiler, which usually needs five

logger = logging.getLogger(__name__)

Library = ctypes.CDLL


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


def load(folder: Path, flags: Sequence[str], *, make: bool = True) -> tuple[Library | None, str]:
    """Return the library of a folder's C++ sources, or None, and one line: that it is on, or the reason why not.

    The compiler gets FLAGS and `flags`. Without `make`, nothing is compiled, and only a cached library is returned.
    Never raises.
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
        none = f"CXX is {given}, which does not exist" if given else "there is no C++ compiler"
        return None, f"off: {none}; install g++, or set CXX"
    try:
        path = _compiled(folder, [*compiler, *FLAGS, BUILDS[asked], *flags], make=make)
        if path is None:
            return None, "off: not compiled yet"
        try:
            return Library(str(path)), f"on, compiled by {compiler[0]}: {path}"
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
    """Return the path of the library for this processor, command and source. With `make`, it is compiled if needed.

    The name of the file ends with the digest of its bytes, since loading an incomplete file would crash the process.
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
    # Processes that compile at the same time write different files with the same bytes; the last file is kept.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "made.so"
        _run([*command, *map(str, sorted(sources.glob("*.cpp"))), "-o", str(made)])
        path = folder / _name(name, made)
        made.replace(path)
    return path


def _name(name: str, path: Path) -> str:
    return f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _run(command: list[str]) -> None:
    """Run the compiler. Its messages may have any encoding."""
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=SECONDS)


def _processor() -> str:
    """Return a description of the processor, on which -march=native depends, since machines may share a cache."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.lower().startswith(("model name", "flags", "features"))}))
