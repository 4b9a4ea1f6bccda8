"""The ladder against full fine-tuning as in PyTorch's transfer-learning tutorial, on the same pictures, in one run.

    python benchmarks/finetune.py photos --init model.safetensors --peer-epochs 1

The peer is the tutorial's loop: SGD 0.001 with momentum 0.9, batches of 4, a tenth of the rate every 7 epochs, random
resized crops and flips, 25 epochs. With fewer --peer-epochs, its time is extrapolated to 25, which is said, and its
accuracy is that of the epochs that were run. Features of earlier runs are not used: the cache is a new folder.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from math import sqrt
from pathlib import Path

PEER_EPOCHS = 25


def interval(error_percent: float, pictures: int) -> str:
    """Return accuracy and its 95 % interval (Wilson) in percent."""
    p, z = 1 - error_percent / 100, 1.96
    centre = (p + z * z / (2 * pictures)) / (1 + z * z / pictures)
    half = z * sqrt(p * (1 - p) / pictures + z * z / (4 * pictures**2)) / (1 + z * z / pictures)
    return f"{100 * p:.1f} % ({100 * (centre - half):.1f} to {100 * (centre + half):.1f})"


def ours(data: str, init: str, rung: str, folder: Path) -> tuple[float, float, list[dict]]:
    """Train with the command line; return seconds of the whole command, error in percent, and the rungs."""
    command = [sys.executable, "-m", "resnetkit", "train", data, "--init", init, "--rung", rung, "--json"]
    environment = os.environ | {"RESNETKIT_CACHE": str(folder / f"cache-{rung}")}
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(folder / rung)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    result = json.loads(done.stdout)
    return time.monotonic() - began, result["best"]["error_percent"], result["rungs"]


def peer(data: str, init: str, epochs: int) -> tuple[float, float]:
    """Train as the tutorial does; return the seconds of 25 epochs, and the lowest validation error in percent."""
    import torch
    from PIL import Image
    from torch import nn
    from torchvision import transforms

    import resnetkit as rk

    model = rk.load(init)
    dataset = rk.open_dataset(data)
    assert dataset.train is not None
    assert dataset.val is not None
    net = rk.build(model.net.spec)
    net.load_state_dict(model.net.state_dict())
    net.fc = nn.Linear(net.fc.in_features, len(dataset.classes))
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    training = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    plain = [transforms.Resize(256), transforms.CenterCrop(224)]

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, samples: rk.Samples, steps: list) -> None:
            self.samples, self.transform = samples, transforms.Compose([*steps, transforms.ToTensor(), normal])

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            with Image.open(self.samples.path(index)) as picture:
                return self.transform(picture.convert("RGB")), int(self.samples.labels[index])

    loaders = {
        "train": torch.utils.data.DataLoader(Pictures(dataset.train, training), 4, shuffle=True, num_workers=2),
        "val": torch.utils.data.DataLoader(Pictures(dataset.val, plain), 4, num_workers=2),
    }
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, began = 100.0, time.monotonic()
    for _ in range(epochs):
        net.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()
        net.eval()
        with torch.no_grad():
            wrong = sum(int((net(images).argmax(1) != labels).sum()) for images, labels in loaders["val"])
        best = min(best, 100 * wrong / len(dataset.val))
    return (time.monotonic() - began) * PEER_EPOCHS / epochs, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--init", required=True)
    parser.add_argument("--peer-epochs", type=int, default=PEER_EPOCHS)
    parser.add_argument("--rungs", nargs="+", default=["head", "auto"])
    given = parser.parse_args()
    import resnetkit as rk

    dataset = rk.open_dataset(given.data)
    pictures = len(dataset.val or ())
    print(f"{given.data}: {len(dataset.train or ()):,} training and {pictures:,} validation pictures")
    print(f"on {platform.processor() or platform.machine()}, {os.cpu_count()} processors; accuracy with 95 % interval")
    seconds, error = peer(given.data, given.init, given.peer_epochs)
    how = "" if given.peer_epochs == PEER_EPOCHS else f", extrapolated from {given.peer_epochs}"
    after = f"after {given.peer_epochs} epochs"
    print(f"tutorial, 25 epochs: {seconds:,.0f} s{how}; {interval(error, pictures)} {after}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for rung in given.rungs:
            took, error, rungs = ours(given.data, given.init, rung, Path(folder))
            ratio = seconds / took
            print(f"ours, --rung {rung}: {took:,.0f} s, 1/{ratio:.1f} of it; {interval(error, pictures)}", flush=True)
            for row in rungs:
                print(f"    {row['rung']}: {row['top1_error_percent']} % error, {row['seconds']} s, kept {row['kept']}")


if __name__ == "__main__":
    main()
