"""`resnetkit detect predict`: find objects in pictures."""

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resnetkit.commands.detect_computing import (
    COMPUTING,
    DETECTOR,
    add_computing,
    check_computing,
    use_one_thread_beside,
)
from resnetkit.commands.detect_ladder import add_ladder, ladder_detector
from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import as_is, on_one_line, print_list
from resnetkit.errors import UsageError
from resnetkit.files import expanded

COLUMNS = ("path", "label", "index", "score", "left", "top", "right", "bottom", "error")
Results = Iterable[dict[str, Any]]


def run(argv: Sequence[str]) -> int:
    """Find objects in every picture; return 1 if one can't be read."""
    parser = Parser("detect predict", "MODEL PATH... [options]", "Find objects in pictures.")
    parser.add_argument("model", metavar="MODEL", help=DETECTOR)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture, a folder of pictures, or a glob in quotes")
    parser.add_argument(
        "--threshold",
        type=float | None,
        help="least probability of a detection, 0 to 1; unset: the best of each class on the validation pictures",
    )
    parser.add_argument("--draw", type=str, metavar="DIR", help="write each picture with its boxes to this folder")
    parser.add_argument(
        "--tile",
        action="store_true",
        help="search pictures far larger than those of the training in overlapping tiles, too",
    )
    parser.add_argument(
        "--tile_size", type=int | None, help="pixels of a tile's side; unset: as the shorter side in training"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--csv", action="store_true", help=f"print CSV: {','.join(COLUMNS)}")
    add_computing(parser)
    add_ladder(parser)
    parser.add_argument("--workers", type=int, default=1, help="threads that decode pictures")
    given = parser.read(argv)
    if given["json"] and given["csv"]:
        raise UsageError("--json and --csv both set the format; give one of them")
    check_computing(given)
    draw = expanded(given["draw"]) if given["draw"] else None
    for folder in map(Path, given["paths"] if draw else ()):
        if draw and folder.is_dir() and draw.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"--draw {draw} is inside {folder}, whose pictures are read; give a folder outside it")
    from resnetkit.detect.predict import DetectorPredictor

    several = len(given["paths"]) > 1 or not Path(given["paths"][0]).is_file()
    predictor = DetectorPredictor(
        ladder_detector(given) or given["model"],
        threshold=given["threshold"],
        tile=given["tile"],
        tile_size=given["tile_size"],
        **{name: given[name] for name in COMPUTING},
        goal="throughput" if several else "latency",
        may_export=several or given["backend"] is not None,
    )
    use_one_thread_beside(predictor.choice)
    failed: list[str] = []
    results = _noting_failures(predictor.predict_paths(given["paths"], workers=given["workers"], draw=draw), failed)
    if given["json"]:
        print_list(results)
    elif given["csv"]:
        _write_csv(results)
    else:
        _write_lines(results)
    if failed:
        print(f"resnetkit detect predict: {len(failed)} not read, first {on_one_line(failed[0])}", file=sys.stderr)
    return 1 if failed else 0


def _noting_failures(results: Results, failed: list[str]) -> Results:
    for result in results:
        if "error" in result:
            failed.append(result["path"])
        yield result


def _write_lines(results: Results) -> None:
    for result in results:
        print(on_one_line(result["path"]))
        for one in result.get("detections", ()):
            box = " ".join(f"{edge:.0f}" for edge in one["box"])
            print(f"  {100 * one['score']:6.2f} %  {on_one_line(one['label'])}  {box}")
        if result.get("detections") == []:
            print("  nothing found")
        if "drawing" in result:
            print(f"  drawn: {on_one_line(result['drawing'])}")
        if "error" in result:
            print(f"  error: {on_one_line(result['error'])}")


def _write_csv(results: Results) -> None:
    """Print a line for each detection; a picture in which nothing is found has no line."""
    writer = csv.DictWriter(as_is(sys.stdout), COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        if "error" in result:
            writer.writerow({"path": result["path"], "error": result["error"]})
        for one in result.get("detections", ()):
            edges = dict(zip(("left", "top", "right", "bottom"), one["box"], strict=True))
            writer.writerow({"path": result["path"], **{n: one[n] for n in ("label", "index", "score")}, **edges})
