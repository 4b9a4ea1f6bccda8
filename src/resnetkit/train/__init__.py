"""Training: recipes as rows, one loop, one evaluation. Callable as a verb: `resnetkit.train(recipe, "cifar10")`."""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnetkit.data.samples import Dataset
    from resnetkit.train.recipe import Recipe
    from resnetkit.train.run import TrainResult


class _Verb(ModuleType):
    """`resnetkit.train` is this package, by the rules of importing, and the verb as well: so it can be called."""

    def __call__(
        self, recipe: "Recipe", data: "str | Path | Dataset", *, out: str | Path | None = None, quiet: bool = False
    ) -> "TrainResult":
        """See resnetkit.train.run.train."""
        from resnetkit.train.run import train

        return train(recipe, data, out=out, quiet=quiet)


sys.modules[__name__].__class__ = _Verb
