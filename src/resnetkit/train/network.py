"""The network that a recipe trains, and its first weights."""

from dataclasses import replace

from resnetkit.data.samples import Dataset
from resnetkit.errors import ResnetkitError, UsageError
from resnetkit.location import LocalFile, PublishedWeights, locate
from resnetkit.modelfile import Header, Model, inspect
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
        name = network_in(start.header) or "with the same changes"
        raise UsageError(f"{recipe.init} does not contain a {recipe.model}; give `model` {name}")
    return spec


def network_in(header: Header) -> str | None:
    """Return the name of a model's network for `Recipe.model`; None for one that is no row and was not trained here."""
    if name := header.recipe.get("model"):
        return str(name)
    if header.kind == "detector":
        return None
    return next((name for name, row in SPECS.items() if trunk(row) == trunk(header.spec)), None)


def network_of(init: str) -> str | None:
    """Return the name of the network of first weights; None if it can't be told before they are read.

    What is wrong with `init` is said when it is read.
    """
    try:
        located = locate(init)
        if isinstance(located, PublishedWeights):
            return located.network
        return network_in(inspect(located)) if isinstance(located, LocalFile) else None
    except ResnetkitError:
        return None


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
