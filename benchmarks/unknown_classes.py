"""How well pictures of no known class are told apart: classes are left out of training, and then predicted.

For each group of left-out classes, a head is fitted on the features of the frozen network for the other classes (60 %
of their pictures to train, 20 % to calibrate, 20 % to measure; seed 0). The threshold rejects 5 % of the validation
pictures. Three scores are compared: the probability of the best class, the largest logit, and the energy of the
logits.

    python benchmarks/unknown_classes.py MODEL DATA --left-out 0,1,2 --left-out 3,4,5 ...
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import Calibration, label_sets, rejects, scaled
from resnetkit.data.dataset import open_dataset
from resnetkit.evaluation.calibration import Reliability, fit
from resnetkit.finetune.heads import choose, fit_path
from resnetkit.infer.backends.backend import softmax
from resnetkit.infer.predictor import Predictor

Scores = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def energy(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logarithm of the sum of the exponentials of the logits (arXiv:2010.03759)."""
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))


def auroc(known: NDArray[np.float32], unknown: NDArray[np.float32]) -> float:
    """The probability that a picture of a known class has a larger score than one of an unknown class."""
    ordered = np.sort(unknown)
    below, up_to = (np.searchsorted(ordered, known, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(unknown))


def measure(
    features: NDArray[np.float32], labels: NDArray[np.int64], left_out: list[int], classes: int
) -> dict[str, tuple[float, float]]:
    """Print what holds for one group; return for each score the area under the ROC, and the share that is found."""
    known = [label for label in range(classes) if label not in left_out]
    place = np.full(classes, -1)
    place[known] = np.arange(len(known))
    of_known = np.random.default_rng(0).permutation(np.flatnonzero(place[labels] >= 0))
    train, val, test = np.split(of_known, [int(0.6 * len(of_known)), int(0.8 * len(of_known))])
    heads = fit_path(features[train], place[labels[train]], classes=len(known))
    head = choose(heads, features[val], place[labels[val]])
    logits, unknown = head.logits(features[test]), head.logits(features[place[labels] < 0])
    found = fit(head.logits(features[val]), place[labels[val]])
    assert found is not None
    right = logits.argmax(axis=1) == place[labels[test]]
    before, after = softmax(logits), softmax(scaled(logits, found))
    sets = label_sets(after, found, 0.9)
    covered = sets[np.arange(len(test)), place[labels[test]]].mean()
    print(
        f"without {left_out}: accuracy {100 * right.mean():.1f} %, temperature {found.temperature:.3f}, calibration "
        f"error {Reliability.of(before.max(1), right).ece_percent:.1f} -> "
        f"{Reliability.of(after.max(1), right).ece_percent:.1f} %, sets of 90 %: {100 * covered:.1f} % contain the "
        f"label, {sets.sum(axis=1).mean():.2f} classes; rejected {100 * rejects(after, found, 0.05).mean():.1f} % of "
        f"known, {100 * rejects(softmax(scaled(unknown, found)), found, 0.05).mean():.1f} % of unknown"
    )
    return {name: _rates(score, head.logits(features[val]), logits, unknown) for name, score in scores(found).items()}


def scores(found: Calibration) -> dict[str, Scores]:
    """The scores to compare."""
    return {
        "probability of the best class": lambda logits: softmax(scaled(logits, found)).max(axis=1),
        "largest logit": lambda logits: logits.max(axis=1),
        "energy": energy,
    }


def _rates(score: Scores, *logits: NDArray[np.float32]) -> tuple[float, float]:
    val, known, unknown = map(score, logits)
    threshold = np.sort(val)[int(0.05 * (len(val) + 1)) - 1]
    return auroc(known, unknown), float((unknown < threshold).mean())


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--left-out", action="append", required=True, metavar="CLASS,CLASS")
    given = parser.parse_args()
    _, samples = open_dataset(given.data, val_fraction=0).part("all")
    predictor = Predictor(given.model)
    rows = [values for _, values in predictor.compute_paths(samples.paths or (), output="pool")]
    read = np.array([not isinstance(values, str) for values in rows])
    features = np.stack([values for values in rows if not isinstance(values, str)])
    labels = samples.labels[read]
    found = [
        measure(features, labels, [samples.classes.index(name) for name in group.split(",")], len(samples.classes))
        for group in given.left_out
    ]
    for name in found[0]:
        area, share = np.mean([one[name] for one in found], axis=0)
        print(f"{name:30}  AUROC {area:.3f}  {100 * share:.1f} % of unknown pictures rejected at 5 % of known ones")


if __name__ == "__main__":
    main()
