"""`resnetkit models`: the family as a table, or one network in detail."""

from collections.abc import Iterable, Sequence
from typing import Any

from resnetkit.commands.output import print_json, print_table
from resnetkit.commands.parser import Parser
from resnetkit.models.spec import SPECS, describe, parse_spec


def run(argv: Sequence[str]) -> int:
    """Print the table of SPECS, or what follows from one spec."""
    parser = Parser("models", "[NAME] [options]", "The family: depth, parameters, multiply-adds, features.")
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="one network, with changes behind commas: resnet20,shortcut=C,classes=100",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    given = parser.read(argv)
    if given["json"]:
        print_json(_details(given["name"]) if given["name"] else [_details(name) for name in SPECS])
    elif given["name"]:
        print_table(
            ("network", given["name"]),
            ((field, _text(value)) for field, value in _details(given["name"]).items() if field != "name"),
        )
    else:
        rows = [describe(name) for name in SPECS]
        shown = ("name", "layers", "depths", "shortcut", "parameters", "gmacs", "input_size")
        print_table(shown, [[_text(row[column]) for column in shown] for row in rows])
    return 0


def _details(name: str) -> dict[str, Any]:
    spec = parse_spec(name)
    return spec.to_dict() | describe(name) | {"depths": list(spec.depths), "channels": list(spec.channels)}


def _text(value: object) -> str:
    match value:
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}" if value > 9999 else str(value)
        case float():
            return f"{value:.3f}"
        case _:
            return " ".join(map(str, value)) or "-" if isinstance(value, Iterable) else str(value)
