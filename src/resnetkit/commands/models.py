"""`resnetkit models`: the family as a table, or one network in detail, with its published weights."""

from collections.abc import Iterable, Sequence
from typing import Any

from resnetkit.commands.output import print_json, print_table
from resnetkit.commands.parser import Parser
from resnetkit.models.spec import SPECS, describe, parse_spec


def run(argv: Sequence[str]) -> int:
    """Print the table of SPECS, or what follows from one spec."""
    parser = Parser(
        "models",
        "[NAME] [options]",
        "The family: depth, parameters, multiply-adds, features; of one network also the published weights.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="one network, with changes behind commas: resnet20,shortcut=C,classes=100",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    given = parser.read(argv)
    if given["json"]:
        name = given["name"]
        print_json(_details(name) | {"weights": _weights(name)} if name else [_details(row) for row in SPECS])
    elif given["name"]:
        print_table(
            ("network", given["name"]),
            ((field, _text(value)) for field, value in _details(given["name"]).items() if field != "name"),
        )
        _print_weights(given["name"])
    else:
        rows = [describe(name) for name in SPECS]
        shown = ("name", "layers", "depths", "shortcut", "parameters", "gmacs", "input_size")
        print_table(shown, [[_text(row[column]) for column in shown] for row in rows])
    return 0


def _details(name: str) -> dict[str, Any]:
    spec = parse_spec(name)
    return spec.to_dict() | describe(name) | {"depths": list(spec.depths), "channels": list(spec.channels)}


def _weights(name: str) -> list[dict[str, Any]]:
    """What is known of the published weights of a row; a row with changes has none."""
    if name not in SPECS:
        return []
    from resnetkit.models.weights import published

    return [
        {"name": row.name, "model": f"{name}:{row.name}"}
        | {"top1_accuracy_percent": round(100 - row.metrics["top1_error_percent"], 3)}
        | {"top5_accuracy_percent": round(100 - row.metrics["top5_error_percent"], 3)}
        | {"data": row.data, "source": row.source, "licence": row.licence, "recipe": row.recipe}
        | {"megabytes": row.megabytes, "url": row.url, "sha256": row.sha256}
        | {"preprocess": row.preprocess.to_dict(), "classes": len(row.classes)}
        for row in published(name).values()
    ]


def _print_weights(name: str) -> None:
    shown = {
        "top-1 / top-5 accuracy": "{top1_accuracy_percent:.3f} / {top5_accuracy_percent:.3f} %, {data}",
        "source": "{source}, {megabytes:.0f} MB",
        "recipe": "{recipe}",
        "licence": "{licence}",
        "preprocessing": "{resize} px, crop {size}, {interpolation}, mean {mean}, std {std}",
        "file": "{url}",
    }
    for row in _weights(name):
        prepared = {field: _text(value) for field, value in row["preprocess"].items()}
        lines = [(field, form.format(**row | prepared)) for field, form in shown.items()]
        print("\n" + row["model"])
        width = max(map(len, shown))
        for field, text in lines:
            print(f"  {field.ljust(width)}  {text}")
    from resnetkit.models.timm import ARCHITECTURES

    spec = parse_spec(name)
    if theirs := [architecture for architecture, row in ARCHITECTURES.items() if parse_spec(row) == spec]:
        print(f"\ntimm's are on the Hugging Face Hub: hf:timm/{theirs[0]}.TAG (needs resnetkit[hub])")


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
