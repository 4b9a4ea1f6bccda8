"""What is known of a file: from its hash, from its names, and from what is in it or next to it beside the tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetkit.convert.annotations import class_names_in, strided_kernel
from resnetkit.convert.files.configs import Facts, identity, timm_facts, transformers_facts
from resnetkit.convert.naming.fitting import KERNEL_STRIDES
from resnetkit.convert.naming.networks import spec_of
from resnetkit.convert.naming.projects import Project
from resnetkit.convert.naming.recognition import Recognised
from resnetkit.convert.presets import PREPROCESSES, class_names
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.models.spec import ModelSpec, parse_spec

# Names of the files that chenyaofo/pytorch-cifar-models publishes end with the first digits of their SHA-256, and the
# tensors alone could be anyone's: a network and its preprocessing (with the classes of the same name) for each.
CIFAR_MODELS = {
    "4118986f": ("resnet20_b", "cifar10"),
    "ef93fc4d": ("resnet32_b", "cifar10"),
    "2a3cabcb": ("resnet44_b", "cifar10"),
    "187c023a": ("resnet56_b", "cifar10"),
    "23dac2f1": ("resnet20_b", "cifar100"),
    "84213ce6": ("resnet32_b", "cifar100"),
    "ffe32858": ("resnet44_b", "cifar100"),
    "f2eff4c8": ("resnet56_b", "cifar100"),
}


@dataclass(frozen=True)
class Provenance:
    """What is known of a file from its hash or its project; None or empty for what is not."""

    who: str
    """Whose it is, for people."""
    model: str | None = None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network's spec."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What else the model file's header keeps of where the weights come from."""
    assumed: tuple[str, ...] = ()
    """Which of preprocess and classes no file says, so that what the author usually publishes is assumed."""
    classes_from: str = ""
    """Where in the file the class names are; empty where they are not from there."""


def known_by_hash(sha256: str) -> Provenance | None:
    """What is known of a file with this SHA-256 (64 hex digits): a published one, or None."""
    if sha256[:8] in CIFAR_MODELS:
        model, preset = CIFAR_MODELS[sha256[:8]]
        facts = identity(parse_spec(model))
        return Provenance("chenyaofo/pytorch-cifar-models", model, PREPROCESSES[preset], class_names(preset), facts)
    from resnetkit.models.published import known_file

    if (found := known_file(sha256)) is None:
        return None
    model, row = found
    who = f"{row.source} {model}:{row.name}"
    return Provenance(who, model, row.preprocess, row.classes, identity(row.spec), row.metrics, row.origin())


def known_by_files(
    found: Recognised, objects: Mapping[str, object], classes: int | None, path: Path, *, names_given: bool
) -> Provenance:
    """What the names say, the other values in the file and the files next to it; then what its author publishes.

    `classes` is how many the model file will have.
    """
    config, project = Facts(), found.project
    if project.name == "transformers":
        config = transformers_facts(path, found.classes)
    elif project.name in ("torchvision or timm", "timm (resnetv2)"):
        config = timm_facts(path, found.classes)
    own = None
    if not (names_given or config.classes):
        own = class_names_in(objects, classes, where=str(path), strict=classes == found.classes)
    preset, names = project.published.get(found.classes or 0, (None, None))
    if config.model and found.classes == 1000:  # timm names no classes where they are ImageNet's
        names = "imagenet"
    usual_preprocess = PREPROCESSES[preset] if preset and config.silent else None
    spec = spec_of(found.tensors)
    if (
        usual_preprocess
        and spec
        and (usual_preprocess.size, usual_preprocess.channels) != (spec.input_size, spec.in_channels)
    ):
        usual_preprocess = names = None  # the author's weights with as many classes are of another network
    certain = config.classes or (own.names if own else None)
    assumed = {
        "preprocess": usual_preprocess if config.preprocess is None else None,
        "classes": None if certain else names,
    }
    kernel = strided_kernel(objects)
    return Provenance(
        config.who or project.name,
        config.model,
        config.preprocess or usual_preprocess,
        certain or (class_names(names) if names else None),
        {**project.implies, **({"downsample_in": kernel} if kernel else {}), **found.facts, **config.fields},
        assumed=tuple(name for name, value in assumed.items() if value),
        classes_from=own.place if own else "",
    )


def usual_choices(project: Project, known: Provenance, spec: ModelSpec) -> tuple[str, ...]:
    """Choices of the network that nothing states, and that are assumed as most networks have them, in words."""
    guessed: list[str] = []
    if spec.block == "bottleneck" and "downsample_in" in project.usual_fields and "downsample_in" not in known.facts:
        guessed.append(f"its bottlenecks have the stride {KERNEL_STRIDES[spec.downsample_in]}, as most with such names")
    if spec.stem == "cifar" and len(spec.depths) > 3 and not known.model and "stem" not in known.facts:
        guessed.append("its first convolution of 3×3 has a stride of 1, and no pooling behind it")
    return tuple(guessed)
