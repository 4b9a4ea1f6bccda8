"""`resnetkit models`: all networks as a table, or one in detail, and the weights in this package or published."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import print_json, print_table
from resnetkit.models.shipped import read_about, shipped
from resnetkit.models.spec import SPECS, describe, parse_spec


def run(argv: Sequence[str]) -> int:
    """Print the table of SPECS, or the details of one spec."""
    parser = Parser(
        "models",
        "[NAME] [options]",
        "List the networks with their depth, parameters and multiply-adds (GMACs), and the weights in this package. "
        "With NAME, show all fields of one network and its published weights.",
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="one network, with changes after commas: resnet20,shortcut=C,classes=100",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    if given["json"]:
        name = given["name"]
        every = [_details(row) | {"in_package": _shipped(row)} for row in ([name] if name else SPECS)]
        print_json(every[0] | {"weights": _weights(name)} if name else every)
    elif given["name"]:
        print_table(
            ("network", given["name"]),
            ((field, _text(value)) for field, value in _details(given["name"]).items() if field != "name"),
        )
        _print_shipped(given["name"])
        _print_weights(given["name"])
    else:
        rows = [describe(name) for name in SPECS]
        shown = ("name", "layers", "depths", "shortcut", "parameters", "gmacs", "input_size")
        print_table(shown, [[_text(row[column]) for column in shown] for row in rows])
        if own := [row for name in SPECS for row in _shipped(name)]:
            print()
            print_table(("in this package", "top-1 error", "pictures", "MB"), [_text_of_shipped(row) for row in own])
    return 0


def _details(name: str) -> dict[str, Any]:
    spec = parse_spec(name)
    return spec.to_dict() | describe(name) | {"depths": list(spec.depths), "channels": list(spec.channels)}


def _shipped(name: str) -> list[dict[str, Any]]:
    """Return the headers of this package's models for a row of SPECS; a name with changes has no models."""
    files = shipped(name) if name in SPECS else {}
    return [
        {"model": f"{name}:{weights}", "path": str(path), "megabytes": path.stat().st_size / 1e6}
        | {key: value for key, value in read_about(path).items() if key not in ("spec", "format_version")}
        for weights, path in files.items()
    ]


def _text_of_shipped(row: dict[str, Any]) -> tuple[str, ...]:
    measured = row["metrics"]
    error = f"{measured['top1_error_percent']:.2f} %"
    return row["model"], error, f"{measured['images']:,}", f"{row['megabytes']:.1f}"


def _print_shipped(name: str) -> None:
    for row in _shipped(name):
        model, error, pictures, megabytes = _text_of_shipped(row)
        data, recipe = row["data"], row["recipe"]
        print("\n" + model)
        _print_lines(
            {
                "top-1 error": f"{error} of {pictures} test pictures, loss {row['metrics']['loss']:.4f}",
                "source": f"this package, {megabytes} MB, written by version {row['version']}",
                "data": f"{data['name']}, {data['split']['train_split']} training pictures, {data['fingerprint']}",
                "recipe": ", ".join(f"{field} {recipe[field]}" for field in ("epochs", "batch_size", "lr", "seed")),
            }
        )


def _print_lines(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines))
    for field, text in lines.items():
        print(f"  {field.ljust(width)}  {text}")


def _weights(name: str) -> list[dict[str, Any]]:
    """Return the published weights of a row of SPECS, as JSON values; a name with changes has no weights."""
    if name not in SPECS:
        return []
    from resnetkit.models.published import published

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
        print("\n" + row["model"])
        _print_lines({field: form.format(**row | prepared) for field, form in shown.items()})
    from resnetkit.models.timm import ARCHITECTURES

    spec = parse_spec(name)
    if theirs := [architecture for architecture, row in ARCHITECTURES.items() if parse_spec(row) == spec]:
        print(f"\ntimm's weights are on the Hugging Face Hub: hf:timm/{theirs[0]}.TAG (needs resnetkit[hub])")


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
