"""`resnetkit train`: start a run with a recipe, changed by a YAML file and flags, or resume a run."""

import time
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnetkit.commands.parser import DATA, Parser, as_key, dashed
from resnetkit.commands.printing import as_text, print_json
from resnetkit.data.reading import reading_of
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.train.recipe import DEFAULT_ROWS, FLAG, LENGTHS, Recipe, changed, find_recipe

FIELDS = [field.name for field in fields(Recipe)]


def run(argv: Sequence[str]) -> int:
    """Train, or resume a run."""
    began = time.monotonic()  # before torch is imported: its import takes seconds, which count as part of --minutes
    parser = Parser(
        "train",
        "DATA [options], or resnetkit train --resume RUN [DATA, if it moved]",
        "Train a network. DATA is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test folders that "
        "contain class folders) or a list (path,label). A recipe sets all fields; --config changes it, and flags "
        "change it after that.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="data to train on")
    parser.add_argument(
        "--recipe", type=str, help="a name of resnetkit recipes; unset: cifar10 for CIFAR, folder for other data"
    )
    parser.add_argument(
        "--config", type=str, metavar="FILE", help="YAML file with any of the fields below, such as a run's recipe.yaml"
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="new run folder; unset: runs/<model>-<data>-<time>")
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="go on with this run as if it had never stopped. --epochs, --iterations or --minutes gives it another "
        "length, unless a field of its recipe depends on the length, such as the schedule",
    )
    parser.add_argument(
        "--allow_other_arithmetic",
        action="store_true",
        help="with --resume: go on even if this machine computes the network in another way, such as without our "
        "kernels; the weights then differ slightly",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_reading()
    parser.add_class_arguments(Recipe)
    parser.show_defaults(_defaults())
    rows = " and ".join(DEFAULT_ROWS)
    (parser.groups or {})["Recipe"].title = f"fields of a recipe, with their values in the recipes {rows}"
    given = {name: value for name, value in parser.read(argv, defaults=False).items() if name != "data" or value}

    if resumed := given.get("resume"):
        own = {*FIELDS, "recipe", "config", "out"} - {*LENGTHS}
        if others := [dashed(f"--{name}") for name in given if name in own]:
            raise UsageError(f"--resume uses the run's own recipe; leave out {' '.join(others)}")
        from resnetkit.train.run import resume

        reading = reading_of(given)
        lengths = {name: given[name] for name in LENGTHS if name in given}
        result = resume(
            resumed,
            given.get("data"),
            allow_other_arithmetic=bool(given.get("allow_other_arithmetic")),
            reading=reading if reading.given() else None,
            **lengths,
        )
    else:
        if "data" not in given:
            raise UsageError(f"DATA missing: {DATA}")
        if given.get("allow_other_arithmetic"):
            raise UsageError("--allow-other-arithmetic needs --resume; leave it out")
        recipe, asked = _recipe(given)
        from resnetkit.train.run import start

        result = start(recipe, given["data"], out=given.get("out"), asked=asked, began=began, reading=reading_of(given))

    if given.get("json"):
        values = {name: value for name, value in vars(result).items() if name != "score"}
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})
        return 0
    if "error_percent" in result.best:
        print(f"validation error  {result.best['error_percent']:.2f} %, after step {result.best['step']:,}")
    print(f"training          {result.images_per_second:,.0f} images/s, {result.seconds:,.0f} s in total")
    print(f"model             {result.model}")
    print(f"curves            {result.run / 'curves.png'}")
    print(f"report            {result.run / 'report.html'}")
    return 0


def _defaults() -> dict[str, str]:
    """Return the default of each field, for the help: one value if the default recipes agree, else one for each."""
    rows = {name: find_recipe(name).to_dict() for name in DEFAULT_ROWS}
    texts: dict[str, str] = {}
    for field in FIELDS:
        values = {name: as_text(row.get(field)) for name, row in rows.items()}
        agreed = len(set(values.values())) == 1
        shown = next(iter(values.values())) if agreed else ", ".join(f"{name} {text}" for name, text in values.items())
        texts[field] = "" if shown == as_text(None) else f"({shown})" if not agreed else f"(default {shown})"
    return texts


def _recipe(given: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe, changed by the config file and then by flags; and the place of each field that a person gave.

    A field in a file does not count as given if it has its default value, or if the file is a run's recipe.yaml.
    """
    for_cifar, for_others = DEFAULT_ROWS
    recipe = find_recipe(given.get("recipe") or (for_cifar if given["data"] in ("cifar10", "cifar100") else for_others))
    asked: dict[str, str] = {}
    if "config" in given:
        reader = Parser("train", "", "")
        reader.add_class_arguments(Recipe)
        reader.add_argument("--run", type=dict, help=SUPPRESS)  # a run folder's recipe.yaml has this entry, too
        path = expanded(given["config"])
        values = reader.read_file(path)
        recorded = values.pop("run", None) is not None
        try:
            recipe = _changed(recipe, values, str(path))
        except UsageError as error:
            raise UsageError(f"{path}: {as_key(str(error))}") from error
        asked = {} if recorded else {name: str(path) for name in values if values[name] != getattr(Recipe(), name)}
    flags = {name: given[name] for name in FIELDS if name in given}
    return _changed(recipe, flags, "flags"), asked | dict.fromkeys(flags, FLAG)


def _changed(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """Return `recipe` with `changes`. A batch size among them is kept even if a run has little time."""
    fixed: dict[str, Any] = {"least_batch_size": None} if "batch_size" in changes else {}
    return changed(recipe, fixed | changes, source=source)
