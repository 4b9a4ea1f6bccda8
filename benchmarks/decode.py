"""Decoding and augmenting JPEG folders for training: our loader against torchvision's, in turn, on one core.

The peer works like torchvision's classification reference: ImageFolder (Pillow) in a DataLoader, RandomResizedCrop
(224, bilinear, antialiased), RandomHorizontalFlip, PILToTensor, ConvertImageDtype, Normalize. Ours is the loader of
`resnetkit train` with random-resized crops of the same scale (0.08 to 1), and the training loop's normalisation of
whole batches. "ours" keeps freed memory, as `resnetkit train` does; "ours, plain" does not. Each process has one core
and one thread, and produces float32 batches.

Two folders are made from photographs: 500x375, and mosaics of 12 megapixels, both as cameras write them (4:2:0,
quality 90). Without --photos they are made from the CIFAR pictures of the tests, enlarged, which are easier to decode.

    python benchmarks/decode.py [--photos DIR] [--rounds 9] [--images 200] [--large 8]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

BATCH = 32
SIZE = 224
SIDES = {"500x375": (500, 375), "12 megapixels": (4000, 3000)}
NAMES = ("peer", "ours", "ours, plain")
CIFAR_SHEET = Path(__file__).parents[1] / "tests" / "data" / "cifar10-subset" / "train.png"


def photographs(folder: Path | None) -> list[Image.Image]:
    """Return pictures of 500x375: the photographs of a folder, or mosaics of enlarged CIFAR pictures."""
    if folder:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        return [ImageOps.fit(Image.open(path).convert("RGB"), SIDES["500x375"]) for path in paths[:100]]
    rows = Image.open(CIFAR_SHEET).convert("RGB")  # a row is a picture of 32x32
    tiles = [
        Image.frombytes("RGB", (32, 32), rows.crop((0, i, rows.width, i + 1)).tobytes()) for i in range(rows.height)
    ]
    tiles = [tile.resize((125, 125), Image.Resampling.BICUBIC) for tile in tiles]
    return [mosaic(tiles[i : i + 12], across=4) for i in range(0, len(tiles) - 11, 12)]


def mosaic(pictures: list[Image.Image], *, across: int) -> Image.Image:
    """Return a mosaic of pictures of the same size, `across` pictures in a row."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * across, height * (len(pictures) // across)))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % across * width, i // across * height))
    return whole


def write_folders(root: Path, small: list[Image.Image], *, images: int, large: int) -> None:
    """Write root/<size>/{even,odd}/<number>.jpg; a large picture is a mosaic of 16 small ones at twice their size."""

    def all_of(size: str) -> Iterator[Image.Image]:
        for i in range(images if size == "500x375" else large):
            if size == "500x375":
                yield small[i % len(small)]
            else:
                tiles = [small[(16 * i + j) % len(small)] for j in range(16)]
                yield mosaic([tile.resize((1000, 750), Image.Resampling.BICUBIC) for tile in tiles], across=4)

    for size, sides in SIDES.items():
        for i, picture in enumerate(all_of(size)):
            folder = root / size / ("even", "odd")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            assert picture.size == sides
            picture.save(folder / f"{i:04}.jpg", quality=90, subsampling="4:2:0")


def peer(folder: Path) -> Iterator[int]:
    """Read an epoch with torchvision; yield the number of pictures in each batch."""
    import torch
    from torchvision import datasets, transforms

    from resnetkit.data.transforms.preprocess import IMAGENET_MEAN, IMAGENET_STD

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, antialias=True),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
            transforms.ConvertImageDtype(torch.float),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    loader = torch.utils.data.DataLoader(datasets.ImageFolder(folder, transform), batch_size=BATCH, shuffle=True)
    for images, _ in loader:
        assert images.shape[1:] == (3, SIZE, SIZE)
        yield len(images)


def ours(folder: Path) -> Iterator[int]:
    """Read an epoch with our loader; yield the number of pictures in each batch."""
    import numpy as np
    import torch

    from resnetkit.data.loader import Loader
    from resnetkit.data.samples import Samples
    from resnetkit.data.transforms.augment import Augment
    from resnetkit.data.transforms.normalize import Normalize
    from resnetkit.data.transforms.preprocess import Preprocess

    preprocess = Preprocess(size=SIZE, resize=256)
    normalize = Normalize(preprocess)
    paths = tuple(sorted(folder.rglob("*.jpg")))
    samples = Samples(("even", "odd"), np.array([path.parent.name == "odd" for path in paths], np.int64), paths=paths)
    loader = Loader(samples, preprocess, batch_size=BATCH, augment=Augment("random-resized"), shuffle=True, strict=True)
    for batch in loader.epoch():
        images = normalize(batch.images)
        assert (images.shape[1:], images.dtype) == ((3, SIZE, SIZE), torch.float32)
        yield len(images)


def serve(name: str, root: Path) -> None:
    """For each line of standard input, a name in SIDES, read this folder once and print the images per second."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    from resnetkit.allocator import keep_memory

    torch.set_num_threads(1)
    if name == "ours":
        keep_memory()
    epoch = peer if name == "peer" else ours
    for line in sys.stdin:
        began = time.perf_counter()
        images = sum(epoch(root / line.strip()))
        print(images / (time.perf_counter() - began), flush=True)


class Contender:
    """A process that measures one loader on request, and waits otherwise."""

    def __init__(self, name: str, root: Path) -> None:
        """Start the process."""
        command = [sys.executable, __file__, "--only", name, "--root", str(root)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def rate(self, size: str) -> float:
        """Return the images per second of an epoch of one folder."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(size, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(root: Path, rounds: int) -> None:
    """Measure all contenders in turn, and print medians and ratios."""
    contenders = {name: Contender(name, root) for name in NAMES}
    for size in SIDES:
        found: dict[str, list[float]] = {name: [] for name in NAMES}
        for round_ in range(rounds + 1):
            for name, contender in contenders.items():
                rate = contender.rate(size)
                if round_:  # the first warms up
                    found[name].append(rate)
        files = list((root / size).rglob("*.jpg"))
        average = sum(path.stat().st_size for path in files) / len(files)
        print(f"\n{size}: {len(files)} JPEG files of {average / 1000:,.0f} kB on average")
        for name, rates in found.items():
            spread = f"from {min(rates):.1f} to {max(rates):.1f}"
            print(f"{name:11s}  median {statistics.median(rates):6.1f} images/s/core  ({spread})")
        for name in NAMES[1:]:
            ratios = [a / b for a, b in zip(found[name], found["peer"], strict=True)]
            spread = f"from {min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{name} / peer  median {statistics.median(ratios):.2f}  ({spread})")
    for contender in contenders.values():
        contender.end()


def main() -> None:
    """Make the folders, and compare the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of photographs to make the test folders from")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=200, help="pictures of 500x375")
    parser.add_argument("--large", type=int, default=8, help="pictures of 12 megapixels")
    parser.add_argument("--only", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        serve(given.only, given.root)
        return
    from machine import describe

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, photographs(given.photos), images=given.images, large=given.large)
        print(describe())
        print(f"one core of it; random resized crops to {SIZE}, batch {BATCH}, {given.rounds} rounds")
        compare(root, given.rounds)


if __name__ == "__main__":
    main()
