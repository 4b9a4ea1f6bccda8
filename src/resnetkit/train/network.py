"""The network that a recipe trains, and its first weights."""

from dataclasses import replace

from resnetkit.data.samples import Dataset
from resnetkit.errors import UsageError
from resnetkit.modelfile import Model
from resnetkit.models.resnet import ResNet
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
from resnetkit.train.recipe import Recipe


def choose_spec(recipe: Recipe, dataset: Dataset, start: Model | None) -> ModelSpec:
    """Return the spec of the recipe's network with the classes of `dataset`.

    Raises UsageError if `start`, the model with the first weights, has another network.
    """
    asked = parse_spec(recipe.model)
    spec = replace(asked, classes=len(dataset.classes))
    if "classes=" in recipe.model and asked != spec:
        raise UsageError(f"`model` {recipe.model}: {dataset.name} has {spec.classes} classes; leave classes= out")
    if start and trunk(start.header.spec) != trunk(spec):
        rows = [name for name, row in SPECS.items() if trunk(row) == trunk(start.header.spec)]
        name = start.header.recipe.get("model") or (rows[0] if rows else "with the same changes")
        raise UsageError(f"{recipe.init} does not contain a {recipe.model}; give `model` {name}")
    return spec


def trunk(spec: ModelSpec) -> ModelSpec:
    """Return the spec without classes, dilation, drop path and frozen norms, which do not change the body's weights."""
    norm = "batch" if spec.norm == "frozen" else spec.norm
    return replace(spec, classes=1, dilated=(), drop_path=0.0, norm=norm)


def copy_weights(start: Model, net: ResNet, classes: tuple[str, ...]) -> None:
    """Copy the weights of `start` into `net`, without the last layer if the classes differ."""
    weights = start.net.state_dict()
    if start.header.classes != classes:
        weights |= {name: tensor for name, tensor in net.state_dict().items() if name.startswith("fc.")}
    net.load_state_dict(weights)
