"""The results of earlier tuning runs that still hold, for the goal that this run does not measure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from resnetkit.infer.choice import Goal, Precision
from resnetkit.infer.quantizing.accuracy import Verdict
from resnetkit.infer.tuning.measurement import Trial
from resnetkit.infer.tuning.record import find_tuned

Judge: TypeAlias = Callable[[Precision, Path | None, float], Verdict]
"""Takes a precision, the graph if the precision is int8, and the allowed loss of top-1 accuracy in percentage points.
Returns how the predictions compare with those in float32."""


def still_valid(trial: Trial, goals: Sequence[Goal], judge: Judge, images: int) -> dict[Goal, dict[str, Any]]:
    """Return the results of earlier runs for `goals` that still hold: rows of tune.json.

    Each row also has "accuracy" and "table" of the run that measured it, and its "graph" is a path or None. Results of
    another machine do not hold, nor results whose graph is missing. A precision other than float32 is judged again, by
    the allowed loss of its own run, if this run has at least as many pictures (`images`) as that run had.
    """
    if not goals or not (found := find_tuned(trial.unloaded, warn=False)):
        return {}
    tuned, place = found
    rows: dict[Goal, dict[str, Any]] = {}
    for goal in goals:
        row = dict(tuned.goals.get(goal, {}))
        choice = tuned.choice(goal) if row else None
        if not choice:
            continue
        if not tuned.fits(trial.machine):
            trial.say(f"{goal}: the result of another machine is dropped; tune for both goals to measure it here")
            continue
        own = replace(tuned, goals={goal: row}).graphs(goal)
        graph = next((place.folder / name for name in own if (place.folder / name).is_file()), None)
        accuracy = row.get("accuracy", tuned.accuracy)
        if choice.precision == "int8" and not graph:
            trial.say(f"{goal}: {choice} is dropped, as its graph is missing; tune for both goals to measure it again")
            continue
        if choice.precision != "float32" and images >= accuracy.get("float32", {}).get("images", 0):
            verdict = judge(choice.precision, graph, accuracy.get("max_top1_loss", 0.0))
            if not verdict.passes:
                trial.say(f"{goal}: {choice} is dropped: {verdict}; tune for both goals to measure it again")
                continue
        trial.say(f"{goal}: {choice} is kept from an earlier run")
        table = [line for line in tuned.table if line.get("goal") == goal]
        rows[goal] = row | {"accuracy": accuracy, "graph": graph, "table": table}
    return rows
