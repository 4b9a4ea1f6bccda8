"""Training throughput: our loop against the usual loops, measured in turn, each in a process of its own.

The peers are the usual training loops. For CIFAR-10: torchvision's PIL transforms (flip, crop with 4 px of padding,
ToTensor, Normalize) in a DataLoader with workers, batches of 128. For a folder of JPEG files, torchvision's
classification reference: ImageFolder, RandomResizedCrop 224, flip, PILToTensor, Normalize, batches of 32. Both train in
float32, operation by operation, with torch.optim.SGD. Ours is the loop of `resnetkit train` with its defaults on the
same pictures, including its allocator and thread settings, but with crops of full size from the first step on. The
matrix rate is that of a 2048 x 2048 product in the same run, in the precision of the contender.

    python benchmarks/train_throughput.py [--only resnet20 resnet56 resnet50] [--rounds 5] [--photos DIR]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

WARM_UP = 3  # steps before the clock starts
BATCH = {"resnet20": 128, "resnet56": 128, "resnet50": 32}
STEPS = {"resnet20": 40, "resnet56": 15, "resnet50": 3}
CLASSES = {"resnet20": 10, "resnet56": 10, "resnet50": 2}
SIZES = {"resnet20": 32, "resnet56": 32, "resnet50": 224}


def peer_data(model: str, folder: Path):
    """The peer's Dataset."""
    import torch
    from PIL import Image
    from torchvision import datasets, transforms

    from resnetkit.data.published.cifar import load_cifar
    from resnetkit.data.transforms.preprocess import IMAGENET_MEAN, IMAGENET_STD

    normalize = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    if model == "resnet50":
        crop = transforms.RandomResizedCrop(224, antialias=True)
        to_tensor = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
        transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *to_tensor, normalize])
        return datasets.ImageFolder(folder, transform)
    train = load_cifar("cifar10").train
    crop = transforms.RandomCrop(32, 4)
    transform = transforms.Compose([transforms.RandomHorizontalFlip(), crop, transforms.ToTensor(), normalize])

    class Cifar(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(train.images[index])), int(train.labels[index])

    return Cifar()


