"""Find out where a file comes from: by its hash, its tensor names, its other values, and the files in its folder."""

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
"""First 8 hex digits of the SHA-256 -> (network, name of preprocessing and classes).

The files are those of chenyaofo/pytorch-cifar-models, whose names end in these digits. Their tensor names are shared
by many projects.
"""


@dataclass(frozen=True)
class Provenance:
    """The facts that are known about a file from its hash or its project. Unknown facts are None or empty."""

    who: str
    """Name of the project or of the published weights, for people."""
    model: str | None = None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Known fields of the network's spec, with their values."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Published metrics, as in the model file's header."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Additional entries for `origin` in the model file's header."""
    assumed: tuple[str, ...] = ()
    """`preprocess` and `classes`, if no file contains them and the project's usual values are assumed."""
    classes_from: str = ""
    """Nested name of the class names in the file; empty if they do not come from the file."""


def known_by_hash(sha256: str) -> Provenance | None:
    """Return the facts about the published file with this SHA-256 (64 hex digits); None for an unknown file."""
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
    """Return the facts from the tensor names, the file's other values (`objects`) and the files in its folder.

    Missing facts are filled with the values of the weights that the project publishes. `classes` is the number of
    classes that the model file will have. With `names_given`, class names in `objects` are ignored. Raises UsageError
    for facts that contradict each other, ModelFileError for a broken file in the folder.
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
    if config.model and found.classes == 1000:  # timm's config.json does not contain ImageNet's class names
        names = "imagenet"
    usual_preprocess = PREPROCESSES[preset] if preset and config.silent else None
    spec = spec_of(found.tensors)
    if (
        usual_preprocess
        and spec
        and (usual_preprocess.size, usual_preprocess.channels) != (spec.input_size, spec.in_channels)
    ):
        usual_preprocess = names = None  # the project's published weights with this number of classes: another network
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
    """Return sentences about properties of the network that no fact determines: the most frequent value is assumed."""
    guessed: list[str] = []
    if spec.block == "bottleneck" and "downsample_in" in project.usual_fields and "downsample_in" not in known.facts:
        guessed.append(
            f"its bottlenecks have the stride {KERNEL_STRIDES[spec.downsample_in]}, as in most files with these names"
        )
    if spec.stem == "cifar" and len(spec.depths) > 3 and not known.model and "stem" not in known.facts:
        guessed.append("its first convolution, of 3×3, has a stride of 1, without pooling after it")
    return tuple(guessed)
