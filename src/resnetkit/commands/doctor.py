"""`resnetkit doctor`: what this machine can do, what of it is used, and what would make it faster."""

import sys
from collections.abc import Iterator, Mapping, Sequence

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import print_json
from resnetkit.diagnosis import Diagnosis, diagnose


def run(argv: Sequence[str]) -> int:
    """Look, measure, print."""
    parser = Parser(
        "doctor", "[options]", "What this machine can do, what of it is used, and what would make it faster."
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the rates, whose measurement takes some seconds"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    found = diagnose(quick=given["quick"], say=_say)
    if given["json"]:
        print_json(found.to_dict())
        return 0
    for title, lines in (("", _there(found)), ("\nwhat is on", _on(found))):
        if title:
            print(title)
        for name, text in lines:
            print(f"{name:10}  {text}")
    print("\nwhat would make it faster")
    for advice in found.advice() or ["nothing that is known here"]:
        print(f"- {advice}")
    return 0


def _there(found: Diagnosis) -> Iterator[tuple[str, str]]:
    machine = found.machine
    yield "processor", f"{machine.processor} ({machine.architecture}) {' '.join(machine.instructions)}".rstrip()
    quota = f", {machine.quota_cores:g} by the cgroup's quota" if machine.quota_cores else ""
    yield (
        "cores",
        f"{machine.usable_cores:g} usable: {machine.cores} there, {machine.physical_cores} without hyper-threads, "
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
    yield "compiler", found.compiler or "none for C++"
    yield "threads", ", ".join(f"{name}={value}" for name, value in found.waiting.items()) or "nothing set"
    yield "runtimes", _list(found.runtimes) or "torch alone"
    yield "decoders", _list(found.decoders)
    if machine.load is not None:
        yield "load", f"{machine.load:.1f} processes on {machine.usable_cores:g} cores"
    yield "cache", f"{found.cache}, {found.cache_free_bytes / 1e9:.1f} GB free"


def _on(found: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "training", f"in {found.precision}, channels_last"
    by = "torch" if found.gpus or "openvino" not in found.runtimes else "OpenVINO"
    yield "predicting", f"by {by} in float32, or as resnetkit tune found for a model"
    kept = f"no: {found.allocator_set_by} is set" if found.allocator_set_by else "no: the allocator is not glibc's"
    yield "memory", "freed memory is kept" if found.keeps_memory else kept
    yield "kernels", found.kernels
    yield "resizing", found.resizing


def _say(line: str) -> None:
    print(f"resnetkit doctor: {line}", file=sys.stderr, flush=True)


def _rate(tflops: float) -> str:
    return f"{tflops:.2f}" if tflops >= 0.1 else f"{tflops:.1g}"


def _list(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
