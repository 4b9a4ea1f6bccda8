"""The speed of this machine for networks: its hardware and software, measured rates, and advice to make it faster."""

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from resnetkit.allocator import allocator, chosen_by_user, keep_memory
from resnetkit.data.transforms import resampling
from resnetkit.files import cache_folder
from resnetkit.infer.choice import BFLOAT16
from resnetkit.kernels import library
from resnetkit.machine import Machine, read_machine
from resnetkit.native import find_compiler
from resnetkit.version import __version__

SIDE = 2048  # largest side of the matrices that are multiplied
LONGEST = 0.5  # longest time of one product, in seconds
COPIED = 128 * 2**20  # bytes that are copied, more than fit into caches
SECONDS = 0.3  # time for the measurement of each rate
RUNTIMES = ("openvino", "onnxruntime", "nncf")
DECODERS = ("pillow", "torchvision", "torchcodec", "simplejpeg")
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
LITTLE_DISK, LITTLE_MEMORY = 10**9, 4 * 10**9  # bytes
BUSY = 0.5  # ready processes per core from which the machine counts as busy


@dataclass(frozen=True)
class Rates:
    """Rates of arithmetic in float32 and bfloat16, and of memory, with all threads; the fastest of several tries."""

    float32_tflops: float
    """10^12 operations a second in a product of two matrices; a multiply-add is two operations. The matrices are 2048 x
    2048, or smaller if such a product takes long, as in emulated arithmetic."""
    bfloat16_tflops: float
    """The same for bfloat16."""
    copy_gb_per_second: float
    """10^9 bytes read and written in copying 128 MiB."""


