"""`resnetkit runs`: a table of training runs, their data, results, and where their recipes differ."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import as_text, on_one_line, print_json, print_table
from resnetkit.files import expanded
from resnetkit.train.history import Run, differences, find_runs, unusual

MOST_COLUMNS = 4
"""Up to so many runs, the differences are a table with a column for each run."""


def run(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = Parser(
        "runs",
        "[DIR...] [options]",
        "List training runs with their data, results and the fields in which their recipes differ. DIR is a run folder "
        "or a folder that contains some, by default runs. Of the runs on the same data, the best comes first.",
    )
    parser.add_argument("folders", nargs="*", metavar="DIR", help="run folders, or folders that contain them")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    runs = find_runs([expanded(folder) for folder in given["folders"] or ["runs"]])
    groups = [list(group) for _, group in groupby(runs, key=lambda one: one.of)]
    if given["json"]:
        print_json(
            [_details(one, fields) for group in groups for one, fields in zip(group, differences(group), strict=True)]
        )
        return 0
    for place, group in enumerate(groups):
        if place:
            print()
        _print_group(group)
    return 0


def _details(one: Run, differing: dict[str, Any]) -> dict[str, Any]:
    return vars(one) | {"path": str(one.path), "differences": differing}


def _print_group(group: Sequence[Run]) -> None:
    name, _ = group[0].of
    validated = next((one.best["images"] for one in group if "images" in one.best), None)
    pictures = f", {validated:,} validation pictures" if validated else ""
    print(on_one_line(f"data {name}{pictures}"))
    differing = differences(group)
    in_columns = len(group) <= MOST_COLUMNS
    head = ("run", "error", "loss", "epochs", "minutes", "status")
    rows = [
        (
            one.path,
            f"{one.best['error_percent']:.2f} %" if one.best else "-",
            f"{one.best['loss']:.4f}" if "loss" in one.best else "-",
            f"{one.epoch:g}",
            f"{one.seconds / 60:.1f}",
            one.status,
        )
        for one in group
    ]
    if in_columns or not any(differing):
        print_table(head, rows)
    else:
        own = [_in_words(fields) for fields in unusual(differing)]
        print_table((*head, "its own"), [(*row, text) for row, text in zip(rows, own, strict=True)])
    if in_columns and len(group) > 1 and differing[0]:
        print()
        print_table(
            ("differs", *(str(one.path) for one in group)),
            [(field, *(as_text(fields[field]) for fields in differing)) for field in differing[0]],
        )


def _in_words(fields: dict[str, Any]) -> str:
    return " ".join(f"{name}={as_text(value)}" for name, value in fields.items()) or "-"
