"""The flags of a recipe: --recipe, --config, and one for each field."""

from argparse import SUPPRESS
from dataclasses import fields, replace
from typing import Any

from resnetkit.commands.parser import Parser, as_key
from resnetkit.commands.printing import as_text
from resnetkit.errors import UsageError
from resnetkit.files import expanded
from resnetkit.train.recipe import DEFAULT_ROWS, FLAG, Recipe, changed, find_recipe

FIELDS = [field.name for field in fields(Recipe)]


def add_recipe(parser: Parser) -> None:
    """Add the flags to the parser of a verb."""
    parser.add_argument(
        "--recipe", type=str, help="a name of resnetkit recipes; unset: cifar10 for CIFAR, folder for other data"
    )
    parser.add_argument(
        "--config", type=str, metavar="FILE", help="YAML file with any of the fields below, such as a run's recipe.yaml"
    )
    parser.add_class_arguments(Recipe)
    parser.show_defaults(_defaults())
    rows = " and ".join(DEFAULT_ROWS)
    (parser.groups or {})["Recipe"].title = f"fields of a recipe, with their values in the recipes {rows}"


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


def read_recipe_flags(given: dict[str, Any]) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe, changed by the config file and then by flags; and the place of each field that a person gave.

    A field in a file does not count as given if it has its default value, or if the file is a run's recipe.yaml. With
    `init`, but without a network in flags or a file, the network is that of `init`.
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
    if flags.get("init") and "model" not in flags and "config" not in given:
        from resnetkit.train.network import network_of

        recipe = replace(recipe, model=network_of(flags["init"]) or recipe.model)
    return _changed(recipe, flags, "flags"), asked | dict.fromkeys(flags, FLAG)


def _changed(recipe: Recipe, changes: dict[str, Any], source: str) -> Recipe:
    """Return `recipe` with `changes`. A batch size among them is kept even if a run has little time."""
    fixed: dict[str, Any] = {"least_batch_size": None} if "batch_size" in changes else {}
    return changed(recipe, fixed | changes, source=source)
