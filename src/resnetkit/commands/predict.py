"""`resnetkit predict`: the probabilities of classes for pictures, or logits or features."""

import csv
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

from resnetkit.calibration import FALSE_REJECT_RATE
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import as_is, as_json, free_file, on_one_line, print_list
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.infer.choice import BackendName, Goal, Precision
from resnetkit.progress import Advance, bar, ignore

if TYPE_CHECKING:
    from resnetkit.infer.predictor import Predictor

Results = Iterable[dict[str, Any]]
STANDARD_INPUT = "-"
"""The path of the picture on standard input; for a file with this name, give ./-."""


def run(argv: Sequence[str]) -> int:
    """Predict every picture; return 1 if one could not be predicted."""
    parser = Parser("predict", "MODEL PATH... [options]", "Print the most probable classes of pictures.")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a picture, a folder of pictures, a glob in quotes, or - for a picture from standard input",
    )
    parser.add_argument(
        "--top",
        type=int | None,
        help="number of classes to print, the most probable first; unset: 5, or, of a multi-label model, all that "
        "reach their thresholds, which may be none",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--csv", action="store_true", help="print CSV: path,label,index,probability,error")
    parser.add_argument(
        "--reject",
        action="store_true",
        help="mark pictures that seem to be of no known class, by the threshold that validation gave",
    )
    parser.add_argument(
        "--reject_rate",
        type=float,
        default=FALSE_REJECT_RATE,
        help="share of pictures of known classes that --reject may mark",
    )
    parser.add_argument(
        "--sets",
        type=float | None,
        metavar="COVERAGE",
        help="also give the set of classes that contains the right one in this share of pictures, such as 0.9",
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="print the numbers before the softmax, as JSON lines, or write them to --out",
    )
    parser.add_argument(
        "--features",
        type=Literal["c5", "pool"] | None,
        help="print the last feature map (c5) or its mean over all positions (pool), as JSON lines, or write it to "
        "--out",
    )
    parser.add_argument(
        "--out", type=str, metavar="FILE", help="an .npz file for the paths and the array of --logits or --features"
    )
    parser.add_argument(
        "--explain",
        type=str,
        metavar="DIR",
        help="draw the evidence for a class over each picture (Grad-CAM); write the drawings to this folder",
    )
    parser.add_argument(
        "--explain_class",
        type=str,
        metavar="NAME",
        help="class for --explain, by name or index; unset: the most probable class",
    )
    parser.add_argument(
        "--explain_stage", type=str, metavar="NAME", help="stage for --explain: c2, c3, ...; unset: the last"
    )
    parser.add_argument(
        "--goal", type=Goal | None, help="result of tune to use; unset: latency for one picture, else throughput"
    )
    parser.add_argument(
        "--backend", type=BackendName | None, help="library that computes; unset: tune's choice, or one installed"
    )
    parser.add_argument(
        "--precision", type=Precision | None, help="precision of the numbers; unset: tune's choice, or float32"
    )
    parser.add_argument("--threads", type=int | None, help="threads that compute; unset: tune's choice, or all cores")
    parser.add_argument(
        "--streams", type=int | None, help="batches computed at the same time; unset: tune's choice, or 1"
    )
    parser.add_argument(
        "--batch_size",
        type=int | None,
        help="pictures that go through the network together; unset: tune's choice, or 32",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="threads that decode pictures; 0: the main thread decodes while batches are computed",
    )
    parser.add_argument("--force", action="store_true", help="replace an --out file that exists")
    given = parser.read(argv)
    for name in ("out", "explain"):
        given[name] = given[name] and str(expanded(given[name]))
    _check(given)
    failed: list[str] = []
    with warnings.catch_warnings(), _standard_input(given):
        warnings.showwarning = cast("Any", _print_warning)
        files = [path for path in given["paths"] if Path(path).is_file()]
        one = len(given["paths"]) == len(files) == 1
        # On a terminal the printed results show the progress; one picture needs no progress bar.
        if one or (sys.stdout.isatty() and not given["out"]):
            _predict(given, failed, ignore)
        else:
            with bar("predicting", len(files) if len(files) == len(given["paths"]) else None) as advance:
                _predict(given, failed, advance)
    if failed:
        print(f"resnetkit predict: {len(failed)} not predicted, first {on_one_line(failed[0])}", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _standard_input(given: dict[str, Any]) -> Iterator[None]:
    """If - is among the paths, write standard input to a temporary file, and replace - by this file."""
    if STANDARD_INPUT not in given["paths"]:
        yield
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "standard input"
        file.write_bytes(sys.stdin.buffer.read())
        given["paths"] = [str(file) if path == STANDARD_INPUT else path for path in given["paths"]]
        given["renamed"] = {str(file): STANDARD_INPUT}
        yield


def _predict(given: dict[str, Any], failed: list[str], advance: Advance) -> None:
    from resnetkit.infer.predictor import Predictor

    several = len(given["paths"]) > 1 or not Path(given["paths"][0]).is_file()
    output = given["features"] or "logits"
    renamed: Mapping[str, str] = given.get("renamed", {})
    predictor = Predictor(
        given["model"],
        goal=given["goal"] or ("throughput" if several else "latency"),
        output=output,
        may_export=several,
        **{name: given[name] for name in ("backend", "precision", "threads", "streams", "batch_size")},
    )
    if given["features"] or given["logits"]:
        values = _values(predictor, given["paths"], output, given["workers"], failed, advance, renamed)
        _write_npz(values, output, Path(given["out"])) if given["out"] else _write_json_lines(values, output)
        return
    results = predictor.predict_paths(
        given["paths"],
        top=given["top"],
        reject_rate=given["reject_rate"] if given["reject"] else None,
        coverage=given["sets"],
        workers=given["workers"],
    )
    if given["explain"]:
        from resnetkit.infer.explain import find_class, find_stage

        label = find_class(given["explain_class"], predictor.classes)
        stage = -1 if given["explain_stage"] is None else given["explain_stage"]
        stage = find_stage(stage, len(predictor.header.spec.depths))
        results = _explained(results, predictor, Path(given["explain"]), label, stage)
    results = (result | {"path": renamed.get(result["path"], result["path"])} for result in results)
    results = _noting_failures(results, failed, advance)
    if given["json"]:
        print_list(results)
    elif given["csv"]:
        _write_csv(results, more=[name for name, flag in (("rejected", "reject"), ("set", "sets")) if given[flag]])
    else:
        _write_lines(results)


def _check(given: dict[str, Any]) -> None:
    """Raise UsageError for flags that contradict each other and for values out of range."""
    if given["json"] and given["csv"]:
        raise UsageError("--json and --csv both set the format; give one of them")
    numbers = [f"--{name}" for name in ("logits", "features") if given[name]]
    if len(numbers) > 1:
        raise UsageError("--logits and --features both set the output; give one of them")
    for name in ("json", "csv", "explain", "reject", "sets"):
        if numbers and given[name]:
            raise UsageError(f"{numbers[0]} and --{name} can't be combined; leave one out")
    if given["out"]:
        if not numbers:
            raise UsageError("--out needs --logits or --features; to write printed results to a file, use > FILE")
        if Path(given["out"]).suffix != ".npz":
            raise UsageError(f"--out is {given['out']}; give a name that ends in .npz")
        free_file(given["out"], "--out", force=given["force"])
    for name in ("explain_class", "explain_stage"):
        if given[name] is not None and not given["explain"]:
            raise UsageError(f"--{name.replace('_', '-')} needs --explain DIR; give both")
    for folder in map(Path, given["paths"] if given["explain"] else ()):
        if folder.is_dir() and Path(given["explain"]).resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--explain {given['explain']} is inside {folder}, whose pictures are read; give a folder outside it"
            )
    for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
        if given[name] is not None and given[name] < least:
            raise UsageError(f"--{name.replace('_', '-')} is {given[name]}; it must be at least {least}")


def _print_warning(message: Warning | str, *_: object) -> None:
    """Print a warning in one line, without the place in the code."""
    print(f"resnetkit predict: warning: {on_one_line(message)}", file=sys.stderr)


def _noting_failures(results: Results, failed: list[str], advance: Advance) -> Iterator[dict[str, Any]]:
    for result in results:
        advance(1)
        if "error" in result:
            failed.append(result["path"])
        yield result


def _explained(
    results: Results, predictor: "Predictor", folder: Path, label: int | None, stage: int
) -> Iterator[dict[str, Any]]:
    """Draw the evidence for the class of each result, and yield the result with the path of its drawing.

    `label` is the index of the class; None is the most probable class.
    """
    from resnetkit.infer.explain import drawing_path

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--explain {folder} can't be created: {error.strerror}; give another folder") from error
    for result in results:
        if "error" not in result:
            best = result["predictions"][0]["index"] if result["predictions"] else None
            drawing = drawing_path(folder, result["path"])
            predictor.explain(result["path"], label=best if label is None else label, stage=stage).save(drawing)
            result["drawing"] = str(drawing)
        yield result


def _values(
    predictor: "Predictor",
    paths: Sequence[str],
    output: Any,
    workers: int,
    failed: list[str],
    advance: Advance,
    renamed: Mapping[str, str],
) -> Iterator[tuple[str, Any]]:
    """Yield the name and the numbers of each readable picture; print the reasons for others on standard error."""
    for path, value in predictor.compute_paths(paths, output=output, workers=workers):
        advance(1)
        name = renamed.get(str(path), str(path))
        if isinstance(value, str):
            failed.append(name)
            print(f"resnetkit predict: {on_one_line(name)}: {on_one_line(value)}", file=sys.stderr)
        else:
            yield name, value


def _write_json_lines(values: Iterable[tuple[str, Any]], output: str) -> None:
    for path, value in values:
        print(as_json({"path": path, output: value.tolist()}), file=as_is(sys.stdout))


def _write_npz(values: Iterable[tuple[str, Any]], output: str, file: Path) -> None:
    """Write `paths` (n) and the array (n, ...), in the order of the pictures; unreadable ones are left out."""
    import numpy as np

    from resnetkit.files import whole_file

    rows = list(values)
    arrays: Any = {output: np.array([value for _, value in rows], np.float32)}
    with whole_file(file) as stream:
        np.savez(stream, paths=np.array([path for path, _ in rows], str), **arrays)


def _write_lines(results: Results) -> None:
    for result in results:
        print(on_one_line(result["path"]))
        if result.get("rejected"):
            print("  none of the known classes; the nearest:")
        if result.get("predictions") == []:
            print("  no label")
        for best in result.get("predictions", ()):
            print(f"  {100 * best['probability']:6.2f} %  {on_one_line(best['label'])}")
        if "set" in result:
            print(f"  one of: {', '.join(map(on_one_line, result['set']))}")
        if "drawing" in result:
            print(f"  drawn: {on_one_line(result['drawing'])}")
        if "error" in result:
            print(f"  error: {on_one_line(result['error'])}")


def _write_csv(results: Results, *, more: Sequence[str]) -> None:
    """Print CSV; `more` are the names of further columns, whose value is the same in all rows of a picture."""
    columns = ("path", "label", "index", "probability", "error", *more)
    writer = csv.DictWriter(as_is(sys.stdout), columns, lineterminator="\n")
    writer.writeheader()
    for result in results:
        rows = result.get("predictions") or [{"error": result.get("error", "")}]
        of_picture = {name: _cell(result[name]) for name in ("path", *more) if name in result}
        writer.writerows(of_picture | row for row in rows)


def _cell(value: Any) -> str:
    """Return a value for CSV: true or false, and the classes of a set as a JSON list."""
    return value if isinstance(value, str) else as_json(value)
