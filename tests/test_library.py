"""How the kernels are compiled, cached and loaded, and the message if this fails."""

import os
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnetkit import train
from resnetkit.data.samples import Dataset
from resnetkit.errors import UsageError
from resnetkit.kernels import library as loading
from resnetkit.kernels.library import library, status
from resnetkit.machine import read_machine
from resnetkit.models.resnet import build
from resnetkit.native import Library
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
    assert load() == (None, "off: RESNETKIT_KERNELS=avx3; give 0 or 1 or avx2")


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
    assert first[1] == second[1] == f"on, compiled by {os.environ['CXX']}: {first[0]._name}"
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
    assert said[0].startswith("on, compiled by ")
    assert len(list((own_cache / "kernels").iterdir())) == 1


AVX512 = "avx512f" in read_machine().instructions


@pytest.mark.slow
@pytest.mark.skipif(not AVX512, reason="the other tests run the AVX2 build already, or this processor can't")
@pytest.mark.parametrize("file", ["test_kernels.py", "test_muon.py", "test_resampling.py"])
def test_the_build_for_avx2_passes_the_same_tests(file):
    """The kernels for AVX2, which most laptops and desktops have, are tested on servers too."""
    environment = os.environ | {"RESNETKIT_KERNELS": "avx2"}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run([*tests, f"{Path(__file__).parent / file}"], env=environment, capture_output=True, text=True)
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


@pytest.mark.slow
def test_the_wheel_has_the_sources_and_the_models(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=SOURCE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    for folder in (SOURCE / "resnetkit" / name for name in ("data", "kernels", "models/packaged")):
        inside = {name.name for name in names if name.parent.name == folder.name}
        assert inside == {path.name for path in folder.iterdir() if path.is_file()}
