"""How the kernels are compiled, cached and loaded, and the message if this fails."""

import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnetkit import native, train
from resnetkit.data.samples import Dataset
from resnetkit.errors import UsageError
from resnetkit.kernels import library as loading
from resnetkit.kernels.library import library, status
from resnetkit.machine import read_instructions
from resnetkit.models.resnet import build
from resnetkit.native import BUILDS, Library, choose_build
from resnetkit.train.computing.compute import choose_forward
from resnetkit.train.recipe import Recipe

SOURCE = Path(__file__).parents[1] / "src"
compiled = pytest.mark.skipif(library() is None, reason=f"the kernels are {status()}")


def start(code: str, **environ: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)} | environ
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate()
    assert process.returncode == 0
    return out.strip()


def built() -> Path:
    """Return the kernels that these tests have loaded."""
    found = library()
    assert found is not None
    return Path(found._name)


def load() -> tuple[Library | None, str]:
    """Make the next call look for the kernels again."""
    return loading._load.__wrapped__()


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Path:
    """A fast compiler that only copies a file; returns the file with one line for each call."""
    calls = tmp_path / "calls"
    calls.write_text("")
    script = f'for out; do :; done; echo >> {calls}; sleep 0.2; cp {built()} "$out"'
    monkeypatch.setenv("CXX", str(program(tmp_path / "copying", script)))
    return calls


def test_without_a_compiler_status_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load() == (None, "off: there is no C++ compiler; install g++, or set CXX")


@pytest.mark.parametrize("name", ["no-such-g++", 'g++ "', "/"])
def test_a_compiler_that_is_not_there_is_named(name, monkeypatch):
    monkeypatch.setenv("CXX", name)
    assert load() == (None, f"off: CXX is {name}, which does not exist; install g++, or set CXX")


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch, own_cache):
    """The message is the first error, in any encoding, and not the last line, which gives the number of errors."""
    message = r"x.h:1: fatal error: no \377 omp.h\ncompilation terminated.\n"
    fails = program(tmp_path / "failing", f'printf "{message}" >&2; exit 1')
    monkeypatch.setenv("CXX", f"{fails} -O1")
    assert load() == (None, f"off: {fails} -O1 failed: x.h:1: fatal error: no \N{REPLACEMENT CHARACTER} omp.h")
    assert not list((own_cache / "kernels").iterdir())
    monkeypatch.setenv("CXX", str(program(tmp_path / "silent", "exit 3")))
    assert load() == (None, f"off: {tmp_path / 'silent'} failed: without a message")


def test_the_environment_turns_the_kernels_off(monkeypatch):
    monkeypatch.setenv("RESNETKIT_KERNELS", "0")
    assert load() == (None, "off (RESNETKIT_KERNELS=0)")
    monkeypatch.setenv("RESNETKIT_KERNELS", "avx3")
    known = "0 or 1 or avx512_bf16 or avx512 or avx2 or neon or generic"
    assert load() == (None, f"off: RESNETKIT_KERNELS=avx3; give {known}")


