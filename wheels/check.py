"""Check the wheels in dist/: python wheels/check.py. It needs the packages of the tests, and llvm-objdump or objdump.

Each library may need only the system's own libraries, in versions that the wheel's tag allows. The wheel for this
machine is installed into a new environment, which has no compiler. There, each build that the processor can run passes
the tests of kernels, and a short training uses them. The environment takes torch and the packages of the tests from the
one that runs this script.
"""

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from resnetkit.machine import read_instructions  # noqa: E402
from resnetkit.native import BUILDS, BUILT  # noqa: E402

LARGEST = 6 * 2**20  # bytes of a wheel without its models
ALLOWED = {
    "manylinux": r"lib(c|m|dl|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d",
    "macosx": r"/usr/lib/libSystem\.B\.dylib",
    "win": r"(KERNEL32|ntdll|api-ms-win-crt-\w+-l1-1-0)\.dll",
}
"""Start of a wheel's platform tag -> the libraries that its own may need."""
GLIBC = (2, 28)  # what manylinux_2_28 promises
TESTS = ("test_kernels.py", "test_winograd_float32.py", "test_muon.py", "test_resampling.py")


def main() -> None:
    """Check every wheel; end with a message at the first mistake."""
    for wheel in sorted((ROOT / "dist").glob("*.whl")):
        tag = wheel.stem.rsplit("-", 1)[1]
        with tempfile.TemporaryDirectory() as work:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work)
            check_files(tag, Path(work))
        if tag.startswith("manylinux") and tag.endswith(platform.machine()) and sys.platform == "linux":
            check_installed(wheel)
        elif tag.endswith("aarch64"):
            check_emulated(tag)
        else:
            print(f"{tag}: not run, this is another system")


def check_files(tag: str, folder: Path) -> None:
    """Check what the libraries of a wheel need, and its size."""
    libraries = sorted(folder.rglob(f"{BUILT}/*"))
    if not libraries:
        sys.exit(f"{tag}: the wheel has no libraries")
    for path in libraries:
        needed, versions = requirements(path)
        allowed = next(pattern for start, pattern in ALLOWED.items() if tag.startswith(start))
        if others := [name for name in needed if not re.fullmatch(allowed, name, re.IGNORECASE)]:
            sys.exit(f"{tag}: {path.name} needs {', '.join(others)}")
        if newer := [name for name in versions if tuple(map(int, name.split("."))) > GLIBC]:
            sys.exit(f"{tag}: {path.name} needs glibc {', '.join(newer)}")
        newest = f", glibc {max(versions, key=lambda name: tuple(map(int, name.split('.'))))}" if versions else ""
        where = path.relative_to(folder / "resnetkit").parent.parent
        print(f"{tag}: {where}/{path.name}, {path.stat().st_size // 1000} kB, needs {' '.join(needed)}{newest}")
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in folder.rglob("*"):
                if path.suffix != ".safetensors":
                    archive.write(path, path.relative_to(folder))
        size = file.tell()
    if size > LARGEST:
        sys.exit(f"{tag}: {size / 2**20:.1f} MiB without the models")
    print(f"{tag}: {size / 2**20:.2f} MiB without the models")


def requirements(path: Path) -> tuple[list[str], list[str]]:
    """Return the libraries that a library needs, and the versions of glibc."""
    data = path.read_bytes()
    if data[:4] == struct.pack("<I", 0xFEEDFACF):  # Mach-O, 64 bits
        return sorted(set(_mach_o(data))), []
    said = run(["objdump", "-p", str(path)])
    needed = re.findall(r"NEEDED +(\S+)|DLL Name: (\S+)", said)
    return sorted({elf or dll for elf, dll in needed}), sorted(set(re.findall(r"\bGLIBC_([\d.]+)", said)))


def _mach_o(data: bytes) -> list[str]:
    """Return the libraries of a Mach-O library's load commands LC_LOAD_DYLIB."""
    found, at = [], 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, size, name = struct.unpack_from("<III", data, at)
        if command & 0x7FFFFFFF in (0xC, 0x18, 0x1F):  # also weak and re-exported ones
            found.append(data[at + name : at + size].split(b"\0")[0].decode())
        at += size
    return found


def check_installed(wheel: Path) -> None:
    """Install the wheel and test it."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        python = folder / "env" / "bin" / "python"
        run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")])
        site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        with zipfile.ZipFile(wheel) as archive:  # a wheel without scripts is installed by unpacking it
            archive.extractall(site)
        # Behind the environment's own folder, so that the wheel comes before a package that is installed there.
        (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        tests = shutil.copytree(ROOT / "tests", folder / "tests")
        (folder / "bin").mkdir()  # a search path with nothing else
        environment = {"PATH": str(folder / "bin"), "HOME": work, "RESNETKIT_CACHE": str(folder / "cache")}
        for path in sorted((site / "resnetkit" / "kernels" / BUILT).iterdir()):
            name = path.stem
            if not read_instructions().issuperset(BUILDS[name].instructions):
                print(f"{wheel.name}, {name}: not run, the processor has no {BUILDS[name].title}")
                continue
            own = environment | {"RESNETKIT_KERNELS": name}
            said = run([str(python), "-c", "from resnetkit.kernels.library import status; print(status())"], **own)
            if said.strip() != f"on: {name}, part of the package (RESNETKIT_KERNELS={name}): {path}":
                sys.exit(f"{wheel.name}: {said}")
            files = [str(tests / file) for file in TESTS]
            # Two threads stand for any number of them.
            chosen = ["-m", "not slow", "-k", "not [1- and not [1] and not [3- and not [3]"]
            done = run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *files], **own)
            print(f"{wheel.name}, {name}: {done.strip().splitlines()[-1]}", flush=True)
        doctor = run([str(python), "-m", "resnetkit", "doctor", "--quick"], **environment)
        print(*(line for line in doctor.splitlines() if line.startswith(("kernels", "resizing", "compiler"))), sep="\n")
        # A short training: twenty steps of ResNet-20.
        golden = [
            str(tests / "test_loop.py"),
            "-k",
            "golden_losses and auto and not paper",
        ]
        done = run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *golden], **environment)
        print(f"{wheel.name}, a short training: {done.strip().splitlines()[-1]}")
        if (folder / "cache" / "kernels").exists():
            sys.exit(f"{wheel.name}: something was compiled")


def check_emulated(tag: str) -> None:
    """Test the kernels for ARM in an emulator. They are skipped if it is not installed."""
    tests = [str(ROOT / "tests" / "test_builds.py"), "-k", "neon"]
    environment = os.environ | {
        "RESNETKIT_BUILT": str(ROOT / "build" / "wheels" / tag),
        "PYTHONPATH": str(ROOT / "src"),
    }
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], **environment)
    print(f"{tag}: in an emulator, {done.strip().splitlines()[-1]}")


def run(command: list[str], **environ: str) -> str:
    """Run a command; return its output. With `environ`, it has no other environment."""
    done = subprocess.run(command, env=environ or os.environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
