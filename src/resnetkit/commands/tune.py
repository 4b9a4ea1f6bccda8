"""`resnetkit tune`: measure the fastest way to compute a model on this machine without losing accuracy, and keep it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from resnetkit.commands.detect_computing import is_detector
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import print_json, print_table
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.infer.tuning.record import Tuned


def run(argv: Sequence[str]) -> int:
    """Tune, and print the measurements."""
    parser = Parser(
        "tune",
        "MODEL [DATA] [options]",
        "Measure the ways to compute a model on this machine, and keep the fastest that is accurate enough. All later "
        "predictions use it.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        help="cifar10, cifar100, a CSV file, or a folder of pictures with or without class folders, to measure the "
        "accuracy on; for a detector, pictures with boxes. Without DATA, 8-bit integers are not tried",
    )
    parser.add_argument(
        "--goal",
        type=Literal["latency", "throughput", "both"],
        default="both",
        help="latency: least time for one picture; throughput: most pictures per second in batches",
    )
    parser.add_argument(
        "--max_top1_loss",
        type=float | None,
        help="points of top-1 accuracy that may be lost on pictures not seen, by what those of DATA show (unset: 0.5)",
    )
    parser.add_argument(
        "--max_ap_loss",
        type=float | None,
        help="for a detector: points of AP50, and of COCO's AP, that may be lost on the val pictures of DATA "
        "(unset: 0.5)",
    )
    parser.add_argument(
        "--calibrate", type=str, metavar="DATA", help="pictures for the calibration of 8-bit integers; unset: DATA"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure faster but less exactly: fewer pictures and rounds"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    common: dict[str, Any] = {name: given[name] for name in ("goal", "calibrate", "quick")}
    common["say"] = _say
    detector = is_detector(given["model"])
    own, other = ("max_ap_loss", "max_top1_loss") if detector else ("max_top1_loss", "max_ap_loss")
    if given[other] is not None:
        kinds = ("detector", "classifiers") if detector else ("classifier", "detectors")
        raise UsageError(f"--{other.replace('_', '-')} is for {kinds[1]}; {given['model']} is a {kinds[0]}")
    if given[own] is not None:
        common[own] = given[own]
    if detector:
        from resnetkit.detect.inference.tuning import tune_detector

        tuned = tune_detector(given["model"], given["data"], **common)
    else:
        from resnetkit.infer.tuning.tune import tune

        tuned = tune(given["model"], given["data"], **common)
    if given["json"]:
        print_json(asdict(tuned))
    else:
        _print(tuned)
    return 0


def _say(line: str) -> None:
    print(f"resnetkit tune: {line}", file=sys.stderr, flush=True)


def _print(tuned: "Tuned") -> None:
    header = ("goal", "backend", "precision", "threads", "streams", "batch", "images/s", "ms", "")
    print_table(header, (_cells(row, chosen=tuned.goals[row["goal"]]["choice"]) for row in tuned.table))


def _cells(row: Mapping[str, Any], *, chosen: object) -> tuple[str, ...]:
    choice = row["choice"]
    settings = [str(choice[name]) for name in ("backend", "precision", "threads", "streams", "batch_size")]
    figures = (f"{row['images_per_second']:.1f}", f"{row['milliseconds']:.2f}")
    return (row["goal"], *settings, *figures, "chosen" if choice == chosen else "")
