"""`resnetkit evaluate`: errors and loss of a model on labelled pictures."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resnetkit.commands import evaluate_labels, labelling
from resnetkit.commands.leaks import leaking_pictures, sections_on_data
from resnetkit.commands.parser import DATA, MODEL, Parser
from resnetkit.commands.printing import free_file, on_one_line, print_json, print_table
from resnetkit.data.folders.folder import UNLABELLED
from resnetkit.data.reading import reading_of
from resnetkit.data.samples import Dataset, Samples, numbers_imagenet
from resnetkit.display import count
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.location import LocalFile, locate
from resnetkit.progress import bar

if TYPE_CHECKING:
    from resnetkit.data.parts import Part
    from resnetkit.evaluation.metrics import Evaluation
    from resnetkit.evaluation.records import Records

FILES = {"report": "report.html", "csv": "pictures.csv", "calibrate": "model.safetensors", "review": "review.html"}
"""The flags that write a file, with an example of its name."""
TOP = 5
"""Number of classes that --csv writes for each picture, the most probable first."""


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
        "--csv",
        "--records",
        type=str,
        metavar="FILE",
        help=f"also write a CSV file: label, {TOP} most probable classes and their probabilities for each picture",
    )
    parser.add_argument(
        "--against",
        type=str,
        metavar="OTHER",
        help="another model: compare both picture by picture, and say whether they can be told apart",
    )
    parser.add_argument(
        "--class_share",
        type=str,
        metavar="NAME=SHARE,...",
        help="also give the error where the classes have these shares, such as cat=0.7,dog=0.3",
    )
    parser.add_argument(
        "--calibrate",
        type=str,
        metavar="FILE",
        help="also write the model to this file with a temperature and thresholds fitted on these pictures",
    )
    labelling.add_flags(parser)
    parser.add_argument("--force", action="store_true", help="replace existing files of the flags that write one")
    parser.add_reading()
    given = parser.read(argv)
    files = {name: file for name, example in FILES.items() if (file := _file(given, name, example))}
    if len(set(files.values())) < len(files):
        first, *_ = [name for name, file in files.items() if list(files.values()).count(file) > 1]
        other = next(name for name, file in files.items() if name != first and file == files[first])
        raise UsageError(f"--{first} and --{other} are both {files[first]}; give two files")
    if "calibrate" in files and given["views"] != "single":
        raise UsageError("--calibrate fits the single view, which predict uses; leave out --views")
    labelling.check_flags(given)
    shares = _shares(given["class_share"]) if given["class_share"] else {}

    from resnetkit.data.parts import choose_part, open_as_trained, recognise
    from resnetkit.evaluation.calibration import LEAST_PICTURES, LogitSample
    from resnetkit.evaluation.compare import Comparison
    from resnetkit.evaluation.evaluate import evaluate
    from resnetkit.evaluation.intervals import class_shares, weighted_error
    from resnetkit.evaluation.mistakes import worst_mistakes
    from resnetkit.evaluation.records import write_records
    from resnetkit.evaluation.report import versions, write_report
    from resnetkit.finetune.review import write_review
    from resnetkit.location import short_name
    from resnetkit.modelfile import load, save
    from resnetkit.train.effects import effective_fields

    model = load(given["model"])
    dataset = open_as_trained(given["data"], model.header.data, strict=given["strict"], reading=reading_of(given))
    for note in dataset.understood:
        _say(note)
    part = choose_part(dataset, model.header.data, given["split"])
    for name, file in files.items():
        _refuse_own(file, f"--{name}", given["model"], given["data"], part.samples)
    if part.trained_on and "calibrate" in files:
        raise UsageError(
            f"--calibrate needs pictures that did not train the model, and {part.trained_on:,} of these did; leave out "
            "--split, or give other pictures"
        )
    if left_out := _left_out(dataset):
        _say(left_out)
    if model.header.multilabel:
        return evaluate_labels.run(model, dataset, part, given, files, argv)
    other = load(given["against"]) if given["against"] else None
    sample = LogitSample(len(part.samples), len(model.header.classes)) if "calibrate" in files else None
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
            records=TOP,
            see=sample.add if sample else None,
            advance=advance,
        )
    document = result.to_dict()
    if sample:
        calibration = sample.fit()
        if calibration is None:
            raise DataError(f"--calibrate needs {LEAST_PICTURES} pictures or more, and finite logits")
        save(files["calibrate"], model.net, replace(model.header, calibration=calibration))
        result.calibration = calibration
        result.records = sample.records(calibration, top=TOP) if sample.whole else result.records
        document = result.to_dict() | {"calibrated_model": str(files["calibrate"])}
    if result.records:
        document |= _leaks(dataset, part, model.header.data, result.records, workers=given["workers"])
    if shares:
        totals = result.confusion.sum(axis=1)
        weighted, ends = weighted_error(result.confusion, class_shares(shares, result.classes, totals))
        document["weighted"] = {
            "class_share": shares,
            "top1_error_percent": round(100 * weighted, 4),
            "interval_percent": [round(100 * end, 4) for end in ends],
        }
    if other and result.records:
        with bar("evaluating the other model", len(part.samples)) as advance:
            others = evaluate(
                other,
                replace(part, trained_on=0),
                views=given["views"],
                workers=given["workers"],
                records=1,
                advance=advance,
            )
        if others.records:
            document["difference"] = Comparison.of(result.records, others.records).to_dict()
            document["difference"]["other_top1_error_percent"] = others.top1_error_percent
        if known := int(recognise(part.samples, other.header.data).mask.sum()):
            _say(
                f"{known:,} of these pictures trained {given['against']}: its error on new pictures may be much larger"
            )
    answers = labelling.answer(model, dataset, part, given)
    if answers:
        document |= answers.document
    if given["json"]:
        print_json(document)
    else:
        pictures = f"all {result.images:,}" if part.name == "all" else f"{result.images:,} {part.name}"
        print(on_one_line(f"{pictures} pictures of {given['data']}, {given['views']} view"))
        print(f"{part.name}: {part.why}")
        _print(result, document)
        if answers:
            answers.print()
    for note in (*result.notes, *(answers.notes if answers else ())):
        _say(note)
    if report := files.get("report"):
        title = f"{short_name(given['model'])} on {short_name(given['data'])}"
        named = part.samples.as_classes(model.header.classes)
        write_report(
            report,
            model.header,
            title=title,
            evaluated=result,
            recipe=effective_fields(model.header.recipe, model.header.data.get("split", {})),
            on=f"{part.name} pictures",
            mistakes=list(worst_mistakes(model, named, result.records)) if result.records else [],
            compared=_compared(document, given["against"]),
            sections=sections_on_data(dataset, workers=given["workers"]) | (answers.sections if answers else {}),
            made_by={
                "command": shlex.join(["resnetkit", "evaluate", *argv]),
                "data": f"{given['data']}, {part.name}, fingerprint {named.fingerprint()}",
                **versions(),
            },
        )
        _say(f"the report is {report}")
    if (table := files.get("csv")) and result.records:
        write_records(table, result.records, result.classes, part.samples)
        _say(f"the result of each picture is in {table}")
    if (review := files.get("review")) and answers and answers.errors is not None:
        write_review(review, answers.errors, answers.samples, data=given["data"])
        _say(f"the page to review labels is {review}")
    if "calibrate" in files:
        _say(f"the model with temperature {document['calibration']['temperature']:.3f} is {files['calibrate']}")
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


def _compared(document: Mapping[str, Any], other: str | None) -> dict[str, str]:
    """Return the results of --against and --class-share, for the report."""
    rows: dict[str, str] = {}
    if document.get("leaking") is not None:
        error = document["top1_error_percent_without_leaks"]
        without = "" if error is None or not document["leaking"] else f"; without them, top-1 error {error:.2f} %"
        rows["pictures that are alike to training pictures"] = f"{document['leaking']:,}{without}"
    if found := document.get("weighted"):
        low, high = found["interval_percent"]
        shares = ", ".join(f"{name} {share:g}" for name, share in found["class_share"].items())
        rows[f"top-1 error where the classes have the shares {shares}"] = (
            f"{found['top1_error_percent']:.2f} % ({low:.2f} to {high:.2f} %)"
        )
    if found := document.get("difference"):
        low, high = found["interval_percent"]
        rows[f"top-1 error minus that of {other}"] = (
            f"{found['percent']:+.2f} points ({low:+.2f} to {high:+.2f}), p = {found['p']:.3f}: {found['verdict']}"
        )
    return rows


def _leaks(
    dataset: Dataset, part: "Part", trained_on: Mapping[str, Any], records: "Records", *, workers: int
) -> dict[str, Any]:
    """Return the number of evaluated pictures that are the same as, or alike to, training pictures of the model.

    It is None where the training pictures are not in the data, are in memory, or are too many to look at each time.
    """
    found = leaking_pictures(dataset, part, trained_on, workers=workers)
    if found is None:
        return {"leaking": None, "top1_error_percent_without_leaks": None}
    leaks = found[records.indices]
    kept = records.right[~leaks]
    error = round(100 * float((~kept).mean()), 4) if len(kept) else None
    return {"leaking": int(leaks.sum()), "top1_error_percent_without_leaks": error}


def _shares(text: str) -> dict[str, float]:
    """Return class shares by name. Raises UsageError for text that is not NAME=SHARE,NAME=SHARE."""
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, equals, share = item.rpartition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--class-share {item}: give the name of a class and its share, such as cat=0.7,dog=0.3")
    return shares


def _refuse_own(file: Path, flag: str, model: str, data: str, samples: Samples) -> None:
    """Raise UsageError for a file to write that is the model, the list or one of the pictures."""
    if not file.exists():
        return
    found = locate(model)
    inputs = [found.path] if isinstance(found, LocalFile) else []
    inputs += [expanded(data), *(samples.paths or ())]
    if any(path.exists() and file.samefile(path) for path in inputs):
        raise UsageError(f"{flag} {file} is the model or the data that are read; give another file")


def _print(result: "Evaluation", document: Mapping[str, Any]) -> None:
    low, high = result.interval_percent
    print(f"top-1 error  {result.top1_error_percent:.2f} % (95 % interval: {low:.2f} to {high:.2f} %)")
    if result.has_top5:
        print(f"top-5 error  {result.top5_error_percent:.2f} %")
    print(f"accuracy     {100 - result.top1_error_percent:.2f} % ({100 - high:.2f} to {100 - low:.2f} %)")
    print(f"loss         {result.loss:.4f}")
    if found := document.get("calibration"):
        before = f", {found['ece_percent_before']:.1f} % without it" if found["temperature"] != 1 else ""
        print(f"calibration  error of {found['ece_percent']:.1f} % at temperature {found['temperature']:.3f}{before}")
    if found := document.get("reject"):
        print(f"--reject     marks {found['rejected_known_percent']:.1f} % of these pictures, which have known classes")
    if document.get("leaking"):
        error = document["top1_error_percent_without_leaks"]
        without = "" if error is None else f"; without them, top-1 error {error:.2f} %"
        print(f"leaks        {document['leaking']:,} pictures are alike to training pictures{without}")
    if found := document.get("weighted"):
        low, high = found["interval_percent"]
        print(
            f"weighted     top-1 error {found['top1_error_percent']:.2f} % ({low:.2f} to {high:.2f} %) at --class-share"
        )
    if found := document.get("difference"):
        low, high = found["interval_percent"]
        print(
            f"difference   {found['percent']:+.2f} points ({low:+.2f} to {high:+.2f}), p = {found['p']:.3f}: "
            f"{found['verdict']}"
        )
    print(
        f"\nso many pictures are likely to show a difference between two models of "
        f"{result.smallest_difference_percent:.1f} points or more\n"
    )
    print_table(*result.table(worst_first=False))
    if result.unreadable:
        print(f"\n{len(result.unreadable)} more can't be read, first {on_one_line(next(iter(result.unreadable)))}")
