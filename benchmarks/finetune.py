"""The ladder against full fine-tuning as in PyTorch's transfer-learning tutorial and in timm's train.py, same pictures.

    python benchmarks/finetune.py photos --init model.safetensors
    python benchmarks/finetune.py photos --init model.safetensors --peer-epochs 0.2     # their time from a fifth of one
    python benchmarks/finetune.py photos --init model.safetensors --peers timm --rungs --log timm.jsonl

The peers, both with the weights of --init, 25 epochs, and the validation pictures that `resnetkit train` has, too:

tutorial  SGD 0.001 with momentum 0.9, batches of 4, a tenth of the rate every 7 epochs, random resized crops and flips.
timm      the defaults of train.py with --batch-size 32 --epochs 25: SGD with Nesterov momentum 0.9 and weight decay
          2e-5, rate 0.1 for 256 pictures, here 0.0125, 5 epochs of warm-up, cosine, label smoothing 0.1, random resized
          crops, flips, colour jitter 0.4. train.py is not in the package, so its loop is here, of the package's parts.

With fewer --peer-epochs, the first of the 25 are run: their time is extrapolated, which is said, and the accuracy is
that after so many. Less than one is a share of an epoch's batches, for the time alone. The best epoch counts, as in
both. `--log` gets a line of JSON for each epoch. Features of earlier runs are not used: the cache of ours is a new
folder, with the kernels alone, which are compiled once on a machine (wheels contain them). Flags that are not known
here go to `resnetkit train`.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

import resnetkit as rk
from resnetkit.evaluation.intervals import error_interval
from resnetkit.files import cache_folder
from resnetkit.modelfile import Model
from resnetkit.models.spec import SPECS

PEER_EPOCHS = 25
WORKERS = 2


def interval(error_percent: float, pictures: int) -> str:
    """Return accuracy and its 95 % interval in percent, as `resnetkit evaluate` has it."""
    low, high = error_interval(round(pictures * error_percent / 100), pictures)
    return f"{100 - error_percent:.1f} % ({100 - 100 * high:.1f} to {100 - 100 * low:.1f})"


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def ours(data: str, init: str, rung: str, folder: Path, more: list[str]) -> tuple[float, float, list[dict]]:
    """Train with the command line; return seconds of the whole command, error in percent, and the rungs."""
    command = [sys.executable, "-m", "resnetkit", "train", data, "--init", init, "--rung", rung, "--json", *more]
    cache = folder / f"cache-{rung}"
    if (kernels := cache_folder() / "kernels").is_dir():
        shutil.copytree(kernels, cache / "kernels")
    environment = os.environ | {"RESNETKIT_CACHE": str(cache)}
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--out", str(folder / rung)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    result = json.loads(done.stdout)
    return time.monotonic() - began, result["best"]["error_percent"], result["rungs"]


class Pictures(torch.utils.data.Dataset):
    """Samples as the peers' loaders want them."""

    def __init__(self, samples: rk.Samples, transform: Callable | None = None) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.samples.path(index)) as picture:
            converted = picture.convert("RGB")
        assert self.transform is not None  # timm's create_loader sets it
        return self.transform(converted), int(self.samples.labels[index])


@dataclass
class Peer:
    """A way to fine-tune: a network, its batches, and what happens in a step and after an epoch."""

    net: nn.Module
    train: torch.utils.data.DataLoader
    val: torch.utils.data.DataLoader
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    after_epoch: Callable[[int], object]
    """Called with the number of finished epochs: sets the learning rate."""


def tutorial(start: Model, dataset: rk.Dataset) -> Peer:
    """Return the peer of https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html, `train_model`."""
    from torchvision import transforms

    net = rk.build(start.net.spec)
    net.load_state_dict(start.net.state_dict())
    net.fc = nn.Linear(net.fc.in_features, len(dataset.classes))
    last = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    training = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *last])
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *last])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    return Peer(
        net=net,
        train=torch.utils.data.DataLoader(Pictures(dataset.train, training), 4, shuffle=True, num_workers=WORKERS),
        val=torch.utils.data.DataLoader(Pictures(dataset.val, plain), 4, num_workers=WORKERS),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        after_epoch=lambda _: schedule.step(),
    )


def timm(start: Model, dataset: rk.Dataset) -> Peer:
    """Return timm's peer: network, loaders, loss, optimiser and schedule by the functions that train.py calls."""
    from timm import create_model
    from timm.data import create_loader, resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    net = create_model(f"{name_of(start)}.tv_in1k", num_classes=len(dataset.classes))
    weights = {name: value for name, value in start.net.state_dict().items() if not name.startswith("fc.")}
    left = net.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert {name.split(".")[0] for name in left.missing_keys} == {"fc"}
    config = resolve_data_config({}, model=net)
    common = {
        "input_size": config["input_size"],
        "batch_size": 32,
        "mean": config["mean"],
        "std": config["std"],
        "use_prefetcher": False,
        "device": torch.device("cpu"),
        "num_workers": WORKERS,
    }
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1 * 32 / 256, weight_decay=2e-5, momentum=0.9)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=PEER_EPOCHS, warmup_epochs=5, warmup_lr=1e-5, min_lr=0.0
    )
    schedule.step(0)
    return Peer(
        net=net,
        train=create_loader(
            Pictures(dataset.train), is_training=True, color_jitter=0.4, interpolation="random", **common
        ),
        val=create_loader(
            Pictures(dataset.val), interpolation=config["interpolation"], crop_pct=config["crop_pct"], **common
        ),
        loss=LabelSmoothingCrossEntropy(0.1),
        optimizer=optimizer,
        after_epoch=schedule.step,
    )


