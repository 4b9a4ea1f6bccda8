"""`resnetkit evaluate`: error and loss of a model on labelled pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resnetkit.commands.parser import DATA, MODEL, Parser
from resnetkit.commands.printing import on_one_line, print_json, print_table
from resnetkit.data.reading import reading_of
from resnetkit.display import count
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.progress import bar

if TYPE_CHECKING:
    from resnetkit.evaluation.metrics import Evaluation


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
        help="which part of the data, divided as for the model's training; auto is test, else val, else all, and never "
        "pictures that trained the model",
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
    parser.add_reading()
    given = parser.read(argv)
    report = _report(given["report"])

    from resnetkit.data.parts import choose_part, open_as_trained
    from resnetkit.evaluation.evaluate import evaluate
    from resnetkit.evaluation.report import write_report
    from resnetkit.location import short_name
    from resnetkit.modelfile import load

    model = load(given["model"])
    dataset = open_as_trained(given["data"], model.header.data, strict=given["strict"], reading=reading_of(given))
    for note in dataset.understood:
        _say(note)
    part = choose_part(dataset, model.header.data, given["split"])
    if dataset.skipped:
        path, reason = dataset.skipped[0]
        _say(f"{count(len(dataset.skipped), 'file')} of {given['data']} left out, first {path}: {reason}")
    with bar("evaluating", len(part.samples)) as advance:
        result = evaluate(
            model,
            part,
            views=given["views"],
            batch_size=given["batch_size"],
            workers=given["workers"],
            strict=given["strict"],
            advance=advance,
        )
    if given["json"]:
        print_json(result.to_dict())
    else:
        print(on_one_line(f"{result.images:,} {part.name} pictures of {given['data']}, {given['views']} view"))
        print(f"{part.name}: {part.why}")
        _print(result)
    for note in result.notes:
        _say(note)
    if report:
        title = f"{short_name(given['model'])} on {short_name(given['data'])}"
        write_report(report, model.header, title=title, evaluated=result, on=f"{part.name} pictures")
        _say(f"the report is {report}")
    return 0


def _say(text: str) -> None:
    print(on_one_line(f"resnetkit evaluate: {text}"), file=sys.stderr)


def _report(path: str | None) -> Path | None:
    """Where the report goes; refused before the work and not after it."""
    if path is None:
        return None
    report = expanded(path)
    if not report.parent.is_dir():
        raise UsageError(f"--report {report}: there is no folder {report.parent}; make it, or give another file")
    if report.is_dir():
        raise UsageError(f"--report {report} is a folder; give a file, such as {report / 'report.html'}")
    return report


def _print(result: "Evaluation") -> None:
    print(f"top-1 error  {result.top1_error_percent:.2f} %")
    if result.has_top5:
        print(f"top-5 error  {result.top5_error_percent:.2f} %")
    print(f"loss         {result.loss:.4f}")
    print()
    columns = ("top1_error_percent", "top5_error_percent")[: 1 + result.has_top5]
    print_table(
        ("class", "pictures", "top-1 error", "top-5 error")[: 3 + result.has_top5],
        (
            (name, row["images"], *(f"{row[column]:.2f} %" for column in columns))
            for name, row in result.per_class.items()
        ),
    )
    if result.unreadable:
        print(f"\n{len(result.unreadable)} more can't be read, first {on_one_line(next(iter(result.unreadable)))}")
