"""`resnetkit train`: a recipe's row, a YAML file and flags to a run folder."""

import time
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from resnetkit.commands.output import print_json
from resnetkit.commands.parser import DATA, Parser, as_key, dashed
from resnetkit.errors import UsageError
from resnetkit.train.recipe import RECIPES, Recipe, changed, find_recipe

FIELDS = [field.name for field in fields(Recipe)]


def run(argv: Sequence[str]) -> int:
    """Train, or go on with a run."""
    began = time.monotonic()  # before torch is imported, which takes seconds of the minutes that were asked for
    parser = Parser(
        "train",
        "DATA [options], or resnetkit train --resume RUN [DATA, if it moved]",
        "Train a network. DATA is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test with such "
        "folders in them) or a CSV file (path,label). A recipe's row holds, then --config, then flags.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="what to train on")
    rows = ", ".join(RECIPES)
    parser.add_argument("--recipe", type=str, help=f"row: {rows}; unset: cifar10 for CIFAR, folder for the rest")
    parser.add_argument(
        "--config", type=str, metavar="FILE", help="YAML with any of the fields below, as in a run folder"
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="run folder; unset: runs/<model>-<data>-<time>")
    parser.add_argument(
        "--resume", type=str, metavar="RUN", help="go on with this run folder, as if it had never stopped"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_class_arguments(Recipe)
    (parser.groups or {})["Recipe"].title = "fields of a recipe, with what holds where its row says nothing"
    given = {name: value for name, value in parser.read(argv, defaults=False).items() if name != "data" or value}

    if resumed := given.get("resume"):
        if others := [dashed(f"--{name}") for name in given if name in (*FIELDS, "recipe", "config", "out")]:
            raise UsageError(f"--resume goes on with the run's own recipe; leave out {' '.join(others)}")
        from resnetkit.train.run import resume

        result = resume(resumed, given.get("data"))
    else:
        if "data" not in given:
            raise UsageError(f"DATA missing: {DATA}")
        recipe = _recipe(given)
        from resnetkit.train.run import train

        result = train(recipe, given["data"], out=given.get("out"), began=began)

    if given.get("json"):
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()})
        return 0
    if "error_percent" in result.best:
        print(f"validation error  {result.best['error_percent']:.2f} %, after step {result.best['step']:,}")
    print(f"training          {result.images_per_second:,.0f} images/s, {result.seconds:,.0f} s in all")
    print(f"model             {result.model}")
    print(f"curves            {result.run / 'curves.png'}")
    print(f"report            {result.run / 'report.html'}")
    return 0


def _recipe(given: dict[str, Any]) -> Recipe:
    """A row, changed by a file, changed by flags."""
    recipe = find_recipe(given.get("recipe") or ("cifar10" if given["data"] in ("cifar10", "cifar100") else "folder"))
    if "config" in given:
        reader = Parser("train", "", "")
        reader.add_class_arguments(Recipe)
        reader.add_argument("--run", type=dict, help=SUPPRESS)  # in a run folder's recipe.yaml, beside the fields
        values = reader.read_file(Path(given["config"]))
        try:
            recipe = _changed(recipe, {name: values[name] for name in values if name != "run"}, given["config"])
        except UsageError as error:
            raise UsageError(f"{given['config']}: {as_key(str(error))}") from error
    return _changed(recipe, {name: given[name] for name in FIELDS if name in given}, "flags")


def _changed(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """`recipe` with what was said; a batch that was said stays, whatever the clock says."""
    stated: dict[str, Any] = {"least_batch_size": None} if "batch_size" in changes else {}
    return changed(recipe, stated | changes, source=source)
