"""Training: recipes, one loop, run folders. The module can be called as a function: `resnetkit.train(recipe, data)`."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.verb import stands_for

if TYPE_CHECKING:
    from resnetkit.data.samples import Dataset
    from resnetkit.train.lifecycle import TrainResult
    from resnetkit.train.recipe import Recipe


def train(
    recipe: "Recipe", data: "str | Path | Dataset", *, out: str | Path | None = None, quiet: bool = False
) -> "TrainResult":
    """Train a network with `recipe` on `data`, write a run folder, and return the result.

        recipe = rk.RECIPES["folder"].replace(init="resnet18:IMAGENET1K_V1", minutes=5)  # or rk.RECIPES["cifar10"]
        result = rk.train(recipe, "photos")
        rk.Predictor(result.model)("cat.jpg")

    `data` is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test folders that contain class
    folders), a CSV file (path,label) or a Dataset. `out` is the run folder, by default runs/<model>-<data>-<time>. The
    run writes into it: best.safetensors, last.safetensors, recipe.yaml, metrics.jsonl, curves.png, report.html, log.txt
    and state.pt, from which `rk.resume` continues. With `quiet`, nothing is printed.

    Raises InterruptedTrainingError, after the state is saved, on SIGINT, SIGTERM or SIGHUP, or when the reader of
    standard error has closed it; TrainingError when the loss is no longer finite or a file can't be written; UsageError
    and DataError when the recipe and the data do not fit together.
    """
    # The ladder is in a package above this one, which it trains with; so it is found by its name.
    start = import_module("resnetkit.finetune.ladder").start
    return start(recipe, data, out=out, quiet=quiet)


stands_for(__name__, train)
