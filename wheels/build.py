"""Build a wheel for each platform in dist/, with C++ libraries compiled by zig: python wheels/build.py [PLATFORM...]

zig is one compiler for all platforms, and links nothing but the C library: pip install ziglang. Its first call for a
platform compiles the C++ library, which takes two minutes.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from resnetkit import native  # noqa: E402
from resnetkit.data.transforms import resampling  # noqa: E402
from resnetkit.kernels import library  # noqa: E402

WORK, DIST = ROOT / "build" / "wheels", ROOT / "dist"
FOLDERS = {library.SOURCES: library.FLAGS, resampling.SOURCES: resampling.FLAGS}
"""Folders of C++ sources, and flags of the compiler for each."""
# zig names processors in its own way.
ZIG = {
    "avx2": "-mcpu=x86_64_v3",
    "avx512": "-mcpu=skylake_avx512",
    "avx512_bf16": "-mcpu=skylake_avx512+avx512bf16",
    "neon": "-mcpu=generic",
}


@dataclass(frozen=True)
class Platform:
    """What zig compiles for a platform."""

    target: str
    """The platform in zig's words, with the oldest version of its C library."""
    suffix: str
    builds: tuple[str, ...]
    """Names in native.BUILDS."""


X86 = ("avx2", "avx512", "avx512_bf16")
PLATFORMS = {
    "manylinux_2_28_x86_64": Platform("x86_64-linux-gnu.2.28", ".so", X86),
    "manylinux_2_28_aarch64": Platform("aarch64-linux-gnu.2.28", ".so", ("neon",)),
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0", ".dylib", ("neon",)),
    "win_amd64": Platform("x86_64-windows-gnu", ".dll", X86),
}
"""Tags of wheels, and how their libraries are compiled."""


def main(names: list[str]) -> None:
    """Build the wheels of these platforms, or of all."""
    if unknown := [name for name in names if name not in PLATFORMS]:
        sys.exit(f"{', '.join(unknown)}: no such platform; there are {', '.join(PLATFORMS)}")
    for name in names or PLATFORMS:
        print(f"{name}: compiling", flush=True)
        folder = WORK / name
        shutil.rmtree(folder, ignore_errors=True)
        for build in PLATFORMS[name].builds:
            for place, flags in FOLDERS.items():
                compile_library(PLATFORMS[name], build, place, flags, folder / place.relative_to(ROOT / "src"))
        print(build_wheel(folder), flush=True)


def compile_library(platform: Platform, build: str, sources: Path, flags: tuple[str, ...], folder: Path) -> None:
    """Compile a folder of sources to `folder`/built/`build`."""
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", platform.target]
    out = folder / native.BUILT
    objects = out / "objects"
    objects.mkdir(parents=True)
    left_out = ("-shared", "-fPIC") if "windows" in platform.target else ("-shared",)
    own = [flag for flag in native.FLAGS if flag not in left_out]
    made = []
    # Sources are compiled for the build and linked for any processor: zig compiles the C++ library once, not for each.
    for source in sorted(sources.glob("*.cpp")):
        made.append(str(objects / f"{source.stem}.o"))
        run([*zig, *own, ZIG[build], *flags, "-c", str(source), "-o", made[-1]])
    run([*zig, "-shared", "-s", *made, "-o", str(out / f"{build}{platform.suffix}")])
    shutil.rmtree(objects)
    for extra in [*out.glob("*.lib"), *out.glob("*.pdb")]:  # for programs that link a Windows library
        extra.unlink()


def build_wheel(libraries: Path) -> str:
    """Build the wheel with these libraries; return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(DIST)]
    run(command, RESNETKIT_BUILT=str(libraries))
    return str(next(DIST.glob(f"*{libraries.name}.whl")).relative_to(ROOT))


def run(command: list[str], **environ: str) -> None:
    """Run a command; end with its output if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(sys.argv[1:])
