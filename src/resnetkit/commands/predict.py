"""`resnetkit predict`: files, folders and globs to labelled probabilities."""

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from resnetkit.commands.output import as_json
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.errors import UsageError


def run(argv: Sequence[str]) -> int:
    """Predict every picture; 1 if any could not be."""
    parser = Parser("predict", "MODEL PATH... [options]", "Pictures to labelled probabilities.")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture, a folder of them, or a glob in quotes")
    parser.add_argument("--top", type=int, default=5, help="how many of the most probable classes to give")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures that go through the network together")
    parser.add_argument(
        "--workers", type=int, default=0, help="threads that decode pictures; 0 decodes between batches"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--csv", action="store_true", help="print CSV: path,label,index,probability,error")
    given = parser.read(argv)
    if given["json"] and given["csv"]:
        raise UsageError("--json and --csv both say how to print; give one")

    from resnetkit.infer.predictor import Predictor

    results = Predictor(given["model"]).predict_paths(
        given["paths"], top=given["top"], batch_size=given["batch_size"], workers=given["workers"]
    )
    failed: list[str] = []
    write = _write_json if given["json"] else _write_csv if given["csv"] else _write_lines
    write(_noting_failures(results, failed))
    if failed:
        print(f"resnetkit predict: {len(failed)} not predicted, first {failed[0]}", file=sys.stderr)
    return 1 if failed else 0


def _noting_failures(results: Iterable[dict[str, Any]], failed: list[str]) -> Iterator[dict[str, Any]]:
    for result in results:
        if "error" in result:
            failed.append(result["path"])
        yield result


def _write_lines(results: Iterable[dict[str, Any]]) -> None:
    for result in results:
        print(result["path"])
        for best in result.get("predictions", ()):
            print(f"  {100 * best['probability']:6.2f} %  {best['label']}")
        if "error" in result:
            print(f"  error: {result['error']}")


def _write_csv(results: Iterable[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, ("path", "label", "index", "probability", "error"), lineterminator="\n")
    writer.writeheader()
    for result in results:
        rows = result.get("predictions") or [{"error": result["error"]}]
        writer.writerows({"path": result["path"]} | row for row in rows)


def _write_json(results: Iterable[dict[str, Any]]) -> None:
    """Write the list as it comes: a folder may hold more pictures than memory."""
    separator = "["
    for result in results:
        print(separator, as_json(result), sep="\n", end="")
        separator = ","
    print("\n]" if separator == "," else "[]")
