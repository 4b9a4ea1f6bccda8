"""`resnetkit data check` and `data convert` for pictures with boxes."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import free_file, on_one_line, print_json, print_table
from resnetkit.data.detection.check import BoxFindings, check_boxes, lines
from resnetkit.data.detection.dataset import open_detection
from resnetkit.data.detection.sources import find_sources
from resnetkit.data.detection.writing import write_detection
from resnetkit.data.published.cifar import CIFARS
from resnetkit.data.reading import reading_of
from resnetkit.display import count, shell
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar

MOST_PLACES = 20
"""Largest number of places of each fault that are printed."""
DATA = "a folder of pictures with PASCAL VOC, COCO or YOLO annotations, a COCO file or a data.yaml"


def check(given: Mapping[str, Any]) -> int | None:
    """Print what is wrong with the annotations; return 1 if there is something to fix, else 0.

    None, and nothing is done, if class folders or a list are to be checked: DATA has no boxes, or --annotations is
    none.
    """
    stated = given["annotations"]
    if stated == "none" or (not stated and (given["data"] in CIFARS or reading_of(given).given())):
        return None
    sources = find_sources(given["data"])
    if not stated and not (sources and sources.forms):
        return None
    if given["fix"]:
        raise UsageError(
            f"--fix is for class folders, and {given['data']} has boxes. To write a copy with mended boxes: "
            f"resnetkit data convert {shell(given['data'])} DIR --to voc"
        )
    overview = free_file(given["page"], "--page", force=given["force"]) if given["page"] else None
    reading_of(given).refuse(*reading_of(given).given(), why=f"{given['data']} has boxes")
    with bar("checking", None) as advance:
        found = check_boxes(
            given["data"],
            annotations=stated,
            sources=sources,
            workers=given["workers"],
            advance=advance,
        )
    if overview:
        from resnetkit.detect.overview import write_overview

        write_overview(overview, found)
    if given["json"]:
        print_json(found.to_dict())
    else:
        _print(found)
        if overview:
            print(on_one_line(f"page: {overview}"))
    return 0 if found.sound else 1


def _print(found: BoxFindings) -> None:
    classes = list(next(iter(found.boxes.values()))) if found.boxes else []
    parts = list(found.boxes)
    rows: list[list[str]] = [[name, *(f"{found.boxes[part][name]:,}" for part in parts)] for name in classes]
    rows.append(["pictures", *(f"{found.pictures[part]:,}" for part in parts)])
    rows.append(["without boxes", *(f"{found.background[part]:,}" for part in parts)])
    print_table(("boxes of", *parts), rows)
    for note in found.notes:
        print(on_one_line(f"note: {note}"))
    for text in lines(found, most=MOST_PLACES):
        print(on_one_line(text))
    for text in found.summary:
        print(on_one_line(f"in all: {text}"))
    if found.sound:
        print("nothing to fix")
    else:
        leaks = f" and {count(len(found.leaks), 'leak')}" if found.leaks else ""
        print(f"to fix: {count(len(found.to_fix), 'finding')}{leaks}")


def convert(argv: Sequence[str]) -> int:
    """Write pictures with boxes in another form."""
    parser = Parser(
        "data convert",
        "DATA DIR --to voc|coco|yolo [options]",
        "Write pictures with boxes as PASCAL VOC, COCO or YOLO to a new folder. Wrong boxes are mended or left out by "
        "the rule that training follows; resnetkit data check names them.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument("folder", metavar="DIR", help="new folder")
    parser.add_argument("--to", type=Literal["voc", "coco", "yolo"], required=True, help="form of the annotations")
    parser.add_argument(
        "--annotations", type=Literal["voc", "coco", "yolo"], help="form of DATA if it has several; unset: what it has"
    )
    parser.add_argument("--link", action="store_true", help="link the pictures instead of copying them, if possible")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.0,
        help="share of the training pictures that become val, if DATA has none",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which pictures become val")
    given = parser.read(argv)
    dataset = open_detection(
        given["data"], annotations=given["annotations"], val_fraction=given["val_fraction"], seed=given["seed"]
    )
    for note in dataset.notes:
        print(on_one_line(f"resnetkit data convert: {note}"), file=sys.stderr)
    with bar("writing", sum(map(len, dataset.parts.values()))) as advance:
        done = write_detection(dataset, expanded(given["folder"]), given["to"], link=given["link"], advance=advance)
    if done.lost:
        what = f"{count(done.lost, 'difficult object or crowd')} left out, for which {given['to'].upper()} has no place"
        print(on_one_line(f"resnetkit data convert: {what}"), file=sys.stderr)
    print(on_one_line(f"{count(done.pictures, 'picture')} with {done.boxes:,} boxes are in {done.folder}"))
    return 0
