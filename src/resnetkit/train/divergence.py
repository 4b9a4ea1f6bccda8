"""Advice for a run whose loss or weights are not finite."""

from resnetkit.train.recipe import Recipe


def mend(recipe: Recipe, precision: str, *, first: bool) -> str:
    """Return the advice for a message; with `first`, no step was taken yet, so the learning rate is not the cause."""
    if first and precision == "bfloat16":
        return "No step was taken, so the learning rate is not the cause: give `precision` float32."
    if first:
        cause = f"the weights in {recipe.init}" if recipe.init else "the pictures"
        return f"No step was taken, so the learning rate is not the cause: check {cause}, or use others."
    rates = "`muon_lr` and `lr`" if recipe.optimizer == "muon" else "`lr`"
    clip = min(1.0, recipe.gradient_clip / 2 or 1.0)
    ways = [
        f"Lower {rates}",
        f"clip with `gradient_clip` {clip:g}",
        *(["give `precision` float32"] if precision == "bfloat16" else []),
    ]
    return ", ".join(ways[:-1]) + f"{',' if len(ways) > 2 else ''} or {ways[-1]}."
