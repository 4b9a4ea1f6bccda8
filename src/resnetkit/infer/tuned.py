"""What tuning keeps: its graphs in 8-bit integers, and the findings of earlier runs that still hold."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from resnetkit.infer.choice import Goal, Precision
from resnetkit.infer.graphs import Place, Tuned, find_tuned, graph_name
from resnetkit.infer.measurement import Trial
from resnetkit.infer.quantizing.accuracy import Verdict

Judge: TypeAlias = Callable[[Precision, Path | None, float], Verdict]
"""Takes a precision, its graph if it is int8, and the allowed loss; says how its predictions compare with float32's."""


def still_valid(trial: Trial, goals: Sequence[Goal], judge: Judge, images: int) -> dict[Goal, dict[str, Any]]:
    """Return what earlier runs found for `goals` and still holds: rows of tune.json with "accuracy", "graph", "table".

    "graph" is here a path or None. Each goal keeps the pictures and the allowed loss of the run that found it. If this
    run judges by `images` pictures, and these are at least as many, then it judges the same graph again.
    """
    if not goals or not (found := find_tuned(trial.source, warn=False)):
        return {}
    tuned, place = found
    rows: dict[Goal, dict[str, Any]] = {}
    for goal in goals:
        row = dict(tuned.goals.get(goal, {}))
        choice = tuned.choice(goal) if row else None
        if not choice:
            continue
        if not tuned.fits(trial.machine):
            trial.say(f"{goal}: what was found on another machine is dropped; tune for both goals to measure it here")
            continue
        own = replace(tuned, goals={goal: row}).graphs(goal)
        graph = next((place.folder / name for name in own if (place.folder / name).is_file()), None)
        accuracy = row.get("accuracy", tuned.accuracy)
        if choice.precision == "int8" and not graph:
            trial.say(f"{goal}: {choice} is dropped, as its graph is gone; tune for both goals to measure it again")
            continue
        if choice.precision != "float32" and images >= accuracy.get("float32", {}).get("images", 0):
            verdict = judge(choice.precision, graph, accuracy.get("max_top1_loss", 0.0))
            if not verdict.passes:
                trial.say(f"{goal}: {choice} is dropped: {verdict}; tune for both goals to measure it again")
                continue
        trial.say(f"{goal}: {choice} is kept, as it was found before")
        table = [line for line in tuned.table if line.get("goal") == goal]
        rows[goal] = row | {"accuracy": accuracy, "graph": graph, "table": table}
    return rows


def graph_in_place(graph: Path | None, place: Place) -> str | None:
    """Return the name in `place` of a graph that an earlier run kept; one that lies elsewhere is copied there."""
    if graph is None:
        return None
    if graph.parent == place.folder:
        return graph.name
    with TemporaryDirectory(prefix=".tuning-", dir=place.folder) as folder:
        for file in (graph, graph.with_suffix(".bin")):
            copy(file, folder)
        return move_graph(Path(folder, graph.name), place)


def move_graph(graph: Path, place: Place) -> str:
    """Move a graph in integers to `place`, and return its name there, which no other graph has or had.

    Until tune.json is written nothing refers to it, and the graph that tune.json refers to is still there.
    """
    first = place.folder / graph_name("openvino", "int8", "logits")
    names = (first.with_stem(f"{first.stem}{f'-{number}' if number > 1 else ''}") for number in count(1))
    target = next(name for name in names if not name.exists() and not name.with_suffix(".bin").exists())
    graph.with_suffix(".bin").replace(target.with_suffix(".bin"))
    graph.replace(target)
    return target.name


def delete_other_graphs(place: Place, tuned: Tuned) -> None:
    """Delete the graphs in integers that `tuned` does not refer to: those of earlier runs, or of other weights."""
    first = Path(graph_name("openvino", "int8", "logits"))
    referred = {Path(name).stem for goal in tuned.goals for name in tuned.graphs(goal)}
    for file in place.folder.glob(f"{first.stem}*"):
        if file.stem not in referred and file.suffix in (first.suffix, ".bin"):
            file.unlink(missing_ok=True)
