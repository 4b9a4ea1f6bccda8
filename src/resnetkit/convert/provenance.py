"""What is known of a file from its hash, its names and what lies beside its tensors, and what is usual for its kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetkit.convert.beside import class_names_in, strided_kernel
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
    """What is known of a file from its hash or its source; None or empty for what is not."""

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
    """What of it the weights' author usually does, and no file says: preprocess, classes."""
    classes_from: str = ""
    """Where in the file the class names are; empty where they are not from there."""


def known_by_hash(sha256: str) -> Provenance | None:
    """What is known of a file with this SHA-256 (64 hex digits): a published one, or None."""
    if sha256[:8] in CIFAR_MODELS:
        model, preset = CIFAR_MODELS[sha256[:8]]
        facts = identity(parse_spec(model))
        return Provenance("chenyaofo/pytorch-cifar-models", model, PREPROCESSES[preset], class_names(preset), facts)
    from resnetkit.models.weights import known_file

    if (found := known_file(sha256)) is None:
        return None
    model, row = found
    who = f"{row.source} {model}:{row.name}"
    return Provenance(who, model, row.preprocess, row.classes, identity(row.spec), row.metrics, row.origin())


def known_by_files(
    found: Recognised, objects: Mapping[str, object], classes: int | None, path: Path, *, names_given: bool
) -> Provenance:
    """What names, the values beside the tensors, and the files beside it say; then what their author publishes.

    `classes` is how many the model file will have.
    """
    beside, source = Facts(), found.source
    if source.name == "transformers":
        beside = transformers_facts(path, found.classes)
    elif source.name in ("torchvision or timm", "timm (resnetv2)"):
        beside = timm_facts(path, found.classes)
    own = None
    if not (names_given or beside.classes):
        own = class_names_in(objects, classes, where=str(path), strict=classes == found.classes)
    preset, names = source.published.get(found.classes or 0, (None, None))
    if beside.model and found.classes == 1000:  # timm names no classes where they are ImageNet's
        names = "imagenet"
    usual = PREPROCESSES[preset] if preset and beside.silent else None
    spec = spec_of(found.tensors)
    if usual and spec and (usual.size, usual.channels) != (spec.input_size, spec.in_channels):
        usual = names = None  # the author's weights with as many classes are of another network
    certain = beside.classes or (own.names if own else None)
    assumed = {"preprocess": usual if beside.preprocess is None else None, "classes": None if certain else names}
    kernel = strided_kernel(objects)
    return Provenance(
        beside.who or source.name,
        beside.model,
        beside.preprocess or usual,
        certain or (class_names(names) if names else None),
        {**source.implies, **({"downsample_in": kernel} if kernel else {}), **found.facts, **beside.fields},
        assumed=tuple(name for name, value in assumed.items() if value),
        classes_from=own.place if own else "",
    )


def usual_of(source: Project, known: Provenance, spec: ModelSpec) -> tuple[str, ...]:
    """What no tensor says of the network, and nobody, but is so in most."""
    guessed: list[str] = []
    if spec.block == "bottleneck" and "downsample_in" in source.usual and "downsample_in" not in known.facts:
        guessed.append(f"its bottlenecks have the stride {KERNEL_STRIDES[spec.downsample_in]}, as most with such names")
    if spec.stem == "cifar" and len(spec.depths) > 3 and not known.model and "stem" not in known.facts:
        guessed.append("its first convolution of 3×3 has a stride of 1, and no pooling behind it")
    return tuple(guessed)
