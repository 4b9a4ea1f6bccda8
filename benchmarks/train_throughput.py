"""Training throughput: our loop against the loop that people copy, in turn, in one process tree.

The peer is written as the common CIFAR-10 ResNet trainers are: torchvision's CIFAR pictures as PIL images, ToTensor,
Normalize, RandomCrop and RandomHorizontalFlip in a DataLoader with workers, the model in float32 and eager mode,
torch.optim.SGD. Ours is what `resnetkit train` does by default. Both load and augment the same pictures.

    python benchmarks/train_throughput.py [--model resnet20] [--rounds 5] [--steps 40]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

BATCH = 128
WARM_UP = 5  # steps before the clock starts


def peer(model: str, steps: int) -> float:
    """Images per second of the plain loop."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from resnetkit.data.cifar import load_cifar
    from resnetkit.models.resnet import build

    train = load_cifar("cifar10").train
    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, 4),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    class Cifar(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(train)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(train.images[index])), int(train.labels[index])

    loader = torch.utils.data.DataLoader(Cifar(), batch_size=BATCH, shuffle=True, num_workers=2)
    net = build(model)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    net.train()
    began = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == WARM_UP:
            began = time.perf_counter()
        loss = criterion(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if step == WARM_UP + steps - 1:
            break
    return BATCH * steps / (time.perf_counter() - began)


def ours(model: str, steps: int) -> float:
    """Images per second of the loop of `resnetkit train`, with its defaults."""
    from resnetkit.data.cifar import load_cifar
    from resnetkit.train.checkpoint import RunFolder
    from resnetkit.train.loop import Training, draw
    from resnetkit.train.monitor import Monitor
    from resnetkit.train.recipe import RECIPES
    from resnetkit.train.task import prepare

    recipe = replace(RECIPES["cifar10"], model=model, lr=0.01, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        monitor = Monitor(run, quiet=True)
        training = Training(prepare(recipe, load_cifar("cifar10")), recipe, run, monitor, started=time.monotonic())
        training.train_mode()
        batches = draw(training.task.loader, training.position, 1)
        began = 0.0
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                began = time.perf_counter()
            training.descend(next(batches), 0.01)
        return BATCH * steps / (time.perf_counter() - began)


def main() -> None:
    """Run both in turn, each in a process of its own, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", choices=["peer", "ours"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print({"peer": peer, "ours": ours}[given.only](given.model, given.steps))
        return
    from machine import describe

    print(describe())
    print(f"{given.model}, CIFAR-10, batch {BATCH}, loading included, {given.rounds} rounds of {given.steps} steps")
    rates: dict[str, list[float]] = {"peer": [], "ours": []}
    for _ in range(given.rounds):
        for name, found in rates.items():
            command = [sys.executable, __file__, "--only", name, "--model", given.model, "--steps", str(given.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(float(done.stdout.split()[-1]))
    for name, found in rates.items():
        print(f"{name}  median {statistics.median(found):7.0f} images/s  (from {min(found):.0f} to {max(found):.0f})")
    ratios = [a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)]
    print(f"ours / peer  median {statistics.median(ratios):.2f}  (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