def peer(model: str, folder: Path, workers: int) -> float:
    """Return the images per second of the plain loop."""
    import torch

    from resnetkit.models.resnet import build

    data = peer_data(model, folder)
    loader = torch.utils.data.DataLoader(data, BATCH[model], shuffle=True, num_workers=workers, drop_last=True)
    net = build(model, classes=CLASSES[model])  # torchvision's own layers in the same order
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    net.train()
    began = 0.0
    steps = WARM_UP + STEPS[model]
    for step, (images, labels) in enumerate(endless(loader)):
        if step == WARM_UP:
            began = time.perf_counter()
        loss = criterion(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if step == steps - 1:
            break
    return BATCH[model] * STEPS[model] / (time.perf_counter() - began)


def endless(loader: Iterable):
    """Yield the batches of one epoch after another, without end."""
    while True:
        yield from loader


def ours(model: str, folder: Path) -> tuple[float, str]:
    """Return the images per second of `resnetkit train`'s loop with its defaults, and the precision that it chose."""
    from resnetkit.data.dataset import open_dataset
    from resnetkit.train.classification import prepare
    from resnetkit.train.loop import Training, draw
    from resnetkit.train.monitor import Monitor
    from resnetkit.train.recipe import RECIPES
    from resnetkit.train.run_folder import RunFolder

    row = RECIPES["folder" if model == "resnet50" else "cifar10"]
    recipe = replace(row, model=model, lr=0.01, batch_size=BATCH[model], early_scale=1.0)  # full size, as for the peer
    if model == "resnet50":
        recipe = replace(recipe, min_area=0.08)
    dataset = open_dataset(str(folder) if model == "resnet50" else "cifar10")
    with tempfile.TemporaryDirectory() as run_folder:
        run = RunFolder(Path(run_folder))
        monitor = Monitor(run, quiet=True)
        training = Training(prepare(recipe, dataset), recipe, run, monitor, started=time.monotonic())
        training.task.train_mode()
        batches = draw(training.task, training.position, 1, progress=training.progress)
        began = 0.0
        for step in range(WARM_UP + STEPS[model]):
            if step == WARM_UP:
                began = time.perf_counter()
            training.descend(next(batches), 0.01)
        return BATCH[model] * STEPS[model] / (time.perf_counter() - began), training.task.precision


def once(name: str, model: str, folder: Path, workers: int) -> None:
    """Run one contender in this process and print its rate and precision; ours with the command line's settings."""
    if name == "ours":
        from resnetkit.cli import set_up

        set_up()
        print(*ours(model, folder))
    else:
        print(peer(model, folder, workers), "float32")


def training_flop(model: str) -> float:
    """Return the operations of a training step on one picture: forward, and twice as many for the two gradients."""
    from resnetkit.models.spec import SPECS

    return 3 * 2 * SPECS[model].macs(SIZES[model])


def left_by_winograd(model: str) -> float:
    """Return the share of a training step's multiplications that the kernels compute in float32."""
    import torch

    from resnetkit.kernels.operations import products_left, winograd_serves
    from resnetkit.models.maps import map_shapes
    from resnetkit.models.resnet import build

    net = build(model, classes=CLASSES[model])
    done = plain = 0.0
    for module, shape in map_shapes(net, SIZES[model]).items():
        if not isinstance(module, torch.nn.Conv2d):
            continue
        height, width = shape[2:]
        products = module.weight.numel() * height * width
        fast = winograd_serves(module, torch.empty(1, module.in_channels, height, width))
        plain += products
        done += products * (products_left(height, width) if fast else 1)
    return done / plain


def compare(model: str, folder: Path, *, rounds: int, workers: list[int]) -> None:
    """Measure all contenders in turn, and print medians, ratios and shares of the matrix rate."""
    from resnetkit.diagnosis import measure

    print(f"\n{model}, batches of {BATCH[model]}, loading included, {rounds} rounds of {STEPS[model]} steps")
    contenders = {"ours": 0} | {f"peer, {count} workers": count for count in workers}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    precisions: dict[str, str] = {}
    for _ in range(rounds):
        for name, count in contenders.items():
            given = ["--one", name.split(",")[0], "--only", model, "--folder", str(folder), "--workers", str(count)]
            command = [sys.executable, __file__, *given]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            *_, rate, precisions[name] = done.stdout.split()
            rates[name].append(float(rate))
    peak = measure()
    for name, found in rates.items():
        flops = training_flop(model) * statistics.median(found) / 1e12
        precision = precisions[name]
        full = {"float32": peak.float32_tflops, "bfloat16": peak.bfloat16_tflops}[precision]
        print(
            f"{name:16s}  median {statistics.median(found):7.1f} images/s (from {min(found):.1f} to {max(found):.1f}), "
            f"{flops:.3f} TFLOP/s: {100 * flops / full:.0f} % of {precision}'s matrix rate, {full:.2f}"
        )
        if name == "ours" and precision == "float32":
            left = left_by_winograd(model)
            print(f"{'':16s}  of these operations, Winograd leaves {left:.2f}: {100 * left * flops / full:.0f} % of it")
    for name in list(rates)[1:]:
        ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        print(f"ours / {name}  median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    """Run the contenders in turn, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(BATCH), default=list(BATCH))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[2], help="of the peer's DataLoader")
    parser.add_argument("--photos", type=Path, help="photographs to make the folder of JPEGs from")
    parser.add_argument("--one", choices=["peer", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        once(given.one, given.only[0], given.folder, given.workers[0])
        return
    from decode import photographs, write_folders
    from machine import describe

    print(describe())
    with tempfile.TemporaryDirectory() as root:
        write_folders(Path(root), photographs(given.photos), images=200, large=0)
        for model in given.only:
            compare(model, Path(root) / "500x375", rounds=given.rounds, workers=given.workers)


if __name__ == "__main__":
    main()
