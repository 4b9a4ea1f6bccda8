"""The runs in a folder: the data, the recipe and the result of each, and where their recipes differ. No torch here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.errors import DataError, UsageError
from resnetkit.train.effects import effective_fields
from resnetkit.train.monitor import read_metrics
from resnetkit.train.recipe import Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder

NEUTRAL = ("workers", "threads", "log_every", "save_every", "device", "compile", "recompute", "channels_last")
"""Fields of a recipe that change no result; a comparison leaves them out."""


@dataclass(frozen=True)
class Run:
    """What the files of a run say about it."""

    path: Path
    status: str
    """finished, running, or stopped."""
    data: dict[str, Any]
    """name, fingerprint and split of the pictures."""
    recipe: dict[str, Any]
    """The fields of the recipe that have an effect."""
    best: dict[str, Any]
    """The evaluation with the lowest error: step, epoch, error_percent, loss, images; empty without an evaluation."""
    step: int
    """Steps done, as far as metrics.jsonl says."""
    epoch: float
    seconds: float
    """Time until the last line of metrics.jsonl."""

    @property
    def of(self) -> tuple[str, str]:
        """Name and fingerprint of the data: runs with the same ones can be compared."""
        return str(self.data.get("name")), str(self.data.get("validation_fingerprint"))


def find_runs(places: Sequence[Path]) -> list[Run]:
    """Return the runs in folders, and folders of runs within them, each once; those on the same data together.

    Of the runs on the same data, the one with the lowest error comes first. Folders that are no runs are ignored, and
    so are runs whose recipe.yaml can't be read.

    Raises DataError for a folder that does not exist or contains no run.
    """
    found: dict[Path, Run] = {}
    for place in places:
        if not place.is_dir():
            raise DataError(f"{place}: no such folder; give the folder of your runs, by default runs")
        before = len(found)
        for file in sorted(place.rglob("recipe.yaml")):
            if RunFolder(file.parent.parent).ladder.exists():
                continue  # a rung of the run there
            if (run := read_run(file.parent)) is not None:
                found[file.parent.resolve()] = run
        if len(found) == before and not any(place.resolve() in (path, *path.parents) for path in found):
            raise DataError(f"{place} contains no run; give the folder of your runs, by default runs")
    return sorted(found.values(), key=lambda run: (run.of, run.best.get("error_percent", float("inf")), str(run.path)))


def read_run(path: Path) -> Run | None:
    """Return the run in a folder; None if there is none, or if its recipe.yaml can't be read."""
    run = RunFolder(path)
    try:
        recipe, about = read_recipe(run.recipe, Recipe())
    except UsageError:
        return None
    if not about:
        return None  # a recipe that somebody wrote
    rows = read_metrics(run.metrics)
    measured = [row for row in rows if row.get("part") == "val" and "error_percent" in row]
    # The last one of equal errors is the one in best.safetensors.
    best = min(reversed(measured), key=lambda row: row["error_percent"]) if measured else {}
    last = rows[-1] if rows else {}
    finished = run.report.exists() and (not rows or run.report.stat().st_mtime >= run.metrics.stat().st_mtime)
    finished |= run.best.exists() and not rows and not run.state.exists()  # its classes were changed without training
    return Run(
        path=path,
        status="running" if run.in_use() else "finished" if finished else "stopped",
        data={name: about.get(name) for name in ("name", "fingerprint", "validation_fingerprint", "split")},
        recipe=effective_fields(recipe.to_dict(), about.get("split") or {}),
        best={name: value for name, value in best.items() if name != "part"},
        step=int(last.get("step", 0)),
        epoch=float(last.get("epoch", 0)),
        seconds=float(last.get("seconds", 0)),
    )


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return, for each run, the fields of its recipe that differ between the runs; None is a field without effect."""
    names = list(dict.fromkeys(name for run in runs for name in run.recipe if name not in NEUTRAL))
    differing = [name for name in names if len({repr(run.recipe.get(name)) for run in runs}) > 1]
    return [{name: run.recipe.get(name) for name in differing} for run in runs]


def unusual(differing: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each run, the differing fields whose value is not the most frequent one, so that rows are short."""
    usual = {
        name: Counter(repr(fields[name]) for fields in differing).most_common(1)[0] for name in (differing or [{}])[0]
    }
    # If no value is more frequent than others, each run names its own.
    return [
        {name: value for name, value in fields.items() if usual[name][1] == 1 or repr(value) != usual[name][0]}
        for fields in differing
    ]
