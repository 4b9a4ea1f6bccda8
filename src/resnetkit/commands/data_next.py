"""`resnetkit data next`: which pictures without a label to label next."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.commands.labelling import features_of
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import as_is, on_one_line, print_json, print_table
from resnetkit.data.folders.listing import find_below
from resnetkit.display import count
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnetkit.data.samples import Samples
    from resnetkit.modelfile import Model


@dataclass(frozen=True)
class Choice:
    """A picture to label."""

    path: str
    predicted: str
    """The most probable class."""
    probability: float
    second: str
    """The second most probable class; empty if there is one class."""
    margin: float
    """The probability of the first class minus that of the second, 0 to 1. A small one means that it is uncertain."""


def run(argv: Sequence[str]) -> int:
    """Choose pictures, and print them in the order of the choice."""
    parser = Parser(
        "data next",
        "MODEL DIR [options]",
        "Choose the pictures without a label that help most when they are labelled: the network is uncertain about "
        "them, and they differ from each other.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("folder", metavar="DIR", help="folder of pictures without labels, with the folders below it")
    parser.add_argument("--count", type=int, default=20, help="number of pictures to choose")
    parser.add_argument("--seed", type=int, default=0, help="decides the draw among equally useful pictures")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument("--cache_gb", type=float, default=4.0, help="largest size of the cached features, in GB")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--csv",
        action="store_true",
        help="print CSV: path,label,predicted,probability,second,margin. Fill in the column label, and it is a list "
        "for train",
    )
    given = parser.read(argv)
    if given["json"] and given["csv"]:
        raise UsageError("--json and --csv both set the format; give one of them")
    for name, least in (("count", 1), ("seed", 0), ("workers", 0)):
        if given[name] < least:
            raise UsageError(f"--{name} is {given[name]}; it must be at least {least}")
    if given["cache_gb"] <= 0:
        raise UsageError(f"--cache-gb is {given['cache_gb']:g}; it must be over 0")
    paths = _pictures(expanded(given["folder"]))

    from resnetkit.modelfile import load

    model = load(given["model"])
    if model.header.multilabel:
        raise UsageError(
            f"{given['model']} gives several labels for a picture, and data next chooses by one class; label pictures "
            "whose probabilities are near a threshold: resnetkit predict MODEL DIR --json --top 1000"
        )
    samples, known = _new(model, paths, given["folder"])
    features = features_of(model, samples, workers=given["workers"], cache_gb=given["cache_gb"])
    chosen = _choose(model, samples, features.indices, features.pool(), number=given["count"], seed=given["seed"])
    if given["json"]:
        document: dict[str, Any] = {
            "pictures": len(features),
            "known": known,
            "unreadable": {str(path): reason for path, reason in features.unreadable.items()},
            "next": [vars(one) for one in chosen],
        }
        print_json(document)
    elif given["csv"]:
        _print_csv(chosen)
    else:
        print(on_one_line(f"{count(len(chosen), 'picture')} of {len(features):,} in {given['folder']}, in this order"))
        rows = [(one.path, one.predicted, f"{one.probability:.3f}", one.second, f"{one.margin:.3f}") for one in chosen]
        print_table(("path", "predicted", "probability", "second", "margin"), rows)
    if known:
        _say(f"left out: {count(known, 'picture')} that trained the model")
    if features.unreadable:
        first = next(iter(features.unreadable))
        _say(f"{len(features.unreadable)} can't be read, first {first}")
    if len(chosen) < min(given["count"], len(features)):
        _say(f"{len(chosen)} pictures are all that differ from each other for the network")
    return 0


def _pictures(folder: Path) -> tuple[Path, ...]:
    """Return the pictures in a folder and the folders below it. Raises DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of the pictures without labels")
    paths = tuple(found.path for found in find_below(folder) if found.kind == "picture")
    if not paths:
        raise DataError(f"{folder} contains no pictures; give the folder of the pictures without labels")
    return paths


def _new(model: "Model", paths: tuple[Path, ...], folder: str) -> tuple["Samples", int]:
    """Return the pictures that did not train the model, with label 0, and the number of the others."""
    import numpy as np

    from resnetkit.data.parts import recognise
    from resnetkit.data.samples import Samples

    samples = Samples(model.header.classes, np.zeros(len(paths), np.int64), paths=paths)
    known = recognise(samples, model.header.data).mask
    if known.all():
        raise DataError(f"{folder}: all of its {len(paths):,} pictures trained the model; give other pictures")
    return samples.subset(np.flatnonzero(~known)), int(known.sum())


def _choose(
    model: "Model",
    samples: "Samples",
    indices: "NDArray[np.int64]",
    pool: "NDArray[np.float32]",
    *,
    number: int,
    seed: int,
) -> list[Choice]:
    """Choose among the pictures at `indices`, whose head's inputs are `pool`, float32 (n, channels)."""
    import numpy as np

    from resnetkit.calibration import scaled
    from resnetkit.finetune.acquisition import choose_next
    from resnetkit.finetune.heads import log_softmax

    weight, bias = (tensor.detach().float().cpu().numpy() for tensor in (model.net.fc.weight, model.net.fc.bias))
    logits = scaled(pool @ weight.T + bias, model.header.calibration)
    probabilities = np.exp(log_softmax(logits)).astype(np.float32)
    with bar("choosing", min(number, len(pool))) as advance:
        rows = choose_next(pool, probabilities, count=number, seed=seed, advance=advance)
    classes = model.header.classes
    chosen: list[Choice] = []
    for row in rows:
        first, *others = np.argsort(-probabilities[row], kind="stable")[:2]
        probability = float(probabilities[row, first])
        second = float(probabilities[row, others[0]]) if others else 0.0
        chosen.append(
            Choice(
                samples.place(int(indices[row])),
                classes[first],
                probability,
                classes[others[0]] if others else "",
                probability - second,
            )
        )
    return chosen


def _print_csv(chosen: Sequence[Choice]) -> None:
    columns = ("path", "label", "predicted", "probability", "second", "margin")
    writer = csv.DictWriter(as_is(sys.stdout), columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(one) | {"label": ""} for one in chosen)


def _say(text: str) -> None:
    print(on_one_line(f"resnetkit data next: {text}"), file=sys.stderr)
