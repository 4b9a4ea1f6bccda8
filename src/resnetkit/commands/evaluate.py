"""`resnetkit evaluate`: error and loss of a model on labelled pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnetkit.commands.output import print_json, print_table
from resnetkit.commands.parser import DATA, MODEL, Parser
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.train.metrics import Evaluation


def run(argv: Sequence[str]) -> int:
    """Evaluate and print."""
    parser = Parser(
        "evaluate", "MODEL DATA [options]", "Error and loss of a model on labelled pictures, every one counted once."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument(
        "--views",
        type=Literal["single", "ten-crop", "multi-scale"],
        default="single",
        help="the centre crop, the mean of ten crops, or of the whole picture at five scales",
    )
    parser.add_argument(
        "--split",
        type=Literal["auto", "train", "val", "test", "all"],
        default="auto",
        help="which part of the data, divided as for the model's training; auto is test, else val, else all",
    )
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="pictures that go through the network together; unset: 250, or as many as fit into half a GiB",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument(
        "--strict", action="store_true", help="fail on an unreadable picture instead of passing it over"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--report", type=str, metavar="FILE", help="also write the result as a page of HTML")
    given = parser.read(argv)
    report = _report(given["report"])

    from resnetkit.modelfile import load
    from resnetkit.train.evaluate import evaluate, open_as_trained
    from resnetkit.train.report import write_report

    model = load(given["model"])
    dataset = open_as_trained(model.header, given["data"], strict=given["strict"])
    title, samples = dataset.part(given["split"])
    trained_on = model.header.data.get("fingerprint")
    if title in ("train", "all") and dataset.train and dataset.train.fingerprint() == trained_on:
        print(
            f"resnetkit evaluate: the model was trained on pictures of {given['data']}; "
            "--split val takes those that were kept out",
            file=sys.stderr,
        )
    if dataset.skipped:
        path, reason = dataset.skipped[0]
        print(
            f"resnetkit evaluate: {len(dataset.skipped)} files of {given['data']} left out, first {path}: {reason}",
            file=sys.stderr,
        )
    result = evaluate(
        model,
        samples,
        views=given["views"],
        batch_size=given["batch_size"],
        workers=given["workers"],
        strict=given["strict"],
    )
    if given["json"]:
        print_json(result.to_dict())
    else:
        print(f"{result.images:,} {title} pictures of {given['data']}, {given['views']} view")
        _print(result)
    if report:
        title = f"{title} pictures"
        write_report(report, model.header, title=f"{given['model']} on {given['data']}", evaluated=result, on=title)
        print(f"resnetkit evaluate: the report is {report}", file=sys.stderr)
    return 0


def _report(path: str | None) -> Path | None:
    """Where the report goes; refused before the work and not after it."""
    if path is None:
        return None
    report = Path(path)
    if not report.parent.is_dir():
        raise UsageError(f"--report {report}: there is no folder {report.parent}; make it, or give another file")
    if report.is_dir():
        raise UsageError(f"--report {report} is a folder; give a file, such as {report / 'report.html'}")
    return report


def _print(result: "Evaluation") -> None:
    print(f"top-1 error  {result.top1_error_percent:.2f} %")
    print(f"top-5 error  {result.top5_error_percent:.2f} %")
    print(f"loss         {result.loss:.4f}")
    print()
    print_table(
        ("class", "pictures", "top-1 error", "top-5 error"),
        (
            (name, row["images"], f"{row['top1_error_percent']:.2f} %", f"{row['top5_error_percent']:.2f} %")
            for name, row in result.per_class.items()
        ),
    )
    if result.unreadable:
        print(f"\n{len(result.unreadable)} more can't be read, first {next(iter(result.unreadable))}")
