"""The validation error and the speed of the recipe in plain float32 and with the fast defaults.

Each seed trains twice on the 45,000 pictures of the split, with `--precision float32 --compile off` (operation by
operation) and with the defaults, and is measured on the 5,000 validation pictures. Both runs of a seed have the same
first weights and batches, but their weights differ after an epoch, because of rounding. So the means and deviations
over the seeds must agree, not the single errors. A few epochs are enough for this comparison. With --runs, run folders
are kept, and finished runs are not trained again.

    python benchmarks/same_accuracy.py [--model resnet20] [--epochs 5] [--seeds 0 1 2] [--runs DIR]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from time_to_accuracy import trained

ARITHMETIC = {"float32": ["--precision", "float32", "--compile", "off"], "fast": []}


def main() -> None:
    """Train every seed both ways, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="folder in which run folders are kept")
    given = parser.parse_args()
    from machine import describe

    print(describe())
    print(f"{given.model}, {given.epochs:g} epochs of 45,000 pictures, validation error on 5,000\n")
    print(f"{'':10}" + "".join(f"seed {seed:<7}" for seed in given.seeds) + "mean     deviation  images/s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, flags in ARITHMETIC.items():
            errors, rates = [], []
            for seed in given.seeds:
                flags_too = ["--train-split", "45k", "--epochs", str(given.epochs), *flags]
                ended = trained(given.model, seed, folder / f"{given.model}-{name}-seed{seed}", flags_too)
                errors.append(ended["best"]["error_percent"])
                rates.append(ended["images_per_second"])
            each = "".join(f"{error:<5.2f} %     " for error in errors)
            spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
            print(
                f"{name:10}{each}{statistics.mean(errors):5.2f} %  {spread:4.2f}       {statistics.median(rates):.0f}"
            )


if __name__ == "__main__":
    main()