def name_of(model: Model) -> str:
    """Return the name of a network in the table of networks."""
    spec = model.net.spec
    return next(name for name in ("resnet18", "resnet50") if replace(SPECS[name], classes=spec.classes) == spec)


PEERS = {"tutorial": tutorial, "timm": timm}


def finetune(name: str, data: str, init: str, epochs: float, log: Path | None) -> tuple[float, float | None]:
    """Fine-tune as the peer does; return the seconds of 25 epochs, and the lowest validation error in percent.

    Of less than an epoch, the first batches of training and of validation are computed; there is no error then, and the
    first batch, for which the workers start, is not counted.
    """
    torch.manual_seed(0)
    dataset = rk.open_dataset(data)
    assert dataset.val is not None
    peer = PEERS[name](rk.load(init), dataset)
    if epochs < 1:
        steps = max(3, round(epochs * len(peer.train))), max(3, round(epochs * len(peer.val)))
        trained = seconds_each(train_on, peer, steps[0]) * len(peer.train)
        validated = seconds_each(count_wrong, peer, steps[1]) * len(peer.val)
        return PEER_EPOCHS * (trained + validated), None
    best, began = 100.0, time.monotonic()
    for epoch in range(1, int(epochs) + 1):
        deque(train_on(peer), maxlen=0)
        peer.after_epoch(epoch)
        error = 100 * sum(count_wrong(peer)) / len(dataset.val)
        best = min(best, error)
        if log:
            seconds = round(time.monotonic() - began)
            line = {"peer": name, "data": data, "epoch": epoch, "top1_error_percent": error, "seconds": seconds}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return (time.monotonic() - began) * PEER_EPOCHS / int(epochs), best


def train_on(peer: Peer) -> Iterator[int]:
    """Take the steps of an epoch, and yield the pictures of each."""
    peer.net.train()
    for images, labels in peer.train:
        peer.optimizer.zero_grad()
        peer.loss(peer.net(images), labels).backward()
        peer.optimizer.step()
        yield len(labels)


def count_wrong(peer: Peer) -> Iterator[int]:
    """Yield the wrong predictions in each validation batch."""
    peer.net.eval()
    for images, labels in peer.val:
        with torch.no_grad():
            yield int((peer.net(images).argmax(1) != labels).sum())


def seconds_each(work: Callable[[Peer], Iterator[int]], peer: Peer, count: int) -> float:
    """Return the mean seconds of the second to the last of `count` batches."""
    batches = work(peer)
    next(batches)
    began = time.monotonic()
    done = sum(1 for _ in islice(batches, count - 1))
    return (time.monotonic() - began) / done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--init", required=True, help="a model file with ImageNet weights")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--peer-epochs",
        type=float,
        default=PEER_EPOCHS,
        help="epochs of each peer that are run; 0.1 for a tenth of one",
    )
    parser.add_argument("--log", type=Path, help="a file that gets each epoch's error")
    parser.add_argument("--rungs", nargs="*", default=["head", "auto"], help="values of resnetkit train --rung")
    given, more = parser.parse_known_args()
    dataset = rk.open_dataset(given.data)
    pictures = len(dataset.val or ())
    print(f"{given.data}: {len(dataset.train or ()):,} training and {pictures:,} validation pictures")
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores; accuracy with 95 % interval")
    peers: dict[str, float] = {}
    for name in given.peers:
        seconds, error = finetune(name, given.data, given.init, given.peer_epochs, given.log)
        peers[name] = seconds
        how = "" if given.peer_epochs == PEER_EPOCHS else f", extrapolated from {given.peer_epochs:g}"
        after = "accuracy not measured" if error is None else f"{interval(error, pictures)} at the best epoch"
        print(f"{name}, {PEER_EPOCHS} epochs: {seconds:,.0f} s{how}; {after}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for rung in given.rungs:
            took, error, rungs = ours(given.data, given.init, rung, Path(folder), more)
            shares = "".join(f", 1/{seconds / took:.1f} of {name}" for name, seconds in peers.items())
            print(f"ours, --rung {rung}: {took:,.0f} s{shares}; {interval(error, pictures)}", flush=True)
            for row in rungs:
                print(f"    {row['rung']}: {row['top1_error_percent']} % error, {row['seconds']} s, kept {row['kept']}")


if __name__ == "__main__":
    main()
