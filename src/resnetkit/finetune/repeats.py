"""The same training several times, with other seeds or other folds, as one result with its spread."""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resnetkit.data.division import Keeping
from resnetkit.data.first_look import FirstLook
from resnetkit.data.folds import fold_datasets
from resnetkit.data.reading import NOTHING as NOTHING_SAID
from resnetkit.data.reading import Reading, reading_of
from resnetkit.data.samples import Dataset
from resnetkit.display import shell, table
from resnetkit.errors import DataError, TrainingError, UsageError
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.evaluation.report import write_report
from resnetkit.files import expanded, write_whole
from resnetkit.finetune import ladder
from resnetkit.location import short_name
from resnetkit.modelfile import inspect
from resnetkit.train.effects import check_effects, effective_fields
from resnetkit.train.lifecycle import TrainResult
from resnetkit.train.recipe import Recipe, read_recipe, write_recipe
from resnetkit.train.run import NOTHING, default_folder, open_for, remarks_on
from resnetkit.train.run_folder import RunFolder
from resnetkit.version import __version__

logger = logging.getLogger("resnetkit")

Kind = Literal["folds", "seeds"]
PLAN, RESULT = "repeats.yaml", "repeats.json"
ERROR = "error_percent"


@dataclass(frozen=True)
class Repeated:
    """The results of several runs."""

    path: Path
    """The folder that contains the runs."""
    kind: Kind
    runs: tuple[TrainResult, ...]
    out_of_fold: Evaluation | None
    """folds: the evaluation of all pictures together, each by the best model of the fold that did not train on it."""

    @property
    def errors(self) -> list[float]:
        """The lowest validation error of each run, in percent."""
        return [float(run.best[ERROR]) for run in self.runs]

    @property
    def mean(self) -> float:
        """Mean of the errors, in percent."""
        return statistics.fmean(self.errors)

    @property
    def deviation(self) -> float:
        """Standard deviation of the errors over the runs (n - 1 in the denominator), in percent."""
        return statistics.stdev(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        return {
            "run": str(self.path),
            "kind": self.kind,
            "error_percent": {"mean": round(self.mean, 4), "deviation": round(self.deviation, 4)},
            "out_of_fold_error_percent": self.out_of_fold.top1_error_percent if self.out_of_fold else None,
            "runs": [
                {
                    "run": str(run.run),
                    "model": str(run.model),
                    "best": run.best,
                    "images_per_second": run.images_per_second,
                    "seconds": run.seconds,
                    "rungs": [dict(rung) for rung in run.rungs],
                }
                for run in self.runs
            ],
            "seconds": round(sum(run.seconds for run in self.runs), 1),
        }


def train_repeatedly(
    recipe: Recipe,
    data: str | Path | Dataset,
    *,
    kind: Kind,
    count: int,
    out: str | Path | None = None,
    quiet: bool = False,
    asked: Mapping[str, str] = NOTHING,
    reading: Reading = NOTHING_SAID,
) -> Repeated:
    """Train `count` times, one after another, each in a folder of its own within `out`; write report.html there.

    folds: the training and validation pictures together are divided into folds, and each fold validates once; pictures
    that `reading.group_by` or their looks put together are in one fold. seeds: the pictures are divided once, by the
    recipe's seed, and the runs have this seed and the following ones. Each run has the recipe's whole length, and goes
    up the ladder as a single one does; features are computed once for all of them.

    Raises the errors of `train`; what is stopped goes on with `go_on`.
    """
    if count < 2:
        raise UsageError(f"`{kind}` is {count}; it must be at least 2")
    folder = RunFolder(expanded(out)) if out else None
    if folder:
        folder.refuse_existing()
    reading = reading.settled()
    look = FirstLook(workers=recipe.workers)
    dataset = open_for(recipe, data, reading, _keeping(recipe, kind, look))
    recipe, remark = ladder.settled(recipe, dataset, asked)
    said = [*([remark] if remark else []), *check_effects(recipe, dataset, asked), *remarks_on(dataset)]
    if remark and not recipe.init:
        recipe = recipe.replace(rung="off")  # it was said once that training is from random weights
    _divided(dataset, recipe, kind, count, look)  # its errors come before there is a folder
    said += look.remarks(dataset) if recipe.group_alike else []
    if not quiet:
        for line in said:
            logger.info("%s", line)
    if folder:
        folder.create()
    else:
        folder = default_folder(recipe.model, f"{dataset.name}-{count}-{kind}").create_beside()
    place = None if isinstance(data, Dataset) else str(data if dataset.name == data else expanded(data).resolve())
    about = {"version": __version__, "kind": kind, "count": count, "data": place, "read_as": reading.given()}
    write_recipe(folder.path / PLAN, recipe, about | {"asked": sorted(asked)})
    return go_on(folder.path, dataset, quiet=quiet, look=look)


def is_repeated(folder: Path) -> bool:
    """Return whether a folder was written by `train_repeatedly`."""
    return (folder / PLAN).is_file()


def go_on(
    folder: str | Path, data: str | Path | Dataset | None = None, *, quiet: bool = False, look: FirstLook | None = None
) -> Repeated:
    """Go on with runs that were stopped: finished ones are kept, the stopped one is resumed, the others are trained.

    `data` is needed if the pictures have moved, or if they were given as a Dataset. `look` has looked at them already.
    """
    path = expanded(folder)
    recipe, about = read_recipe(path / PLAN, Recipe())
    kind: Kind = "folds" if about.get("kind") == "folds" else "seeds"
    data = data if data is not None else about.get("data")
    if data is None:
        raise TrainingError(
            f"{path / PLAN} does not name the data; give them: resnetkit train --resume {shell(path)} DATA"
        )
    look = look or FirstLook(workers=recipe.workers)
    try:
        reading = reading_of(about.get("read_as") or {}).settled()
        dataset = open_for(recipe, data, reading, _keeping(recipe, kind, look))
    except DataError as error:
        if data != about.get("data"):
            raise
        raise DataError(f"{error}. If the pictures have moved: resnetkit train --resume {shell(path)} DATA") from error
    results: list[TrainResult] = []
    for number, part in enumerate(_divided(dataset, recipe, kind, int(about["count"]), look)):
        seed = recipe.seed + (0 if kind == "folds" else number)
        run = RunFolder(path / (f"fold-{number + 1}" if kind == "folds" else f"seed-{seed}"))
        if run.recipe.is_file():
            results.append(ladder.resume(run.path, part, quiet=quiet))
        else:
            own = recipe.replace(seed=seed, group_alike=False)  # the pictures were looked at together
            results.append(ladder.start(own, part, out=run.path, quiet=quiet, chosen=about.get("asked") or ()))
    if any(ERROR not in result.best for result in results):
        raise TrainingError(f"{path}: the runs have no validation error, so there is nothing to compare")
    out_of_fold = _out_of_fold(results) if kind == "folds" else None
    repeated = Repeated(path, kind, tuple(results), out_of_fold)
    write_whole(path / RESULT, json.dumps(repeated.to_dict(), indent=2) + "\n")
    _write_report(repeated, recipe, dataset)
    return repeated


def _keeping(recipe: Recipe, kind: Kind, look: FirstLook) -> Keeping:
    """Return how a drawn val keeps pictures together; folds do that by themselves."""
    if kind == "folds":
        return Keeping(for_folds=True)
    return Keeping(look.alike_of if recipe.group_alike else None)


def _divided(dataset: Dataset, recipe: Recipe, kind: Kind, count: int, look: FirstLook) -> list[Dataset]:
    """Return the data set of each run."""
    if kind == "folds":
        return fold_datasets(dataset, count, seed=recipe.seed, alike_of=look.alike_of if recipe.group_alike else None)
    if dataset.val is None or not len(dataset.val):
        raise UsageError("`seeds` compares validation errors, and there are no validation pictures")
    return [dataset] * count


def _out_of_fold(results: Sequence[TrainResult]) -> Evaluation | None:
    """Return the evaluations of the best models as one; None if one of them is not known."""
    best = [result.measured for result in results]
    if any(measured is not None and "logits" in measured.details for measured in best):
        return None  # with several labels, scores of different models would have to be compared
    counted = [Evaluation.from_state(measured.details) for measured in best if measured is not None]
    # Records have places in their fold, and scores of different models can't be compared.
    return Evaluation.merge(replace(one, records=None) for one in counted) if len(counted) == len(results) else None


def _write_report(repeated: Repeated, recipe: Recipe, dataset: Dataset) -> None:
    rows = [
        (run.run.name, f"{error:.2f} %", f"{run.best.get('loss', float('nan')):.4f}", _place(run))
        for run, error in zip(repeated.runs, repeated.errors, strict=True)
    ]
    head = ("run", "lowest error", "loss", "of rung" if repeated.runs[0].rungs else "after step")
    means = f"{repeated.mean:.2f} ± {repeated.deviation:.2f} %: mean and standard deviation over {len(rows)} runs"
    one = "fold" if repeated.kind == "folds" else "seed"
    notes = (
        "Each model is the best one on its own validation pictures, so that all errors are slightly too low."
        if repeated.kind == "folds"
        else "All runs have the same validation pictures; the deviation is that of training, not of the pictures."
    )
    write_report(
        repeated.path / "report.html",
        inspect(repeated.runs[0].model),
        title=f"{recipe.model} on {short_name(dataset.name)}, {len(rows)} {one}s",
        evaluated=repeated.out_of_fold,
        recipe=effective_fields(recipe.to_dict(), dataset.split),
        on="pictures, each by the model that was not trained on it",
        before=f'<p><b>{means}</b></p><div class="scroll">{table(head, rows)}</div><p>{notes}</p>',
    )


def _place(run: TrainResult) -> str:
    """Return where a run had its lowest error: the rung, or the step."""
    return str(run.best["rung"]) if run.rungs else f"{run.best['step']:,}"
