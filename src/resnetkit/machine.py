"""The processor, cores and memory of this machine, and how much of them this process may use.

The values come from /proc and /sys on Linux. On other systems they come from Python, and some are None. This module
does not import torch.
"""

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

INSTRUCTIONS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "sve", "i8mm", "bf16"),
)
"""Instruction sets that make networks faster, by their names in /proc/cpuinfo: of x86, then of ARM."""


@dataclass(frozen=True)
class Machine:
    """Processor, cores and memory. Two hyper-threads of one physical core count as two cores."""

    processor: str
    architecture: str
    """x86_64, aarch64, ..."""
    instructions: tuple[str, ...]
    """Those of INSTRUCTIONS that the processor has; empty if the system does not report them."""
    cores: int
    physical_cores: int
    """Cores without hyper-threads; equal to `cores` if the system does not report them."""
    allowed_cores: int
    """Cores that this process may run on (its affinity)."""
    quota_cores: float | None
    """Limit of the cgroup (of a container) on processor time, in seconds per second; None: no limit."""
    memory_bytes: int | None
    """Memory of the machine."""
    available_bytes: int | None
    """Memory that this process can still get without swapping, within the limit of its cgroup."""
    limit_bytes: int | None
    """Limit of the cgroup (of a container) on memory; None: no limit."""
    load: float | None
    """Mean number of processes that were ready to run in the last minute, including this process."""

    @property
    def usable_cores(self) -> float:
        """Cores that this process can keep busy."""
        return min(self.allowed_cores, self.quota_cores or self.allowed_cores)

    @property
    def usable_bytes(self) -> int | None:
        """Largest memory that this process can get if other processes use none; None if it is not known."""
        known = [size for size in (self.memory_bytes, self.limit_bytes) if size is not None]
        return min(known, default=None)

    def summary(self) -> str:
        """Return a description of one line, for the output of measurements."""
        memory = f", {self.usable_bytes / 2**30:.0f} GiB" if self.usable_bytes else ""
        return f"{self.processor}, {self.usable_cores:g} cores{memory} ({', '.join(self.instructions)})"


def read_machine(root: Path = Path("/")) -> Machine:
    """Return the description of this machine. `root` is the folder that contains proc and sys."""
    blocks = [_fields(block) for block in _text(root / "proc/cpuinfo").split("\n\n") if block.strip()]
    first = blocks[0] if blocks else {}
    instructions = read_instructions(root)
    ids = {(block["physical id"], block["core id"]) for block in blocks if {"physical id", "core id"} <= block.keys()}
    cores = os.cpu_count() or 1
    memory = _fields(_text(root / "proc/meminfo"))
    limits = list(_limits(root))
    free = [limit - used for limit, used in limits]
    if (available := _kilobytes(memory.get("MemAvailable"))) is not None:
        free.append(available)
    return Machine(
        processor=first.get("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        instructions=tuple(name for name in INSTRUCTIONS if name in instructions),
        cores=cores,
        physical_cores=len(ids) or cores,
        allowed_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        quota_cores=min(_quotas(root), default=None),
        memory_bytes=_kilobytes(memory.get("MemTotal")) or _physical_memory(),
        available_bytes=max(min(free), 0) if free else None,
        limit_bytes=min((limit for limit, _ in limits), default=None),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def read_instructions(root: Path = Path("/")) -> frozenset[str]:
    """Return the instruction sets of the processor, by their names in /proc/cpuinfo.

    macOS and Windows tell some of them, which get the same names.
    """
    if (root / "proc/cpuinfo").exists():
        block = _fields(_text(root / "proc/cpuinfo").split("\n\n")[0])
        return frozenset((block.get("flags") or block.get("Features") or "").split())
    return _ask_system(sys.platform, platform.machine().lower()) if root == Path("/") else frozenset()


_AVX2 = ("avx2", "fma")
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_APPLE = {"avx2": "avx2_0", "bf16": "arm.FEAT_BF16", "i8mm": "arm.FEAT_I8MM"}


def _ask_system(system: str, architecture: str) -> frozenset[str]:
    known: set[str] = set()
    if architecture in ("arm64", "aarch64"):
        known.add("asimd")
    if system == "darwin":
        names = (*_AVX2, *_AVX512, "bf16", "i8mm")
        known.update(name for name in names if _sysctl(f"hw.optional.{_APPLE.get(name, name)}"))
    elif system == "win32" and "asimd" not in known:
        # Windows has no numbers for the rest: processors with AVX2 have FMA, those with AVX-512 what Skylake has of it.
        has = getattr(ctypes, "windll").kernel32.IsProcessorFeaturePresent  # noqa: B009, types of Linux have no windll
        known.update(_AVX2 if has(40) else ())  # PF_AVX2_INSTRUCTIONS_AVAILABLE
        known.update(_AVX512 if has(41) else ())  # PF_AVX512F_INSTRUCTIONS_AVAILABLE
    return frozenset(known)


def _sysctl(name: str) -> bool:
    """Return whether macOS has a number by this name, other than zero."""
    value, size = ctypes.c_int64(), ctypes.c_size_t(8)
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return not failed and value.value != 0


def _quotas(root: Path) -> Iterator[float]:
    for folder in _cgroups(root, "cpu"):
        # cgroup version 2 has both numbers in one file. No limit is "max" in version 2, and -1 in version 1.
        text = (
            _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        )
        if found := re.fullmatch(r"(\d+)\s+(\d+)\s*", text):
            yield int(found[1]) / int(found[2])


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield each limit on memory and its used bytes; used bytes are 0 if the system does not report them."""
    for folder in _cgroups(root, "memory"):
        text = (_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")).strip()
        if text.isdigit() and int(text) < 2**60:  # in version 1, no limit is a very large number
            used = (_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")).strip()
            yield int(text), max(int(used) - _droppable(folder), 0) if used.isdigit() else 0


def _droppable(folder: Path) -> int:
    """Return the bytes of a cgroup's memory that only cache files: they count as used, but the kernel can drop them.

    The number includes inner cgroups; version 1 has another field for this number than version 2.
    """
    lines = (line.partition(" ") for line in _text(folder / "memory.stat").splitlines())
    known = {name: int(value) for name, _, value in lines if value.strip().isdigit()}
    return known.get("total_inactive_file", known.get("inactive_file", 0))


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of the outer cgroups, whose limits apply, too.

    In a container, the path may be that of the host, and only the outermost folder exists; others are ignored.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = top / controller if controllers else top  # version 1 has a tree for each controller, version 2 has one
        inner = PurePosixPath(path.lstrip("/"))
        for place in (inner, *inner.parents):
            yield mount / place


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fields(text: str) -> dict[str, str]:
    """Return the values of lines such as `MemTotal:  24684084 kB`, by name."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in lines if colon}


def _kilobytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # this system does not have the function or the name
        return None