SKYLAKE = frozenset(["sse2", "avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])


@pytest.mark.parametrize(
    ("asked", "instructions", "build", "reason"),
    [
        ("1", SKYLAKE | {"avx512_bf16", "amx_bf16"}, "avx512_bf16", "the processor has AVX512-BF16"),
        ("1", SKYLAKE, "avx512", "the processor has no AVX512-BF16"),
        ("1", SKYLAKE - {"avx512vl"}, "avx2", "the processor has no AVX-512"),  # Xeon Phi has a part of it
        ("1", frozenset({"avx2", "fma"}), "avx2", "the processor has no AVX-512"),
        ("1", frozenset({"asimd", "bf16"}), "neon", "the processor has NEON"),
        ("1", frozenset({"sse2"}), "generic", "neither AVX2 nor NEON was found"),
        ("avx2", SKYLAKE, "avx2", "RESNETKIT_KERNELS=avx2"),
        (
            "avx512",
            SKYLAKE - {"avx512f"},
            None,
            "off: RESNETKIT_KERNELS=avx512, and the processor has no AVX-512; give 1",
        ),
        ("neon", SKYLAKE, None, "off: RESNETKIT_KERNELS=neon, and the processor has no NEON; give 1"),
    ],
)
def test_the_processor_chooses_the_build(asked, instructions, build, reason):
    assert choose_build(asked, instructions) == (build, reason)


def test_a_library_of_the_package_needs_no_compiler(tmp_path, monkeypatch):
    """It is taken before the cache. One that can't be loaded is compiled."""
    name, why = choose_build("1", read_instructions())
    path = tmp_path / "built" / f"{name}.so"
    path.parent.mkdir()
    monkeypatch.setenv("CXX", "no-such-g++")
    path.write_text("not a library")
    assert native.load(tmp_path, ())[1].startswith("off: CXX is no-such-g++")
    path.unlink()
    path.symlink_to(built())
    found, said = native.load(tmp_path, (), make=False)
    assert found is not None
    assert found._name == str(path)
    assert said == f"on: {name}, part of the package ({why}): {path}"


@compiled
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, compiler):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    found, why = load()
    assert found is None
    assert str(tmp_path / "file") in why
    assert why.endswith("set RESNETKIT_CACHE to a folder that can be written")


@compiled
def test_the_kernels_are_compiled_once(compiler, own_cache):
    first, second = load(), load()
    assert first[0] is not None
    name, why = choose_build(os.environ.get("RESNETKIT_KERNELS", "1"), read_instructions())
    assert first[1] == second[1] == f"on: {name}, compiled by {os.environ['CXX']} ({why}): {first[0]._name}"
    assert len(compiler.read_text().splitlines()) == 1
    assert [path.suffix for path in (own_cache / "kernels").iterdir()] == [".so"], "nothing else is left"


@compiled
@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_half_a_file_is_made_anew(share, compiler, own_cache):
    found, _ = load()
    assert found is not None
    path = own_cache / "kernels" / Path(found._name).name
    whole = path.read_bytes()
    path.unlink()  # not written over: this process has it in memory
    path.write_bytes(whole[: int(share * len(whole))])
    again, why = load()
    assert again is not None, why
    assert path.read_bytes() == whole
    assert len(compiler.read_text().splitlines()) == 2


@compiled
def test_two_processes_compile_at_once(compiler, own_cache):
    code = "from resnetkit.kernels.library import status; print(status())"
    both = [start(code), start(code)]
    said = [finished(process) for process in both]
    assert said[0] == said[1]
    assert ", compiled by " in said[0]
    assert len(list((own_cache / "kernels").iterdir())) == 1


# Without "generic", which test_builds.py runs.
USABLE = [name for name, build in BUILDS.items() if build.title and read_instructions().issuperset(build.instructions)]


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("build", [name for name in USABLE if f" {name}," not in status()])
def test_the_other_builds_pass_the_same_tests(build):
    """The build that this processor chooses is in the other tests. Those for lesser processors are tested here."""
    files = ["test_kernels.py", "test_winograd_float32.py", "test_muon.py", "test_resampling.py"]
    # Two threads stand for any number of them here.
    chosen = ["-m", "not slow", "-k", "not [1- and not [1] and not [3- and not [3]"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(
        [*tests, *(str(Path(__file__).parent / file) for file in files)],
        env=os.environ | {"RESNETKIT_KERNELS": build},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.fixture
def no_kernels(monkeypatch) -> None:
    monkeypatch.setattr("resnetkit.train.computing.fused.library", lambda: None)


def test_training_without_kernels_is_done_by_torch(no_kernels, cifar_subset, tmp_path):
    pictures, test = cifar_subset
    dataset = Dataset("subset", test.classes, pictures, None, test, {})
    recipe = Recipe(model="resnet20,depths=1-1-1", iterations=2, batch_size=16, precision="float32", threads=1)
    train(recipe, dataset, out=tmp_path / "run", quiet=True)
    assert "float32 on cpu, eager" in (tmp_path / "run" / "log.txt").read_text()
    with pytest.raises(UsageError, match="`compile` kernels does not support this network: the kernels are off"):
        train(replace(recipe, compile="kernels"), dataset, out=tmp_path / "other", quiet=True)


def test_asking_for_kernels_that_are_not_there_names_the_mend(no_kernels):
    recipe = Recipe(compile="kernels")
    with pytest.raises(UsageError, match=r"resnetkit doctor gives the reason\). Give `compile` auto"):
        choose_forward(build("resnet20"), recipe, torch.device("cpu"), "float32", size=32)


def build_package(target: str, out: Path, *, source: Path = SOURCE.parent, **environ: str) -> Path:
    build = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(build, cwd=source, env=os.environ | environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.mark.slow
def test_the_wheel_has_the_sources_and_the_models(tmp_path):
    """So does the wheel of a source distribution, which is what pip builds where no wheel fits."""
    packed = build_package("sdist", tmp_path / "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    for source in (SOURCE.parent, tmp_path / packed.name.removesuffix(".tar.gz")):
        wheel = build_package("wheel", tmp_path / f"of {source.name}", source=source)
        assert wheel.name.endswith("-py3-none-any.whl")
        names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
        for folder in (SOURCE / "resnetkit" / name for name in ("data", "kernels", "models/packaged")):
            inside = {name.name for name in names if name.parent.name == folder.name}
            assert inside == {path.name for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_a_wheel_with_libraries_is_for_one_platform(tmp_path):
    library = tmp_path / "win_amd64" / "resnetkit" / "kernels" / "built" / "avx2.dll"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"a library")
    wheel = build_package("wheel", tmp_path / "dist", RESNETKIT_BUILT=str(tmp_path / "win_amd64"))
    assert wheel.name.endswith("-py3-none-win_amd64.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("resnetkit/kernels/built/avx2.dll") == b"a library"
        (about,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
        assert {"Root-Is-Purelib: false", "Tag: py3-none-win_amd64"} <= set(archive.read(about).decode().splitlines())
