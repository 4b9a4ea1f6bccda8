"""The results of tuning: tune.json, and the int8 graphs that it refers to. Imports no torch."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import count
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any

from resnetkit.display import line, shell
from resnetkit.errors import DataError, UsageError
from resnetkit.files import write_whole
from resnetkit.infer.choice import Choice, Goal
from resnetkit.infer.unloaded import TuningPlace, UnloadedModel
from resnetkit.machine import Machine
from resnetkit.version import __version__

FORMAT_VERSION = 1
"""Version of the format of tune.json."""
INT8_GRAPH = "int8-logits.xml"
"""Name of the first int8 graph in a folder. The next ones are int8-logits-2.xml, int8-logits-3.xml, ..."""


@dataclass(frozen=True)
class Tuned:
    """The results of tuning: the fastest choice for each goal, and the measurements. tune.json has these fields."""

    fingerprint: str
    """UnloadedModel.fingerprint of the model that was tuned."""
    machine: Mapping[str, Any]
    """The fields of Machine for the machine that was measured."""
    goals: Mapping[Goal, Mapping[str, Any]]
    """For each goal that was tuned, {"choice": Choice.to_dict(), "images_per_second", "milliseconds", "graph", ...}.

    "graph" is the file name of the int8 graph whose accuracy was measured in that run, or None. A goal that was kept
    from an earlier run also has the "accuracy" of that run.
    """
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    """The accuracy check of the last run: the allowed loss, the pictures, and the accuracy of each precision."""
    table: Sequence[Mapping[str, Any]] = ()
    """Every choice that was measured for these goals."""
    version: str = __version__
    """Version of this package that measured."""
    format_version: int = FORMAT_VERSION

    def __repr__(self) -> str:
        rows = ((goal, self.choice(goal), row.get("images_per_second", 0)) for goal, row in self.goals.items())
        return line(type(self), "; ".join(f"{goal}: {choice}, {rate:.0f} images/s" for goal, choice, rate in rows))

    def choice(self, goal: Goal) -> Choice | None:
        """Return the fastest choice for `goal`, or for the other goal if `goal` was not tuned.

        None if this version of the package does not have the choice's backend or precision.
        """
        row = self.goals.get(goal) or next(iter(self.goals.values()), None)
        try:
            return Choice.from_dict(row["choice"]) if row else None
        except (UsageError, TypeError, KeyError):  # from a later version, which may have more backends
            return None

    def graphs(self, goal: Goal) -> list[str]:
        """Return the file names of the int8 graphs that were kept; the one for `goal` comes first."""
        rows = sorted(self.goals.items(), key=lambda row: row[0] != goal)
        # Version 0.1.0 kept one graph for all goals, without its name in tune.json.
        names = [row.get("graph", INT8_GRAPH) for _, row in rows]
        return [name for name in names if isinstance(name, str) and Path(name).name == name]

    def fits(self, machine: Machine) -> bool:
        """Whether it was measured on a machine with the same processor, instructions and usable cores."""
        now = asdict(machine) | {"instructions": list(machine.instructions)}
        names = ("processor", "instructions", "allowed_cores", "quota_cores")
        return all(self.machine.get(name) == now[name] for name in names)

    def write(self, model: UnloadedModel) -> Path:
        """Write tune.json, whole or not at all, and return its path. Raises DataError if it can't be written."""
        file = model.writable_place().file
        try:
            write_whole(file, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{file} could not be written: {error.strerror}") from error
        return file


def find_tuned(model: UnloadedModel, *, warn: bool = True) -> tuple[Tuned, TuningPlace] | None:
    """Return the results of tuning for this model and their place; None if it was not tuned.

    With `warn`, warns about results for other weights.
    """
    for place in model.places:
        found = _read(place.file)
        if found and found.fingerprint == model.fingerprint:
            return found, place
        if found and warn:
            warnings.warn(
                f"{place.file} is not used: it was measured with other weights than {model.name} has now; measure "
                f"again: resnetkit tune {shell(model.name)}",
                stacklevel=2,
            )
    return None


def find_int8_graph(model: UnloadedModel, goal: Goal) -> Path:
    """Return the path of the int8 graph that tuning for `goal` kept, or else of the one for the other goal.

    It computes logits. Raises UsageError if there is no such graph.
    """
    tuned = find_tuned(model)
    for graph in [tuned[1].folder / name for name in tuned[0].graphs(goal)] if tuned else []:
        if graph.is_file():
            return graph
    raise UsageError(
        f"{model.name} has no int8 graph; make one that is as accurate as the model: "
        f"resnetkit tune {shell(model.name)} DATA"
    )


def _read(file: Path) -> Tuned | None:
    """Read tune.json. Returns None if it does not exist, and None with a warning if it can't be read."""
    try:
        values = _renamed(json.loads(file.read_text(encoding="utf-8")))
        if values["format_version"] > FORMAT_VERSION:
            raise ValueError(f"it has format {values['format_version']}, which resnetkit {__version__} can't read")
        found = Tuned(**{part.name: values[part.name] for part in fields(Tuned) if part.name in values})
        if not all(isinstance(part, dict) for part in (found.machine, found.goals, *found.goals.values())):
            raise TypeError("its fields have other types")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(f"{file} is not used ({error}); tune again", stacklevel=2)
        return None
    return found


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of tune.json by their present names: older files have "guard" for "accuracy"."""
    goals = {goal: _with_accuracy(row) for goal, row in values.get("goals", {}).items()}
    return _with_accuracy(values) | {"goals": goals}


def _with_accuracy(values: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy" if key == "guard" else key: value for key, value in values.items()}


def copy_graph(graph: Path | None, place: TuningPlace) -> str | None:
    """Copy an int8 graph of an earlier run to `place` unless it is there, and return its name; None stays None."""
    if graph is None:
        return None
    if graph.parent == place.folder:
        return graph.name
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        for file in (graph, graph.with_suffix(".bin")):
            copy(file, folder)
        return move_graph(Path(folder, graph.name), place)


def move_graph(graph: Path, place: TuningPlace, *, name: str = INT8_GRAPH) -> str:
    """Move an int8 graph to `place` under `name`, or one like it that no other graph there has, and return the name.

    The graph that tune.json refers to is not changed, so tune.json stays valid until it is written anew.
    """
    first = place.folder / name
    names = (first.with_stem(f"{first.stem}{f'-{number}' if number > 1 else ''}") for number in count(1))
    target = next(path for path in names if not path.exists() and not path.with_suffix(".bin").exists())
    graph.with_suffix(".bin").replace(target.with_suffix(".bin"))
    graph.replace(target)
    return target.name


def delete_other_graphs(place: TuningPlace, tuned: Tuned, *, name: str = INT8_GRAPH) -> None:
    """Delete the int8 graphs in `place` that `tuned` does not refer to: they are of earlier runs or other weights."""
    first = Path(name)
    referred = {Path(graph).stem for goal in tuned.goals for graph in tuned.graphs(goal)}
    for file in place.folder.glob(f"{first.stem}*"):
        if file.stem not in referred and file.suffix in (first.suffix, ".bin"):
            file.unlink(missing_ok=True)