@dataclass(frozen=True)
class Diagnosis:
    """The result of `resnetkit doctor`."""

    machine: Machine
    python: str
    versions: Mapping[str, str]
    """Versions of torch and torchvision."""
    threads: int
    """Threads that torch computes with."""
    gpus: tuple[str, ...]
    """GPUs that torch can use."""
    gpu_unused: bool
    """Whether there is an NVIDIA GPU that torch can't use."""
    rates: Rates | None
    """None if they were not measured."""
    allocator: str
    """glibc, or another."""
    keeps_memory: bool
    """Whether freed memory stays with the process; see `allocator.keep_memory`."""
    allocator_set_by: str
    """The environment variable that sets the allocator; empty if there is none."""
    compiler: str
    """The C++ compiler for the kernels; empty if there is none."""
    waiting: Mapping[str, str]
    """Environment variables for the number of threads and how they wait for each other."""
    runtimes: Mapping[str, str]
    """Installed packages, other than torch, that compute or quantise predictions, with versions."""
    decoders: Mapping[str, str]
    """Installed packages that decode JPEG files, with versions."""
    cache: Path
    cache_free_bytes: int
    precision: str
    """The default precision of training: float32 or bfloat16."""
    kernels: str
    """One line on the kernels of training: the build, where it is from and why it is this one; or why there is none."""
    resizing: str
    """One line on the kernel that resizes pictures."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the advice as JSON values."""
        known = asdict(self) | {"cache": str(self.cache), "advice": self.advice(), "version": __version__}
        known["machine"] |= {"usable_cores": self.machine.usable_cores, "usable_bytes": self.machine.usable_bytes}
        return known

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether this processor has no arithmetic for bfloat16."""
        return not set(BFLOAT16) & set(self.machine.instructions)

    def advice(self) -> list[str]:
        """Return advice to make this machine faster, one sentence or two each, the most effective first."""
        machine, cores = self.machine, self.machine.usable_cores
        said: list[str] = []
        if self.gpu_unused:
            said.append("There is an NVIDIA GPU that this torch can't use: install torch built for CUDA, and a driver.")
        if self.gpus:
            return said
        if machine.load is not None and machine.load >= BUSY * cores:
            said.append(
                f"Other processes are busy (load {machine.load:.1f} on {cores:g} cores): a thread that waits for a "
                "core delays all other threads. Stop these processes, or give them other cores with taskset."
            )
        if self.threads > max(1, cores):
            said.append(
                f"torch starts {self.threads} threads on {cores:g} cores: set OMP_NUM_THREADS={max(1, int(cores))}, or "
                f"train with resnetkit train --threads {max(1, int(cores))}."
            )
        elif self.threads < min(machine.physical_cores, int(cores)):
            given = self.waiting.get("OMP_NUM_THREADS")
            why = f" (OMP_NUM_THREADS={given})" if given else ""
            said.append(f"torch uses {self.threads} of {cores:g} cores{why}: set OMP_NUM_THREADS={int(cores)}.")
        if machine.allowed_cores < machine.cores:
            said.append(
                f"This process may run on {machine.allowed_cores} of {machine.cores} cores: give it more with taskset "
                "or docker run --cpuset-cpus."
            )
        if not self.compiler and not self.kernels.startswith("on"):
            said.append("There is no C++ compiler, which the kernels need: apt-get install g++, or set CXX.")
        if self.waiting.get("OMP_WAIT_POLICY", "").lower() == "active":
            said.append("OMP_WAIT_POLICY=active makes waiting threads spin, which slows working threads: unset it.")
        if not self.keeps_memory and self.allocator_set_by:
            said.append(
                f"{self.allocator_set_by} sets the allocator, so resnetkit does not change it: unset this variable to "
                "keep freed memory for the next operation, which is up to 1.5 times faster."
            )
        if missing := [name for name in RUNTIMES if name not in self.runtimes]:
            said.append(
                f"{' and '.join(missing)} not installed: pip install 'resnetkit[export]', then resnetkit tune MODEL "
                "DATA; predictions are then several times faster."
            )
        said += self._advice_on_numbers()
        if machine.usable_bytes and machine.usable_bytes < LITTLE_MEMORY:
            said.append(
                f"There are only {machine.usable_bytes / 1e9:.1f} GB of memory: train with smaller batches or smaller "
                "pictures: resnetkit train --batch-size N --size N."
            )
        if self.cache_free_bytes < LITTLE_DISK:
            said.append(
                f"{self.cache} has {self.cache_free_bytes / 1e9:.1f} GB free, and downloads go there: "
                "free space, or set RESNETKIT_CACHE to another folder."
            )
        return said

    def _advice_on_numbers(self) -> list[str]:
        if self.rates and self.precision == "bfloat16" and self.rates.bfloat16_tflops < self.rates.float32_tflops:
            return [
                "Products of float32 are faster here than those of bfloat16: try resnetkit train --precision float32."
            ]
        if self.precision == "float32":
            return [
                "This processor has no arithmetic for bfloat16. A processor that has it (Intel Xeon since 2023, with "
                "AMX; AMD EPYC since 2022; ARM with bf16) trains and predicts about twice as fast, or more."
            ]
        if self.machine.architecture == "x86_64" and "amx_bf16" not in self.machine.instructions:
            return ["A processor with AMX (Intel Xeon since 2023) multiplies bfloat16 several times faster."]
        return []


def diagnose(*, quick: bool = False, say: Callable[[str], None] = lambda line: None) -> Diagnosis:
    """Examine this machine. With `quick`, no rates are measured.

    `say` is called with a line of text before each step that takes longer. The function calls `keep_memory`, as the
    command line does. It compiles the kernels if they are not in the cache, which takes some seconds.
    """
    keeps = keep_memory()
    say("importing torch")
    import platform

    import torch

    from resnetkit.device import choose_device, choose_precision

    machine = read_machine()  # before the measurements, which raise the load
    cuda = torch.cuda.is_available()
    compiler = find_compiler()
    rates = None if quick else measure(say)
    say("loading the kernels, which are compiled at the first use if the package was installed without them")
    return Diagnosis(
        machine=machine,
        python=platform.python_version(),
        versions=_versions("torch", "torchvision"),
        threads=torch.get_num_threads(),
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) if cuda else (),
        gpu_unused=Path("/dev/nvidia0").exists() and not cuda,
        rates=rates,
        allocator=allocator(),
        keeps_memory=keeps,
        allocator_set_by=chosen_by_user(os.environ),
        compiler=shlex.join(compiler) if compiler else "",
        waiting={name: os.environ[name] for name in WAITING if name in os.environ},
        runtimes=_versions(*RUNTIMES),
        decoders=_versions(*DECODERS),
        cache=cache_folder(),
        cache_free_bytes=_free(cache_folder()),
        precision=choose_precision("auto", choose_device("auto")),
        kernels=library.status(),
        resizing=resampling.status(),
    )


def measure(say: Callable[[str], None] = lambda line: None) -> Rates:
    """Measure the processor's rates. This takes about a second, and some seconds if bfloat16 is emulated."""
    import torch

    def product(side: int, dtype: torch.dtype) -> Callable[[], object]:
        a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
        return lambda: torch.mm(a, b)

    def tflops(dtype: torch.dtype) -> float:
        say(f"measuring products of {str(dtype).removeprefix('torch.')}")
        side = SIDE // 16
        while side < SIDE and 8 * _seconds(product(side, dtype)) < LONGEST:  # twice the side is eight times the work
            side *= 2
        return 2 * side**3 / _fastest(product(side, dtype)) / 1e12

    source, copy = torch.ones(2, COPIED, dtype=torch.uint8)
    with torch.inference_mode():
        rates = tflops(torch.float32), tflops(torch.bfloat16)
        say("measuring copies in memory")
        return Rates(*rates, copy_gb_per_second=2 * COPIED / _fastest(lambda: copy.copy_(source)) / 1e9)


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three calls, after a first call that is not measured."""
    work()
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _fastest(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls, after a first call that is not measured."""
    work()
    took: list[float] = []
    while sum(took) < SECONDS:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def _versions(*packages: str) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
