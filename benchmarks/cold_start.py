"""Time of the command `resnetkit predict MODEL one.jpg` for one picture, against the usual torchvision script.

The commands run in turn, and each is timed from start to end: ours as tuned with --photos (`resnetkit tune`), on
OpenVINO in float32, and with torch; and the script, which imports torch and torchvision, loads the weights, and
predicts with the eager network. Files are in the system's cache, and ours has run once before, so that its graph
exists. The output also reports whether ours imported torch.

    python benchmarks/cold_start.py [--photos DIR] [--weights-dir DIR] [--rounds 9]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def script(name: str, weights: Path, picture: Path) -> None:
    """Print the five most probable classes of a picture: the usual script with torchvision."""
    import torch
    from PIL import Image
    from torchvision import models, transforms

    net = models.get_model(name)
    net.load_state_dict(torch.load(weights))
    net.eval()
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.no_grad():
        probabilities = net(transform(Image.open(picture).convert("RGB"))[None]).softmax(dim=1)[0]
    for probability, index in zip(*(values.tolist() for values in probabilities.topk(5)), strict=True):
        print(json.dumps({"index": index, "probability": probability}))


def imports_torch(command: list[str]) -> bool:
    """Return whether a Python command imports torch."""
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return any(line.rpartition(b"|")[2].strip() == b"torch" for line in done.stderr.splitlines())


def seconds_of(command: list[str]) -> float:
    """Run a command and return its seconds, from start to end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Prepare the model, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--photos", type=Path, help="folder of photographs to tune on")
    parser.add_argument(
        "--tune-on", help="DATA for `resnetkit tune`, such as a CSV with labels; unset: the photographs"
    )
    parser.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors (tuned or not) or *NAME.pth")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--script", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.script:
        script(given.model, *given.script)
        return
    import torch

    from decode import photographs
    from machine import describe
    from networks import eager_network, tune, write_model

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["RESNETKIT_CACHE"] = str(folder / "cache")
        picture = folder / "one.jpg"
        photographs(given.photos)[0].save(picture, quality=90)
        model = write_model(given.model, folder, given.weights_dir)
        weights = folder / "weights.pth"
        torch.save(eager_network(model).state_dict(), weights)
        predict = [sys.executable, "-m", "resnetkit", "predict", str(model), str(picture)]
        commands = {
            "ours, OpenVINO float32": [*predict, "--backend", "openvino", "--precision", "float32"],
            "ours, torch": [*predict, "--backend", "torch"],
            "script": [sys.executable, __file__, "--model", given.model, "--script", str(weights), str(picture)],
        }
        if given.photos:
            tune(model, given.tune_on or given.photos, "--goal", "latency")
            commands = {"ours, tuned": predict} | commands
        print(describe())
        print(f"{given.model}, a picture of 500x375, {given.rounds} rounds")
        took: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(given.rounds + 1):
            for name, command in commands.items():
                seconds = seconds_of(command)
                if round_:  # the first makes graphs and fills caches
                    took[name].append(seconds)
        for name, found in took.items():
            slow = "" if name == "script" else f", {'imports' if imports_torch(commands[name]) else 'no'} torch"
            ratios = [theirs / ours for ours, theirs in zip(found, took["script"], strict=True)]
            faster = "" if name == "script" else f"; script / ours {statistics.median(ratios):.2f}"
            print(
                f"{name:23} median {statistics.median(found):5.2f} s (from {min(found):.2f} to {max(found):.2f})"
                f"{slow}{faster}"
            )


if __name__ == "__main__":
    main()
