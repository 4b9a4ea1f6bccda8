"""`resnetkit recipes`: the recipes in RECIPES as a table, or one of them in full as YAML."""

from collections.abc import Sequence
from dataclasses import fields
from shutil import get_terminal_size
from textwrap import fill

from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import as_text, print_json, print_table
from resnetkit.train.fitting import LONG_BATCH, SHORT_BATCH, SHORT_BELOW
from resnetkit.train.recipe import LENGTHS, PURPOSES, RECIPES, Recipe, as_yaml, find_recipe

COLUMNS = ("model", "batch_size", "optimizer", "lr", "schedule")


def run(argv: Sequence[str]) -> int:
    """Print the table, or one recipe."""
    parser = Parser(
        "recipes",
        "[NAME] [--json]",
        "List the recipes for training. With NAME, print one in full, as a file for train --config.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    rows = {given["name"]: find_recipe(given["name"])} if given["name"] else RECIPES
    if given["json"]:
        found = [{"name": name, "purpose": PURPOSES[name], "recipe": row.to_dict()} for name, row in rows.items()]
        print_json(found[0] if given["name"] else found)
    elif given["name"]:
        print(fill(PURPOSES[given["name"]], _width(), initial_indent="# ", subsequent_indent="# "))
        print(as_yaml(rows[given["name"]].to_dict()), end="")
    else:
        print_table(
            ("name", "length", *(field.removesuffix("_size") for field in COLUMNS)),
            [(name, _length(row), *(as_text(getattr(row, field)) for field in COLUMNS)) for name, row in rows.items()],
        )
        for name, row in rows.items():
            print(f"\n{name}")
            print(_indented(PURPOSES[name]))
            print(_indented(f"Other fields: {', '.join(_others(row))}."))
            if row.batch_by_length:
                short = f"{SHORT_BELOW:,} steps of {LONG_BATCH} whole pictures"
                print(_indented(f"A run of less work than {short} has batches of {SHORT_BATCH}."))
        print("\nTo print one in full: resnetkit recipes NAME\nTo train with it: resnetkit train DATA --recipe NAME")
    return 0


def _length(row: Recipe) -> str:
    """Return the length of a run with its unit; iterations are shown as steps, which is shorter."""
    (unit, value), *_ = [(unit, value) for unit, value in row.length.items() if value is not None]
    return f"{value:,g} {'steps' if unit == 'iterations' else unit}"


def _others(row: Recipe) -> list[str]:
    """Return the fields of a recipe that are not in the table and differ from the defaults, with their values."""
    own = [field.name for field in fields(Recipe) if field.name not in (*COLUMNS, *LENGTHS)]
    return [f"{name} {as_text(getattr(row, name))}" for name in own if getattr(row, name) != getattr(Recipe(), name)]


def _width() -> int:
    return min(get_terminal_size().columns, 100)


def _indented(text: str) -> str:
    return fill(text, _width(), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
