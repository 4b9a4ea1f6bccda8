"""What heads on cached features say about data: planted label errors, learning curves, and the pictures to label next.

All of a labelled set's pictures are used; features are those of the frozen network. Three questions, each with several
seeds:

1. Of 5 % of the labels, each swapped for another class, how many are found, and how many of the named are swapped?
2. From a quarter of the pictures, what error does the learning curve foretell for all, and what is it?
3. From 100 drawn labelled pictures, what is the error when 100 more are chosen, and when they are drawn?

    python benchmarks/labels.py MODEL DATA
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.dataset import open_dataset
from resnetkit.finetune.acquisition import choose_next
from resnetkit.finetune.features import FeatureCache
from resnetkit.finetune.heads import fit
from resnetkit.finetune.labels import confident_errors
from resnetkit.finetune.learning_curve import learning_curve
from resnetkit.finetune.out_of_sample import out_of_sample
from resnetkit.modelfile import load

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


def planted_errors(features: Features, labels: Labels, *, classes: int, seed: int) -> tuple[float, float, float, float]:
    """Return the shares of planted errors found, of named ones planted, the same of the worst half, and seconds."""
    rng = np.random.default_rng(seed)
    places = rng.choice(len(labels), round(0.05 * len(labels)), replace=False)
    swapped = labels.copy()
    swapped[places] = (labels[places] + rng.integers(1, classes, len(places))) % classes
    began = time.process_time()
    found = out_of_sample(features, swapped, classes=classes, seed=seed)
    rows, _, _ = confident_errors(found.probabilities, swapped)
    seconds = time.process_time() - began
    hits = np.isin(rows, places)
    return hits.sum() / len(places), hits.mean(), hits[: len(places) // 2].mean(), seconds


def foretold(features: Features, labels: Labels, classes: tuple[str, ...], *, seed: int) -> tuple[float, float, float]:
    """Return the error in percent that a quarter of the pictures foretells for all of them, and its interval."""
    few = np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 4]
    curve = learning_curve(features[few], labels[few], classes=classes, seed=seed)
    last = curve.extrapolated[-1]
    return last.top1_error_percent, *last.interval_percent


def labelled_next(features: Features, labels: Labels, *, classes: int, seed: int) -> tuple[float, float, float]:
    """Return the error in percent on a held-out half, with 100 labels, 100 more drawn, or 100 more chosen."""
    order = np.random.default_rng(seed).permutation(len(labels))
    test, first, rest = order[: len(order) // 2], *np.split(order[len(order) // 2 :], [100])
    head = fit(features[first], labels[first], classes=classes, penalty=0.03)
    chosen = rest[choose_next(features[rest], head.probabilities(features[rest]).astype(np.float32), count=100)]
    errors: list[float] = []
    for rows in (first, np.append(first, rest[:100]), np.append(first, chosen)):
        again = fit(features[rows], labels[rows], classes=classes, penalty=0.03)
        errors.append(100 * float((again.logits(features[test]).argmax(axis=1) != labels[test]).mean()))
    return errors[0], errors[1], errors[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    given = parser.parse_args()
    _, samples = open_dataset(given.data).part("all")
    cache = FeatureCache(load(given.model))
    computed = cache.compute(samples)
    features, labels, names = computed.pool(), computed.labels, samples.classes
    print(f"{given.model} on {given.data}: {len(labels):,} pictures, {len(names)} classes, {cache.computed_by}")
    errors = np.array([planted_errors(features, labels, classes=len(names), seed=seed) for seed in range(5)])
    recall, precision, first, seconds = errors.mean(axis=0)
    print(
        f"planted errors, 5 seeds: found {100 * recall:.1f} % (lowest {100 * errors[:, 0].min():.1f}), precision "
        f"{100 * precision:.1f} % (lowest {100 * errors[:, 1].min():.1f}), of the worst half {100 * first:.1f} %, "
        f"{seconds:.1f} s of one core"
    )
    truth = out_of_sample(features, labels, classes=len(names), count=20)
    error = 100 * float((truth.probabilities.argmax(axis=1) != labels).mean())
    print(f"error with {truth.fitted_to:.0f} pictures, 20 folds: {error:.2f} %")
    for seed in range(3):
        point, low, high = foretold(features, labels, names, seed=seed)
        print(f"  foretold from a quarter, seed {seed}: {point:.2f} % ({low:.2f} to {high:.2f})")
    after = np.array([labelled_next(features, labels, classes=len(names), seed=seed) for seed in range(10)])
    gain = after[:, 1] - after[:, 2]
    print(
        "error with 100 labelled pictures {:.2f} %, with 100 more drawn {:.2f} %, with 100 more chosen {:.2f} %".format(
            *after.mean(axis=0)
        )
    )
    print(
        f"  chosen ones save {gain.mean():.2f} points more, standard error {gain.std(ddof=1) / 10**0.5:.2f}, 10 seeds"
    )


if __name__ == "__main__":
    main()
