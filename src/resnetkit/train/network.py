"""Which network a recipe trains, and with which first weights."""

from dataclasses import replace

from resnetkit.data.samples import Dataset
from resnetkit.errors import UsageError
from resnetkit.modelfile import Model
from resnetkit.models.resnet import ResNet
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
from resnetkit.train.recipe import Recipe


def choose_spec(recipe: Recipe, dataset: Dataset, start: Model | None) -> ModelSpec:
    """The recipe's network with the classes of `dataset`; UsageError where it is not the one of the first weights."""
    asked = parse_spec(recipe.model)
    spec = replace(asked, classes=len(dataset.classes))
    if "classes=" in recipe.model and asked != spec:
        raise UsageError(f"`model` {recipe.model}: {dataset.name} has {spec.classes} classes; leave classes= out")
    if start and trunk(start.header.spec) != trunk(spec):
        rows = [name for name, row in SPECS.items() if trunk(row) == trunk(start.header.spec)]
        name = start.header.recipe.get("model") or (rows[0] if rows else "with the same changes")
        raise UsageError(f"{recipe.init} does not hold a {recipe.model}; give `model` {name}")
    return spec


def trunk(spec: ModelSpec) -> ModelSpec:
    """The spec without what may differ between networks with the same weights: classes, and how they are run."""
    norm = "batch" if spec.norm == "frozen" else spec.norm
    return replace(spec, classes=1, dilated=(), drop_path=0.0, norm=norm)


def copy_weights(start: Model, net: ResNet, classes: tuple[str, ...]) -> None:
    """Start from the weights of `start`; the last layer stays new where the classes are not the same."""
    weights = start.net.state_dict()
    if start.header.classes != classes:
        weights |= {name: tensor for name, tensor in net.state_dict().items() if name.startswith("fc.")}
    net.load_state_dict(weights)
