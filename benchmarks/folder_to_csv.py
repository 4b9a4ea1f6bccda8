"""Predictions for a folder of JPEG files as a CSV: `resnetkit predict --csv` against the usual torchvision script.

The script uses ImageFolder with Resize, CenterCrop, ToTensor and Normalize, a DataLoader with workers, the eager
network in float32 without gradients, and Python's csv, in batches of 32. Both run as commands, in turn, and are timed
from start to end, including imports; "after the start" is this time without the time for a folder of one picture.
Memory is that of all processes of a command together (PSS), measured twice a second; "first third" is the maximum in
the first third of the time, so that growth is visible. With --photos, ours is tuned first (`resnetkit tune`). Without,
it runs untuned on OpenVINO in float32, and the folder contains enlarged CIFAR pictures.

    python benchmarks/folder_to_csv.py [--photos DIR] [--weights-dir DIR] [--images 2000] [--rounds 3] [--workers 2 0]
"""

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BATCH = 32
ASKED = 0.5  # seconds between two measurements of the memory
PERCENT_OF_SIDE = (85, 100)  # range of a crop's side, in percent of the photograph's side
QUALITY = (75, 95)


@dataclass(frozen=True)
class Run:
    """Time and memory of one command, from start to end."""

    seconds: float
    first_third_bytes: int
    most_bytes: int


def write_jpegs(root: Path, photos: Path | None, count: int) -> None:
    """Write root/{even,odd}/<number>.jpg: photographs with different crops and qualities."""
    from decode import photographs

    if photos:
        pictures = [Image.open(path).convert("RGB") for path in sorted(photos.glob("*.[jJ][pP]*[gG]"))]
    else:
        pictures = photographs(None)
    drawn = random.Random(0)
    for i in range(count):
        picture = pictures[i % len(pictures)]
        width, height = (side * drawn.randint(*PERCENT_OF_SIDE) // 100 for side in picture.size)
        left, top = drawn.randint(0, picture.width - width), drawn.randint(0, picture.height - height)
        folder = root / ("even", "odd")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cropped = picture.crop((left, top, left + width, top + height))
        cropped.save(folder / f"{i:05}.jpg", quality=drawn.randint(*QUALITY))


def script(model: Path, root: Path, out: Path, workers: int) -> None:
    """Write the predictions for a folder as CSV: the usual script with torchvision."""
    import torch
    from torchvision.datasets import ImageFolder

    from networks import eager_network, eager_transform

    data = ImageFolder(root, eager_transform(model))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers)
    net = eager_network(model)
    paths = (path for path, _ in data.samples)
    with out.open("w", newline="") as file, torch.no_grad():
        writer = csv.writer(file)
        writer.writerow(("path", "index", "probability"))
        for images, _ in loader:
            probabilities, indices = net(images).softmax(dim=1).max(dim=1)
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True):
                writer.writerow((next(paths), index, probability))


def command_of(name: str, model: Path, root: Path, out: Path) -> list[str]:
    """Return the command line of a contender."""
    if name == "ours":
        return [sys.executable, "-m", "resnetkit", "predict", str(model), str(root), "--csv", "--top", "1"]
    workers = name.split()[1]
    given = {"--file": model, "--folder": root, "--out": out, "--workers": workers}
    return [sys.executable, __file__, "--script", *(str(part) for pair in given.items() for part in pair)]


def run(name: str, model: Path, root: Path, out: Path) -> Run:
    """Run a contender on a folder, and return its time and memory."""
    looked: list[tuple[float, int]] = []
    began = time.perf_counter()
    with Path(out if name == "ours" else os.devnull).open("w") as stdout:
        process = subprocess.Popen(command_of(name, model, root, out), stdout=stdout)
        while True:
            try:
                process.wait(ASKED)
                break
            except subprocess.TimeoutExpired:
                looked.append((time.perf_counter() - began, memory(process.pid)))
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}")
    first = [size for at, size in looked if at <= seconds / 3]
    return Run(seconds, max(first, default=0), max((size for _, size in looked), default=0))


def memory(pid: int) -> int:
    """Return the bytes of a process and its descendants; shared memory counts once. 0 if Linux does not report it."""
    total = 0
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def tree(pid: int) -> Iterator[int]:
    """Yield the numbers of a process and its descendants."""
    started: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(file.read_text().rpartition(")")[2].split()[1])  # proc(5): after the name and the state
            started.setdefault(parent, []).append(int(file.parent.name))
    waiting = [pid]
    while waiting:
        yield (one := waiting.pop())
        waiting += started.get(one, [])


def count_rows(path: Path) -> int:
    """Return the number of predictions in a CSV file."""
    with path.open(newline="") as file:
        return sum(bool(row.get("probability")) for row in csv.DictReader(file))


def compare(model: Path, folder: Path, *, images: int, rounds: int, workers: list[int]) -> None:
    """Run all contenders in turn, and print medians, ratios and memory."""
    names = ["ours", *(f"script, {count} workers" for count in workers)]
    found: dict[str, list[Run]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    out = folder / "out.csv"
    for round_ in range(rounds + 1):
        for name in names:
            key = name.replace(",", "")
            start = run(key, model, folder / "one", out).seconds
            if not round_:  # the first round makes graphs and fills caches
                continue
            starts[name].append(start)
            found[name].append(run(key, model, folder / "all", out))
            if count_rows(out) != images:
                raise SystemExit(f"{name} wrote {count_rows(out)} predictions for {images} pictures")
    rates = {name: [images / one.seconds for one in runs] for name, runs in found.items()}
    for name, runs in found.items():
        later = [(images - 1) / (one.seconds - start) for one, start in zip(runs, starts[name], strict=True)]
        first, most = (max(getattr(one, part) for one in runs) / 2**20 for part in ("first_third_bytes", "most_bytes"))
        print(
            f"{name:20} median {statistics.median(rates[name]):6.1f} images/s (from {min(rates[name]):.1f} to "
            f"{max(rates[name]):.1f}), {statistics.median(one.seconds for one in runs):.1f} s; after the start "
            f"{statistics.median(later):.1f} images/s; memory {most:,.0f} MiB, first third {first:,.0f}"
        )
    for name in names[1:]:
        ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        print(f"ours / {name}: median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Make the folders and the model file, and compare the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--photos", type=Path, help="folder of photographs to make the JPEG files of, and to tune on")
    parser.add_argument(
        "--tune-on", help="DATA for `resnetkit tune`, such as a CSV with labels; unset: the photographs"
    )
    parser.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors (tuned or not) or *NAME.pth")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="of the script's DataLoader")
    parser.add_argument("--no-tune", action="store_true", help="leave ours as it is without tuning")
    parser.add_argument("--script", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.script:
        script(given.file, given.folder, given.out, given.workers[0])
        return
    from machine import describe
    from networks import tune, write_model

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["RESNETKIT_CACHE"] = str(folder / "cache")
        write_jpegs(folder / "all", given.photos, given.images)
        write_jpegs(folder / "one", given.photos, 1)
        model = write_model(given.model, folder, given.weights_dir)
        tuned = given.photos and not given.no_tune
        if tuned:
            tune(model, given.tune_on or given.photos, "--goal", "throughput")
        sizes = [path.stat().st_size for path in (folder / "all").rglob("*.jpg")]
        print(describe())
        print(
            f"{given.model}, {given.images} JPEG files of {statistics.mean(sizes) / 1000:,.0f} kB on average, "
            f"{given.rounds} rounds, ours {'tuned' if tuned else 'not tuned'}"
        )
        compare(model, folder, images=given.images, rounds=given.rounds, workers=given.workers)


if __name__ == "__main__":
    main()
