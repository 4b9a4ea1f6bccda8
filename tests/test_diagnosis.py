"""The output of doctor: rates from known times, advice only if it applies, one JSON document, lines for people."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnetkit import diagnosis
from resnetkit.cli import main
from resnetkit.commands import doctor
from resnetkit.diagnosis import Diagnosis, Rates, diagnose, measure
from resnetkit.machine import Machine

Shell = pytest.CaptureFixture[str]

MACHINE = Machine(
    processor="Xeon",
    architecture="x86_64",
    instructions=("avx2", "avx512_bf16", "amx_bf16"),
    cores=4,
    physical_cores=2,
    allowed_cores=4,
    quota_cores=None,
    memory_bytes=16 * 10**9,
    available_bytes=12 * 10**9,
    limit_bytes=None,
    load=0.1,
)
FOUND = Diagnosis(
    machine=MACHINE,
    python="3.11.7",
    versions={"torch": "2.14.1", "torchvision": "0.29.1"},
    threads=2,
    gpus=(),
    gpu_unused=False,
    rates=Rates(float32_tflops=0.35, bfloat16_tflops=1.6, copy_gb_per_second=27.0),
    allocator="glibc",
    keeps_memory=True,
    allocator_set_by="",
    compiler="g++",
    waiting={"GOMP_SPINCOUNT": "1000"},
    runtimes={"openvino": "2026.4.1", "onnxruntime": "1.31.1", "nncf": "3.4.0"},
    decoders={"pillow": "12.0.0"},
    cache=Path("/home/me/.cache/resnetkit"),
    cache_free_bytes=66 * 10**9,
    precision="bfloat16",
    kernels="on: avx2, part of the package (the processor has no AVX-512): /resnetkit/kernels/built/avx2.so",
    resizing="off: there is no C++ compiler",
)
"""A machine for which there is no advice."""
OFF = "off: there is no C++ compiler; install g++, or set CXX"


def on(**changes: Any) -> Diagnosis:
    return replace(FOUND, machine=replace(MACHINE, **changes))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(FOUND, gpu_unused=True), "an NVIDIA GPU that this torch can't use"),
        (on(load=3.0), "Other processes are busy (load 3.0 on 4 cores)"),
        (on(quota_cores=1.5), "torch starts 2 threads on 1.5 cores: set OMP_NUM_THREADS=1, or"),
        (replace(FOUND, threads=1, waiting={"OMP_NUM_THREADS": "1"}), "torch uses 1 of 4 cores (OMP_NUM_THREADS=1)"),
        (on(allowed_cores=2), "This process may run on 2 of 4 cores: give it more with taskset"),
        (replace(FOUND, compiler="", kernels=OFF), "There is no C++ compiler"),
        (replace(FOUND, waiting={"OMP_WAIT_POLICY": "ACTIVE"}), "OMP_WAIT_POLICY=active makes waiting threads spin"),
        (replace(FOUND, keeps_memory=False, allocator_set_by="MALLOC_ARENA_MAX"), "MALLOC_ARENA_MAX sets the alloc"),
        (replace(FOUND, rates=Rates(0.4, 0.3, 20.0)), "Products of float32 are faster here"),
        (replace(FOUND, precision="float32"), "This processor has no arithmetic for bfloat16. A processor that has it"),
        (on(instructions=("avx2", "avx512_bf16")), "A processor with AMX"),
        (
            replace(FOUND, runtimes={"openvino": "2026.4.1"}),
            "onnxruntime and nncf not installed: pip install 'resnetkit",
        ),
        (on(memory_bytes=2 * 10**9), "There are only 2.0 GB of memory"),
        (on(limit_bytes=10**9), "There are only 1.0 GB of memory"),
        (replace(FOUND, cache_free_bytes=3 * 10**8), "/home/me/.cache/resnetkit has 0.3 GB free"),
    ],
)
def test_advice_where_it_applies(found: Diagnosis, words: str) -> None:
    (advice,) = found.advice()
    assert words in advice


def test_no_advice_where_none_applies() -> None:
    assert FOUND.advice() == []
    assert replace(FOUND, rates=None).advice() == []
    assert replace(FOUND, keeps_memory=False, allocator="another").advice() == []
    assert on(load=None, memory_bytes=None).advice() == []
    assert on(architecture="aarch64", instructions=("bf16",)).advice() == []
    assert replace(FOUND, compiler="").advice() == [], "the package has kernels"
    slow = replace(on(load=9.0), compiler="", kernels=OFF, precision="float32")
    assert len(slow.advice()) == 3
    assert replace(slow, gpus=("NVIDIA H100",)).advice() == []


def test_rates_are_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(diagnosis, "SIDE", 512)  # a machine that emulates bfloat16 takes minutes for 2048
    monkeypatch.setattr(diagnosis, "_fastest", lambda work: calls.append(work()) or 1e-3)
    monkeypatch.setattr(diagnosis, "_seconds", lambda work: 1e-3)
    rates = measure()
    assert rates.float32_tflops == rates.bfloat16_tflops == pytest.approx(2 * 512**3 / 1e9)
    assert rates.copy_gb_per_second == pytest.approx(2 * 128 * 2**20 / 1e6)
    kinds = [call.dtype for call in calls if isinstance(call, torch.Tensor)]
    assert kinds == [torch.float32, torch.bfloat16, torch.uint8]


def test_products_that_take_long_are_of_smaller_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that emulates bfloat16: size 256 takes 40 ms, and 2048 would take 20 seconds."""
    monkeypatch.setattr(diagnosis, "_fastest", lambda work: work() is None or 1e-3)
    sides: list[tuple[int, torch.dtype]] = []

    def second(work: Any) -> float:
        made = work()
        sides.append((len(made), made.dtype))
        return 0.04 * (len(made) / 256) ** 3 if made.dtype == torch.bfloat16 else 1e-6

    monkeypatch.setattr(diagnosis, "_seconds", second)
    said: list[str] = []
    rates = measure(said.append)
    assert [side for side, dtype in sides if dtype == torch.float32] == [128, 256, 512, 1024]
    assert [side for side, dtype in sides if dtype == torch.bfloat16] == [128, 256, 512]
    assert rates.float32_tflops == pytest.approx(2 * 2048**3 / 1e9)
    assert rates.bfloat16_tflops == pytest.approx(2 * 512**3 / 1e9)
    assert [line.split()[-1] for line in said] == ["float32", "bfloat16", "memory"]


