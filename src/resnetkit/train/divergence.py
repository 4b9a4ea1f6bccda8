"""What to do about numbers that are not finite."""

from resnetkit.train.recipe import Recipe


def mend(recipe: Recipe, precision: str, *, first: bool) -> str:
    """What to change; `first` where no step was taken yet, so that the learning rate is not to blame."""
    if first and precision == "bfloat16":
        return "No step is behind, so it is not the rate: give `precision` float32."
    if first:
        return f"No step is behind, so it is not the rate: mend {recipe.init or 'the pictures'}, or start from others."
    rates = "`muon_lr` and `lr`" if recipe.optimizer == "muon" else "`lr`"
    clip = min(1.0, recipe.gradient_clip / 2 or 1.0)
    ways = [
        f"Lower {rates}",
        f"clip with `gradient_clip` {clip:g}",
        *(["give `precision` float32"] if precision == "bfloat16" else []),
    ]
    return ", ".join(ways[:-1]) + f"{',' if len(ways) > 2 else ''} or {ways[-1]}."
