"""Builds of the kernels that Python can't load here: NEON under qemu, and those of this processor with sanitizers."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test_kernels
import test_muon
import test_winograd_float32
from drivers import SOURCE, Driver
from resnetkit.data.transforms import resampling
from resnetkit.kernels import library
from resnetkit.machine import read_instructions
from resnetkit.native import BUILDS, BUILT, FLAGS
from units import UnitCase

NEON = "neon"
SOURCES = Path(__file__).parents[1] / "src"
USABLE = [name for name, build in BUILDS.items() if read_instructions().issuperset(build.instructions)]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1")
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")

pytestmark = pytest.mark.slow


def compile_code(compiler: str, flags: tuple[str, ...], sources: list[Path], out: Path) -> None:
    command = [compiler, "-std=c++17", *flags, *map(str, sources), "-o", str(out), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find -lasan" in done.stderr or "libasan_preinit.o" in done.stderr:
        pytest.skip("the sanitizers' libraries are not installed")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=[NEON, *(f"{name}, sanitized" for name in USABLE)])
def build(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def programs(build: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Driver]]:
    """Drivers of the kernels and of resampling, by the names of their folders."""
    name, _, sanitized = build.partition(", ")
    compiler, runner = ("g++", ()) if sanitized else (CROSS, EMULATOR)
    for program in (compiler, *runner[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt-get install g++-aarch64-linux-gnu qemu-user")
    folder, own = tmp_path_factory.mktemp(name), SANITIZERS if sanitized else ()
    compile_code(compiler, own, [SOURCE], folder / "driver")
    drivers = {}
    for sources, flags in ((library.SOURCES, library.FLAGS), (resampling.SOURCES, resampling.FLAGS)):
        out = folder / f"{sources.name}.so"
        if name == NEON and "RESNETKIT_BUILT" in os.environ:  # the libraries of a wheel
            out = Path(os.environ["RESNETKIT_BUILT"]) / sources.relative_to(SOURCES) / BUILT / "neon.so"
        else:
            compile_code(compiler, (*FLAGS, *BUILDS[name].flags, *flags, *own), sorted(sources.glob("*.cpp")), out)
        # Memory of threads is kept until the end, and so are libraries.
        environment = {"ASAN_OPTIONS": "detect_leaks=0"} if sanitized else {}
        drivers[sources.name] = Driver([*runner, str(folder / "driver"), str(out)], **environment)
    yield drivers
    assert [driver.close() for driver in drivers.values()] == ["", ""]


@pytest.fixture
def emulated(programs: dict[str, Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `operations` compute by the build, on one thread."""
    programs["kernels"].replace_kernels(monkeypatch)
    monkeypatch.setattr(test_kernels.kernels, "_has_tiles", lambda: False)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", test_kernels.TYPES)
@pytest.mark.parametrize("shape", [(3, 16, 7, 5), (2, 48, 3, 11), (5, 64, 1, 1)])
def test_batch_norm_addition_and_relu(shape, dtype):
    test_kernels.test_batch_norm_addition_and_relu(shape, True, True, dtype, 1)
    test_kernels.test_batch_norm_addition_and_relu(shape, False, False, dtype, 1)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [(16, 32, (3, 8, 8)), (48, 80, (1, 7, 7)), (64, 16, (13, 4, 4)), (16, 16, (1, 57, 13))],
)
def test_convolutions_in_float32(inputs, outputs, shape):
    test_winograd_float32.check(UnitCase(inputs, outputs, shape, beside=True, relu=True, dtype=torch.float32))
    test_winograd_float32.check(UnitCase(inputs, outputs, shape, beside=False, relu=False, dtype=torch.float32))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [(16, 32, (3, 8, 8)), (64, 64, (2, 14, 14)), (32, 16, (1, 32, 32)), (16, 16, (3, 4, 8))],
)
def test_convolutions_in_bfloat16(inputs, outputs, shape, build):
    if "bf16" not in build:
        pytest.skip("this build has no convolutions in bfloat16")
    test_kernels.check_unit(UnitCase(inputs, outputs, shape, beside=True, relu=True))
    test_kernels.test_gradients_of_strided_convolutions(inputs, outputs, (3, 6, 24), 1)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 5)])
def test_an_input_that_is_not_normalised_yet(shape):
    test_winograd_float32.test_an_input_that_is_not_normalised_yet(shape, 32, 64, 1)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (32, 64, 1, 1)])
def test_orthogonal_matrices(shape):
    test_muon.test_kernels_make_the_same_orthogonal_matrix(shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_pictures(programs, channels):
    rng = np.random.default_rng(0)
    for _ in range(20):
        width, height = rng.integers(1, 100, 2).tolist()
        sides = tuple(rng.integers(1, 60, 2).tolist())
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        box, window = np.array([0, 0, width, height], np.float32), np.array([0, 0, *sides], np.int32)
        out = bytearray(sides[0] * sides[1] * channels)
        boxed = [bytearray(box), *sides, bytearray(window), 0, out]
        arguments = [bytearray(pixels), width * channels, width, height, channels, 0, *boxed]
        programs["transforms"].call("resample", arguments)
        picture = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        along_rows = picture.resize(
            (sides[0], height), Image.Resampling.BILINEAR
        )  # Pillow 13 may begin with the columns
        expected = np.asarray(along_rows.resize(sides, Image.Resampling.BILINEAR))
        assert np.array_equal(np.frombuffer(out, np.uint8).reshape(expected.shape), expected), (width, height, sides)
