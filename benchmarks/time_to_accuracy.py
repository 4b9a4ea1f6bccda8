"""Time to the paper's accuracy: ResNet-20 on CIFAR-10 with our recipe, and with the paper's schedule in a plain loop.

Each seed trains on all 50,000 training pictures with `resnetkit train` and the recipe `cifar10`, and is evaluated once
on the 10,000 test pictures. The plain loop's speed (see train_throughput.py) is measured before and after each run, and
its time for the paper's 64,000 steps of 128 pictures is computed from it. Three seeds take most of an hour. With
--runs, run folders are kept, and finished runs are not trained again. --minutes sets the length of a run.

    python benchmarks/time_to_accuracy.py [--model resnet20] [--seeds 0 1 2] [--minutes 15] [--runs DIR]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PAPER_IMAGES = 64_000 * 128
PAPER_ERROR_PERCENT = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97}  # Table 6


def resnetkit(*arguments: str) -> dict:
    """Run a verb with --json and return its JSON document."""
    command = [sys.executable, "-m", "resnetkit", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peer_rate(model: str) -> float:
    """Measure and return the images per second of the plain loop."""
    script = Path(__file__).with_name("train_throughput.py")
    command = [sys.executable, str(script), "--one", "peer", "--only", model, "--workers", "2", "--folder", "."]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def trained(model: str, seed: int, run: Path, flags: list[str]) -> dict:
    """Train with more `flags`, unless a finished run is kept; return the JSON document of `resnetkit train`."""
    kept = run.with_name(f"{run.name}.json")
    if not kept.exists():
        given = ["train", "cifar10", "--model", model, "--seed", str(seed), "--out", str(run), *flags]
        kept.write_text(json.dumps(resnetkit(*given)), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def main() -> None:
    """Train every seed, evaluate each once, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=list(PAPER_ERROR_PERCENT))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, help="length of a run; unset: the recipe's epochs")
    parser.add_argument("--runs", type=Path, help="folder in which run folders are kept")
    given = parser.parse_args()
    from machine import describe

    print(describe())
    errors, minutes, rates = [], [], [peer_rate(given.model)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in given.seeds:
            length = ["--minutes", f"{given.minutes:g}"] if given.minutes else []
            run = folder / "-".join([given.model, f"seed{seed}", *(value.strip("-") for value in length)])
            ended = trained(given.model, seed, run, ["--train-split", "50k", *length])
            rates.append(peer_rate(given.model))
            error = resnetkit("evaluate", str(run), "cifar10")["top1_error_percent"]
            errors.append(error)
            minutes.append(ended["seconds"] / 60)
            print(
                f"{given.model}, seed {seed}: test error {error:.2f} %, {minutes[-1]:.1f} minutes, "
                f"{ended['images_per_second']:.0f} images/s",
                flush=True,
            )
    rate = statistics.median(rates)
    hours = PAPER_IMAGES / rate / 3600
    print(f"\n{'':28}  test error  time")
    print(
        f"{f'recipe cifar10, {len(errors)} seeds':28}  {statistics.mean(errors):.2f} %      "
        f"{statistics.mean(minutes):.1f} minutes"
    )
    print(
        f"{'paper, in the plain loop':28}  {PAPER_ERROR_PERCENT[given.model]:.2f} %      {hours:.1f} hours "
        f"(64,000 steps of 128 at the measured {rate:.0f} images/s)"
    )


if __name__ == "__main__":
    main()
