"""`resnetkit verify`: one receipt that evaluation, predictions, exported files and tuned graphs agree."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import on_one_line, print_json, print_table
from resnetkit.commands.serve import KEY

if TYPE_CHECKING:
    from resnetkit.verification.classifiers import Served, Verification
    from resnetkit.verification.detectors import DetectorVerification, ServedDetector


def run(argv: Sequence[str]) -> int:
    """Compare all ways to predict; return 1 if they do not agree."""
    parser = Parser(
        "verify",
        "MODEL [DIR] [options]",
        "Compare training's evaluation with every way to predict that is installed here, on the same pictures: predict "
        "with each backend, tuned graphs, exported files, and a server; for a detector, detect predict as it is "
        "computed now, and a server. Exit code 1 if they do not agree.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DIR",
        help="a folder of pictures, or a data set; unset: the validation pictures of the model's run if they are "
        "there, else drawn pictures",
    )
    parser.add_argument(
        "--url",
        type=str,
        help=f"address of a resnetkit serve whose answers are compared, too, such as http://127.0.0.1:8000; its key "
        f"is taken from ${KEY}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)

    from resnetkit.verification.detectors import DetectorVerification
    from resnetkit.verification.receipt import verify

    def say(text: str) -> None:
        print(on_one_line(f"resnetkit verify: {text}"), file=sys.stderr)

    result = verify(given["model"], given["data"], url=given["url"], key=os.environ.get(KEY) or None, say=say)
    if given["json"]:
        print_json(result.to_dict())
        return 0 if result.agrees else 1
    print(on_one_line(f"{result.pictures:,} pictures, {result.of}"))
    if isinstance(result, DetectorVerification):
        _print_boxes(result)
    else:
        _print_classes(result)
    for name, reason in result.left_out.items():
        print(on_one_line(f"{name}: {reason}"))
    if result.served is not None:
        print(on_one_line(_beside_predict(result.served)))
    print("all ways agree" if result.agrees else "the ways do NOT agree")
    return 0 if result.agrees else 1


def _print_classes(result: "Verification") -> None:
    rows = [
        (
            name,
            way.precision,
            f"{way.largest_difference:.1e}",
            f"{way.other_best_class:,}",
            "yes" if way.agrees else "NO",
        )
        for name, way in result.ways.items()
    ]
    print_table(
        ("compared with training's evaluation", "precision", "largest difference", "other best class", "agrees"), rows
    )


def _print_boxes(result: "DetectorVerification") -> None:
    rows = [
        (
            name,
            way.precision,
            f"{way.objects:,}",
            f"{way.other_objects:,}",
            f"{way.largest_score_difference:.1e}",
            f"{way.largest_edge_difference:.1e}",
            "yes" if way.agrees else "NO",
        )
        for name, way in result.ways.items()
    ]
    columns = ("precision", "objects", "other objects", "score difference", "edge difference", "agrees")
    print_table(("compared with training's evaluation", *columns), rows)


def _beside_predict(served: "Served | ServedDetector") -> str:
    """Return what the server's answers differ in from those of `predict` by the same backend."""
    same = "" if served.same_file else "; its model file is ANOTHER one"
    return (
        f"{served.url}, model {served.model}{same}: beside {served.verb} by {served.computed_by}, {served.differences}"
    )
