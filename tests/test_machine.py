"""The description of the machine, read from system files of several machines."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnetkit import machine as machine_module
from resnetkit.machine import Machine, read_machine

XEON = """processor	: {n}
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
physical id	: 0
core id		: {core}
flags		: fpu sse2 avx2 avx512f avx512_bf16 avx_vnni avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8

"""
GRAVITON = """processor	: {n}
BogoMIPS	: 2100.00
Features	: fp asimd evtstrm aes asimddp sve i8mm bf16 dgh
CPU implementer	: 0x41
CPU part	: 0xd40

"""
MEMINFO = "MemTotal:       24684084 kB\nMemFree:        21681040 kB\nMemAvailable:   22568056 kB\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight hyper-threads of four cores, six of them allowed."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 1.0, 0.5), raising=False)
    write(tmp_path / "proc/cpuinfo", "".join(XEON.format(n=n, core=n // 2) for n in range(8)))
    write(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_x86(root: Path) -> None:
    machine = read_machine(root)
    assert machine.processor == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert machine.instructions == (
        *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    )
    assert (machine.cores, machine.physical_cores, machine.allowed_cores, machine.quota_cores) == (8, 4, 6, None)
    assert machine.usable_cores == 6
    assert (machine.memory_bytes, machine.available_bytes) == (24_684_084 * 1024, 22_568_056 * 1024)
    assert (machine.limit_bytes, machine.usable_bytes) == (None, 24_684_084 * 1024)
    assert machine.load == 1.5
    assert machine.summary().startswith("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 6 cores, 24 GiB (avx2, avx512f")


def test_arm_says_no_name_and_no_cores(root: Path) -> None:
    write(root / "proc/cpuinfo", "".join(GRAVITON.format(n=n) for n in range(8)))
    machine = read_machine(root)
    assert machine.instructions == ("asimd", "asimddp", "sve", "i8mm", "bf16")
    assert machine.physical_cores == 8
    assert machine.processor


def test_a_system_without_proc(root: Path) -> None:
    machine = read_machine(root / "nowhere")
    assert machine.instructions == ()
    assert (machine.physical_cores, machine.quota_cores, machine.limit_bytes, machine.available_bytes) == (
        8,
        *[None] * 3,
    )
    assert machine.memory_bytes is None or machine.memory_bytes > 2**28


@pytest.mark.parametrize(
    ("system", "architecture", "told", "instructions"),
    [
        ("darwin", "arm64", {"hw.optional.arm.FEAT_BF16"}, {"asimd", "bf16"}),
        ("darwin", "x86_64", {"hw.optional.avx2_0", "hw.optional.fma"}, {"avx2", "fma"}),
        ("win32", "amd64", {40}, {"avx2", "fma"}),
        ("win32", "amd64", {40, 41}, {"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
        ("win32", "arm64", set(), {"asimd"}),
        ("freebsd14", "amd64", set(), set()),
    ],
)
def test_instructions_of_other_systems(
    system: str, architecture: str, told: set[object], instructions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel32 = SimpleNamespace(IsProcessorFeaturePresent=told.__contains__)
    monkeypatch.setattr(machine_module.ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(machine_module, "_sysctl", told.__contains__)
    assert machine_module._ask_system(system, architecture) == instructions


@pytest.mark.parametrize(
    ("files", "quota", "limit"),
    [
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ({"cpu.max": "150000 100000\n", "memory.max": "2147483648\n"}, 1.5, 2**31),
        # Those around it hold, too, and the smallest counts.
        ({"cpu.max": "150000 100000\n", "a/cpu.max": "50000 100000\n", "a/b/cpu.max": "max 100000\n"}, 0.5, None),
        ({"a/memory.max": "1000000\n", "a/b/memory.max": "3000000\n"}, None, 1_000_000),
        ({}, None, None),
    ],
)
def test_limits_of_version_2(root: Path, files: dict[str, str], quota: float | None, limit: int | None) -> None:
    write(root / "proc/self/cgroup", "0::/a/b\n")
    for name, text in files.items():
        write(root / "sys/fs/cgroup" / name, text)
    machine = read_machine(root)
    assert (machine.quota_cores, machine.limit_bytes) == (quota, limit)
    assert machine.usable_cores == (quota or 6)


def test_limits_of_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/docker/1234\n3:cpuset:/\n1:cpu,cpuacct:/docker/1234\n0::/\n")
    top = root / "sys/fs/cgroup"
    write(top / "cpu/cpu.cfs_quota_us", "250000\n")  # in a container, the path's folder is not there
    write(top / "cpu/cpu.cfs_period_us", "100000\n")
    write(top / "memory/docker/1234/memory.limit_in_bytes", "9223372036854771712\n")
    write(top / "memory/memory.limit_in_bytes", "4294967296\n")
    machine = read_machine(root)
    assert (machine.quota_cores, machine.limit_bytes) == (2.5, 2**32)
    assert machine.usable_bytes == 2**32
    write(top / "cpu/cpu.cfs_quota_us", "-1\n")
    write(top / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine = read_machine(root)
    assert (machine.quota_cores, machine.limit_bytes) == (None, None)


GIB = 2**30


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"memory.max": f"{4 * GIB}\n", "memory.current": f"{3 * GIB}\n"}, GIB),
        # Kept files are dropped when they are in the way; those in use are not.
        (
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon {GIB}\nfile {2 * GIB}\nactive_file {GIB}\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        # The fullest counts, and what is used of a limit may be more than it for a moment.
        (
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{GIB}\n",
                "a/memory.max": f"{2 * GIB}\n",
                "a/memory.current": f"{GIB + 1}\n",
            },
            GIB - 1,
        ),
        ({"memory.max": f"{GIB}\n", "memory.current": f"{GIB + 1}\n"}, 0),
        ({"memory.max": f"{4 * GIB}\n"}, 4 * GIB),
        ({"memory.max": f"{64 * GIB}\n", "memory.current": f"{GIB}\n"}, 22_568_056 * 1024),
        ({"memory.max": "max\n", "memory.current": f"{GIB}\n"}, 22_568_056 * 1024),
    ],
)
def test_what_is_free_of_a_limit_of_version_2(root: Path, files: dict[str, str], available: int) -> None:
    write(root / "proc/self/cgroup", "0::/a\n")
    for name, text in files.items():
        write(root / "sys/fs/cgroup" / name, text)
    assert read_machine(root).available_bytes == available


def test_what_is_free_of_a_limit_of_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/docker/1234\n0::/\n")
    place = root / "sys/fs/cgroup/memory"
    write(place / "memory.limit_in_bytes", f"{4 * GIB}\n")
    write(place / "memory.usage_in_bytes", f"{3 * GIB}\n")
    assert read_machine(root).available_bytes == GIB
    write(place / "memory.stat", f"inactive_file 4096\ntotal_cache {2 * GIB}\ntotal_inactive_file {GIB}\n")
    assert read_machine(root).available_bytes == 2 * GIB
    (root / "proc/meminfo").unlink()
    assert read_machine(root).available_bytes == 2 * GIB


def test_this_machine() -> None:
    machine = read_machine()
    assert 0 < machine.usable_cores <= machine.cores
    assert machine.physical_cores <= machine.cores


def test_nothing_known_is_not_zero() -> None:
    machine = Machine("?", "?", (), 2, 2, 2, None, None, None, None, None)
    assert machine.usable_bytes is None
    assert machine.summary() == "?, 2 cores ()"
    assert replace(machine, quota_cores=3.0).usable_cores == 2
