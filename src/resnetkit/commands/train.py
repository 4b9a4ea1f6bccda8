"""`resnetkit train`: from a recipe, a YAML file and flags to a run folder."""

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
    began = time.monotonic()  # before torch is imported, which takes seconds of the minutes that were asked for
    parser = Parser(
        "train",
        "DATA [options], or resnetkit train --resume RUN [DATA, if it moved]",
        "Train a network. DATA is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test with such "
        "folders in them) or a list (path,label). A recipe sets all fields; --config and then flags change it.",
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="what to train on")
    parser.add_argument(
        "--recipe", type=str, help="a name of resnetkit recipes; unset: cifar10 for CIFAR, folder for other data"
    )
    parser.add_argument(
        "--config", type=str, metavar="FILE", help="YAML file with any of the fields below, such as a run's recipe.yaml"
    )
    parser.add_argument("--out", type=str, metavar="DIR", help="run folder to make; unset: runs/<model>-<data>-<time>")
    parser.add_argument(
        "--resume",
        type=str,
        metavar="RUN",
        help="go on with this run as if it had never stopped; with --epochs, --iterations or --minutes to another "
        "length, unless a field of its recipe depends on the length, such as the schedule",
    )
    parser.add_argument(
        "--allow_other_arithmetic",
        action="store_true",
        help="with --resume: go on even if this machine computes the network in another way, such as without our "
        "kernels; the weights then differ in their bits",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_reading()
    parser.add_class_arguments(Recipe)
    parser.show_defaults(_defaults())
    (parser.groups or {})["Recipe"].title = f"fields of a recipe, with the values of {' and '.join(DEFAULT_ROWS)}"
    given = {name: value for name, value in parser.read(argv, defaults=False).items() if name != "data" or value}

    if resumed := given.get("resume"):
        own = {*FIELDS, "recipe", "config", "out"} - {*LENGTHS}
        if others := [dashed(f"--{name}") for name in given if name in own]:
            raise UsageError(f"--resume goes on with the run's own recipe; leave out {' '.join(others)}")
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
            raise UsageError("--allow-other-arithmetic goes with --resume; leave it out")
        recipe, asked = _recipe(given)
        from resnetkit.train.run import start

        result = start(recipe, given["data"], out=given.get("out"), asked=asked, began=began, reading=reading_of(given))

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


def _defaults() -> dict[str, str]:
    """The default of each field, for the help: one value where the default recipes agree, else that of each."""
    rows = {name: find_recipe(name).to_dict() for name in DEFAULT_ROWS}
    texts: dict[str, str] = {}
    for field in FIELDS:
        values = {name: as_text(row.get(field)) for name, row in rows.items()}
        agreed = len(set(values.values())) == 1
        said = next(iter(values.values())) if agreed else ", ".join(f"{name} {text}" for name, text in values.items())
        texts[field] = "" if said == as_text(None) else f"({said})" if not agreed else f"(default {said})"
    return texts


def _recipe(given: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """A recipe, changed by a file and then by flags; and for each field that somebody set, where it was set.

    A field counts as not set where a file has the default value or is the record of a run.
    """
    for_cifar, for_others = DEFAULT_ROWS
    recipe = find_recipe(given.get("recipe") or (for_cifar if given["data"] in ("cifar10", "cifar100") else for_others))
    asked: dict[str, str] = {}
    if "config" in given:
        reader = Parser("train", "", "")
        reader.add_class_arguments(Recipe)
        reader.add_argument("--run", type=dict, help=SUPPRESS)  # in a run folder's recipe.yaml, beside the fields
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
    """`recipe` with `changes`. A batch size that was asked for is kept, also where a run has little time."""
    stated: dict[str, Any] = {"least_batch_size": None} if "batch_size" in changes else {}
    return changed(recipe, stated | changes, source=source)