def test_emulated_bfloat16_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    slow = replace(on(instructions=("avx2",)), rates=Rates(0.16, 0.00075, 20.0), precision="float32")

    def found(*, quick: bool, say: Any) -> Diagnosis:
        say("measuring products of bfloat16")
        return slow

    monkeypatch.setattr(doctor, "diagnose", found)
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert "products    float32 0.16, bfloat16 0.0008 TFLOP/s, which is emulated" in out.splitlines()
    assert err == "resnetkit doctor: measuring products of bfloat16\n"


def test_the_first_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.2, 1.0, 1.05, 2.0, 2.1])
    monkeypatch.setattr(diagnosis, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    calls: list[int] = []
    assert diagnosis._fastest(lambda: calls.append(1)) == pytest.approx(0.05)
    assert len(calls) == 4


def test_this_machine(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(diagnosis.library, "status", lambda: "off: training")  # compiling takes seconds
    monkeypatch.setattr(diagnosis.resampling, "status", lambda: "off: resizing")
    monkeypatch.setenv("RESNETKIT_CACHE", str(own_cache / "not" / "yet"))
    found = diagnose(quick=True)
    assert found.rates is None
    assert (found.kernels, found.resizing) == ("off: training", "off: resizing")
    assert found.threads == torch.get_num_threads()
    assert {"torch", "torchvision"} == found.versions.keys()
    assert "pillow" in found.decoders
    assert found.cache == own_cache / "not" / "yet"
    assert found.cache_free_bytes > 0
    assert not found.cache.parent.exists()


def test_one_document(monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        doctor, "diagnose", lambda *, quick, say: asked.append(quick) or replace(FOUND, compiler="", kernels=OFF)
    )
    assert main(["doctor", "--json", "--quick"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert asked == [True]
    assert document.keys() == {field.name for field in fields(Diagnosis)} | {"advice", "version"}
    assert document["machine"].keys() == {field.name for field in fields(Machine)} | {"usable_cores", "usable_bytes"}
    assert document["machine"]["usable_cores"] == 4
    assert document["rates"] == {"float32_tflops": 0.35, "bfloat16_tflops": 1.6, "copy_gb_per_second": 27.0}
    assert document["cache"] == "/home/me/.cache/resnetkit"
    assert len(document["advice"]) == 1


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda *, quick, say: on(quota_cores=2.5, limit_bytes=8 * 10**9))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "processor   Xeon (x86_64) avx2 avx512_bf16 amx_bf16\n"
        "cores       2.5 usable: 4 in total, 2 without hyper-threads, 4 by affinity, 2.5 by the cgroup's quota\n"
        "memory      16.0 GB, 12.0 GB available, 8.0 GB by the cgroup's limit\n"
        "GPU         none\n"
        "software    Python 3.11.7, torch 2.14.1, torchvision 0.29.1, 2 threads\n"
        "products    float32 0.35, bfloat16 1.60 TFLOP/s\n"
        "copying     27.0 GB/s\n"
        "allocator   glibc's\n"
        "compiler    g++\n"
        "threads     GOMP_SPINCOUNT=1000\n"
        "runtimes    openvino 2026.4.1, onnxruntime 1.31.1, nncf 3.4.0\n"
        "decoders    pillow 12.0.0\n"
        "load        0.1 processes on 2.5 cores\n"
        "cache       /home/me/.cache/resnetkit, 66.0 GB free\n"
        "\n"
        "in use\n"
        "training    in bfloat16, channels_last\n"
        "predicting  by OpenVINO in float32, or as resnetkit tune chose for a model\n"
        "memory      freed memory is kept\n"
        "kernels     on: avx2, part of the package (the processor has no AVX-512): /resnetkit/kernels/built/avx2.so\n"
        "resizing    off: there is no C++ compiler\n"
        "\n"
        "how to make it faster\n"
        "- no advice for this machine\n"
    )


def test_lines_of_little(monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    bare = Machine("arm", "arm64", (), 8, 8, 8, None, None, None, None, None)
    found = replace(
        FOUND,
        machine=bare,
        rates=None,
        allocator="another",
        keeps_memory=False,
        compiler="",
        kernels=OFF,
        waiting={},
        threads=8,
    )
    monkeypatch.setattr(doctor, "diagnose", lambda *, quick, say: found)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for line in (
        "processor   arm (arm64)",
        "allocator   not glibc's",
        "compiler    no C++ compiler",
        "threads     no variables set",
        "memory      freed memory is not kept: the allocator is not glibc's",
        "- There is no C++ compiler, which the kernels need: apt-get install g++, or set CXX.",
    ):
        assert line in out.splitlines()
    assert not any(line.startswith(("products", "load")) for line in out.splitlines())
