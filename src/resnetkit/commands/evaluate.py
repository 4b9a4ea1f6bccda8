"""`resnetkit evaluate`: errors and loss of a model on labelled pictures."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnetkit.commands.parser import DATA, MODEL, Parser
from resnetkit.commands.printing import free_file, on_one_line, print_json, print_table
from resnetkit.data.folders.folder import UNLABELLED
from resnetkit.data.reading import reading_of
from resnetkit.data.samples import Dataset, Samples, numbers_imagenet
from resnetkit.display import count
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.location import LocalFile, locate
from resnetkit.progress import bar

if TYPE_CHECKING:
    from resnetkit.evaluation.metrics import Evaluation

FILES = {"report": "report.html", "records": "records.csv"}
"""The flags that write a file, with an example of its name."""
TOP = 5
"""Number of classes that --records writes for each picture, the most probable first."""


def run(argv: Sequence[str]) -> int:
    """Evaluate, and print or write the result."""
    parser = Parser(
        "evaluate", "MODEL DATA [options]", "Measure the errors and the loss of a model on labelled pictures."
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("data", metavar="DATA", help=DATA)
    parser.add_argument(
        "--views",
        type=Literal["single", "ten-crop", "multi-scale"],
        default="single",
        help="input of the network: the centre crop, ten crops, or the whole picture at five scales; the probabilities "
        "of several views are averaged",
    )
    parser.add_argument(
        "--split",
        type=Literal["auto", "train", "val", "test", "all"],
        default="auto",
        help="part of the data to evaluate on; data without parts is divided as for the model's training. auto is "
        "test, else val, else all, and never pictures that trained the model",
    )
    parser.add_argument(
        "--batch_size",
        type=int | None,
        default=None,
        help="pictures that go through the network together; unset: 250, or as many as fit into half a GiB",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument("--strict", action="store_true", help="fail on an unreadable picture instead of skipping it")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--report", type=str, metavar="FILE", help="also write the result as an HTML page")
    parser.add_argument(
        "--records",
        type=str,
        metavar="FILE",
        help=f"also write a CSV file: label, {TOP} most probable classes and their probabilities for each picture",
    )
    parser.add_argument("--force", action="store_true", help="replace existing files of --report and --records")
    parser.add_reading()
    given = parser.read(argv)
    report, records = (_file(given, name, example) for name, example in FILES.items())
    if report and report == records:
        raise UsageError(f"--report and --records are both {report}; give two files")

    from resnetkit.data.parts import choose_part, open_as_trained
    from resnetkit.evaluation.evaluate import evaluate
    from resnetkit.evaluation.records import write_records
    from resnetkit.evaluation.report import write_report
    from resnetkit.location import short_name
    from resnetkit.modelfile import load
    from resnetkit.train.effects import effective_fields

    model = load(given["model"])
    dataset = open_as_trained(given["data"], model.header.data, strict=given["strict"], reading=reading_of(given))
    for note in dataset.understood:
        _say(note)
    part = choose_part(dataset, model.header.data, given["split"])
    for file, flag in ((report, "--report"), (records, "--records")):
        _refuse_own(file, flag, given["model"], given["data"], part.samples)
    if left_out := _left_out(dataset):
        _say(left_out)
    if numbers_imagenet(part.samples.classes, model.header.classes):
        _say("labels are numbers: they are taken in the order of the model's 1,000 classes, from 0")
    with bar("evaluating", len(part.samples)) as advance:
        result = evaluate(
            model,
            part,
            views=given["views"],
            batch_size=given["batch_size"],
            workers=given["workers"],
            strict=given["strict"],
            records=TOP if records else 0,
            advance=advance,
        )
    if given["json"]:
        print_json(result.to_dict())
    else:
        pictures = f"all {result.images:,}" if part.name == "all" else f"{result.images:,} {part.name}"
        print(on_one_line(f"{pictures} pictures of {given['data']}, {given['views']} view"))
        print(f"{part.name}: {part.why}")
        _print(result)
    for note in result.notes:
        _say(note)
    if report:
        title = f"{short_name(given['model'])} on {short_name(given['data'])}"
        recipe = effective_fields(model.header.recipe, model.header.data.get("split", {}))
        write_report(report, model.header, title=title, evaluated=result, recipe=recipe, on=f"{part.name} pictures")
        _say(f"the report is {report}")
    if records and result.records:
        write_records(records, result.records, result.classes, part.samples)
        _say(f"the records are {records}")
    return 0


def _left_out(dataset: Dataset) -> str:
    """Return a line on the files that are left out, but not unlabelled ones (see `understood`); empty if none are."""
    skipped = [(path, reason) for path, reason in dataset.skipped if reason != UNLABELLED]
    if not skipped:
        return ""
    path, reason = skipped[0]
    if dataset.missing == len(skipped):
        total = dataset.missing + sum(map(len, dataset.parts.values()))
        return f"{dataset.missing:,} of {total:,} files are missing, first {path}: {reason}"
    what = "folder" if all(one.is_dir() for one, _ in skipped) else "file"
    return f"{count(len(skipped), what)} of {dataset.name} left out, first {path}: {reason}"


def _say(text: str) -> None:
    print(on_one_line(f"resnetkit evaluate: {text}"), file=sys.stderr)


def _file(given: Mapping[str, Any], name: str, example: str) -> Path | None:
    """Return the file of a flag, or None. Raises UsageError if it can't be written."""
    if given[name] is None:
        return None
    if (file := expanded(given[name])).is_dir():
        raise UsageError(f"--{name} {file} is a folder; give a file, such as {file / example}")
    return free_file(given[name], f"--{name}", force=given["force"])


def _refuse_own(file: Path | None, flag: str, model: str, data: str, samples: Samples) -> None:
    """Raise UsageError for a file to write that is the model, the list or one of the pictures."""
    if file is None or not file.exists():
        return
    found = locate(model)
    inputs = [found.path] if isinstance(found, LocalFile) else []
    inputs += [expanded(data), *(samples.paths or ())]
    if any(path.exists() and file.samefile(path) for path in inputs):
        raise UsageError(f"{flag} {file} is the model or the data that are read; give another file")


def _print(result: "Evaluation") -> None:
    print(f"top-1 error  {result.top1_error_percent:.2f} %")
    if result.has_top5:
        print(f"top-5 error  {result.top5_error_percent:.2f} %")
    print(f"loss         {result.loss:.4f}")
    print()
    print_table(*result.table(worst_first=False))
    if result.unreadable:
        print(f"\n{len(result.unreadable)} more can't be read, first {on_one_line(next(iter(result.unreadable)))}")
