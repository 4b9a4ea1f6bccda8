"""`resnetkit detect evaluate`: the average precision of a detector on pictures with boxes."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from resnetkit.commands.detect_computing import (
    COMPUTING,
    DETECTOR,
    add_computing,
    check_computing,
    use_one_thread_beside,
)
from resnetkit.commands.detect_ladder import add_ladder, ladder_detector
from resnetkit.commands.detect_train import BOXES
from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import on_one_line, print_json, print_table
from resnetkit.progress import bar


def run(argv: Sequence[str]) -> int:
    """Measure a detector; return 1 if a picture can't be read."""
    parser = Parser(
        "detect evaluate",
        "MODEL DATA [options]",
        "Measure a detector's average precision: AP50, as PASCAL VOC since 2010, and COCO's AP, the mean over overlaps "
        "from 0.5 to 0.95, if faster-coco-eval is installed (pip install 'resnetkit[detect]').",
    )
    parser.add_argument("model", metavar="MODEL", help=DETECTOR)
    parser.add_argument("data", metavar="DATA", help=BOXES)
    parser.add_argument(
        "--split",
        type=str,
        default="auto",
        help="part of the data: train, val, test; auto: test if there is one, else val",
    )
    parser.add_argument(
        "--annotations",
        type=Literal["voc", "coco", "yolo"],
        help="form of the boxes if DATA has several; unset: the one of the training, or what DATA has",
    )
    add_computing(parser, usual="torch, or what a file of resnetkit export is for")
    add_ladder(parser)
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument("--strict", action="store_true", help="fail on an unreadable picture")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    check_computing(given)
    from resnetkit.detect.evaluate import evaluate_finder
    from resnetkit.detect.inference.opening import open_detector
    from resnetkit.detect.run import open_as_trained

    computing = {name: given[name] for name in COMPUTING}
    exported = given["model"].endswith((".xml", ".onnx"))
    if not exported and given["precision"] is None:
        computing["backend"] = given["backend"] or "torch"
    model = ladder_detector(given) or open_detector(given["model"], **computing)
    use_one_thread_beside(model.choice)
    dataset = open_as_trained(given["data"], model.header, annotations=given["annotations"])
    part, samples = dataset.part(given["split"])
    if part == "train":
        print("resnetkit detect evaluate: these pictures may have trained the detector", file=sys.stderr)
    coco = find_spec("faster_coco_eval") is not None
    with bar("evaluating", len(samples)) as advance:
        found, unreadable = evaluate_finder(
            model.find,
            model.header.classes,
            samples,
            workers=given["workers"],
            strict=given["strict"],
            coco=coco,
            advance=advance,
        )
    for path, reason in unreadable.items():
        print(on_one_line(f"resnetkit detect evaluate: unreadable: {path}: {reason}"), file=sys.stderr)
    if given["json"]:
        print_json({"part": part, "ap_percent": None, **found.to_dict()})
        return 1 if unreadable else 0
    print(f"{found.images:,} {part} pictures of {on_one_line(given['data'])}, computed by {model.choice}")
    print(f"AP50          {found.ap50_percent:.2f} %")
    if found.ap_percent is not None:
        print(f"AP50 to 95    {found.ap_percent:.2f} %")
    print(f"VOC07 AP      {found.voc07_percent:.2f} %")
    print()
    rows = [
        (
            name,
            f"{row['objects']:,}",
            *(_number(row.get(column)) for column in ("ap50_percent", "ap_percent")),
            _number(row.get("threshold"), 3),
            *(_number(row.get(column)) for column in ("precision_percent", "recall_percent")),
        )
        for name, row in found.per_class.items()
    ]
    print_table(("class", "objects", "AP50 %", "AP %", "best threshold", "precision %", "recall %"), rows)
    print()
    errors = [(kind, f"{one.count:,}", f"{100 * one.gain:.2f}") for kind, one in found.errors.items()]
    print_table(("error", "number", "AP50 lost"), errors)
    return 1 if unreadable else 0


def _number(value: object, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) and value == value else "-"
