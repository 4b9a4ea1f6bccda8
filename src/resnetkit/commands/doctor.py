"""`resnetkit doctor`: hardware and software of this machine, what resnetkit uses of it, and how to make it faster."""

import sys
from collections.abc import Iterator, Mapping, Sequence

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import print_json
from resnetkit.diagnosis import Diagnosis, diagnose


def run(argv: Sequence[str]) -> int:
    """Examine the machine, measure its speed, and print the result."""
    parser = Parser(
        "doctor",
        "[options]",
        "Show the hardware and software of this machine, what resnetkit uses of it, and how to make it faster.",
    )
    parser.add_argument("--quick", action="store_true", help="do not measure the speed, which takes some seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    found = diagnose(quick=given["quick"], say=_say)
    if given["json"]:
        print_json(found.to_dict())
        return 0
    for title, lines in (("", _there(found)), ("\nin use", _in_use(found))):
        if title:
            print(title)
        for name, text in lines:
            print(f"{name:10}  {text}")
    print("\nhow to make it faster")
    for advice in found.advice() or ["no advice for this machine"]:
        print(f"- {advice}")
    return 0


def _there(found: Diagnosis) -> Iterator[tuple[str, str]]:
    machine = found.machine
    yield "processor", f"{machine.processor} ({machine.architecture}) {' '.join(machine.instructions)}".rstrip()
    quota = f", {machine.quota_cores:g} by the cgroup's quota" if machine.quota_cores else ""
    yield (
        "cores",
        f"{machine.usable_cores:g} usable: {machine.cores} in total, {machine.physical_cores} without hyper-threads, "
        f"{machine.allowed_cores} by affinity{quota}",
    )
    if machine.memory_bytes:
        available = f", {machine.available_bytes / 1e9:.1f} GB available" if machine.available_bytes else ""
        limit = f", {machine.limit_bytes / 1e9:.1f} GB by the cgroup's limit" if machine.limit_bytes else ""
        yield "memory", f"{machine.memory_bytes / 1e9:.1f} GB{available}{limit}"
    yield "GPU", ", ".join(found.gpus) or ("one that torch can't use" if found.gpu_unused else "none")
    yield "software", f"Python {found.python}, {_list(found.versions)}, {found.threads} threads"
    if rates := found.rates:
        emulated = ", which is emulated" if found.emulates_bfloat16 else ""
        yield (
            "products",
            f"float32 {_rate(rates.float32_tflops)}, bfloat16 {_rate(rates.bfloat16_tflops)} TFLOP/s{emulated}",
        )
        yield "copying", f"{rates.copy_gb_per_second:.1f} GB/s"
    yield "allocator", {"glibc": "glibc's", "another": "not glibc's"}[found.allocator]
    yield "compiler", found.compiler or "no C++ compiler"
    yield "threads", ", ".join(f"{name}={value}" for name, value in found.waiting.items()) or "no variables set"
    yield "runtimes", _list(found.runtimes) or "only torch"
    yield "decoders", _list(found.decoders)
    if machine.load is not None:
        yield "load", f"{machine.load:.1f} processes on {machine.usable_cores:g} cores"
    yield "cache", f"{found.cache}, {found.cache_free_bytes / 1e9:.1f} GB free"


def _in_use(found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "training", f"in {found.precision}, channels_last"
    by = "torch" if found.gpus or "openvino" not in found.runtimes else "OpenVINO"
    yield "predicting", f"by {by} in float32, or as resnetkit tune chose for a model"
    reason = f"{found.allocator_set_by} is set" if found.allocator_set_by else "the allocator is not glibc's"
    yield "memory", "freed memory is kept" if found.keeps_memory else f"freed memory is not kept: {reason}"
    yield "kernels", found.kernels
    yield "resizing", found.resizing


def _say(line: str) -> None:
    print(f"resnetkit doctor: {line}", file=sys.stderr, flush=True)


def _rate(tflops: float) -> str:
    return f"{tflops:.2f}" if tflops >= 0.1 else f"{tflops:.1g}"


def _list(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
