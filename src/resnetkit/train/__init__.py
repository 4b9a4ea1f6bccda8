"""Training: recipes as rows, one loop, one evaluation. Also the verb: `resnetkit.train(recipe, "cifar10")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.verb import stands_for

if TYPE_CHECKING:
    from resnetkit.data.samples import Dataset
    from resnetkit.train.recipe import Recipe
    from resnetkit.train.training import TrainResult


def train(
    recipe: "Recipe", data: "str | Path | Dataset", *, out: str | Path | None = None, quiet: bool = False
) -> "TrainResult":
    """Train as `recipe` says on `data`, and leave a run folder.

        recipe = rk.Recipe(model="resnet18", epochs=10, init="resnet18:IMAGENET1K_V1")  # or rk.RECIPES["cifar10"]
        result = rk.train(recipe, "photos")
        rk.Predictor(result.model)("cat.jpg")

    `data` is cifar10, cifar100, a folder (<class>/<picture>, or train, val and test with such folders in them), a CSV
    file (path,label) or a Dataset. `out` is the run folder, by default runs/<model>-<data>-<time>; it gets
    best.safetensors, last.safetensors, recipe.yaml, metrics.jsonl, curves.png, report.html, log.txt and the state that
    `rk.resume` goes on from. `quiet` prints nothing.

    Raises InterruptedTrainingError, once the state is saved, after a SIGINT, SIGTERM or SIGHUP, or where nobody reads
    any more what it says on standard error; TrainingError when the loss is no longer finite or a file can't be written;
    UsageError and DataError for a recipe and data that don't go together.
    """
    from resnetkit.train.run import start

    return start(recipe, data, out=out, quiet=quiet)


stands_for(__name__, train)
