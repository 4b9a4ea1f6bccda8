"""Other people's weights to a model file, where every tensor fits and nothing is left to guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resnetkit.convert.configs import transformers_facts
from resnetkit.convert.fitting import HEAD, find_source, fit_renamed, refuse_contradictions, renamed, rows_like
from resnetkit.convert.presets import CLASS_LISTS, PREPROCESSES, class_names, parse_preprocess
from resnetkit.convert.readers import read_weights
from resnetkit.convert.sources import Source
from resnetkit.data.download import digest
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.modelfile import HEADER_KEY, Header, save
from resnetkit.models.spec import ModelSpec, parse_spec

if TYPE_CHECKING:
    from resnetkit.models.resnet import ResNet

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
class Known:
    """What is known of a file from its hash or its source; None or empty for what is not."""

    who: str
    """Whose it is, for people."""
    model: str | None = None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network's spec."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the model file's header keeps of where the weights come from."""


@dataclass(frozen=True)
class Conversion:
    """What came of a file."""

    path: Path
    """The model file."""
    header: Header
    model: str
    """The network, as `--model` takes it."""
    known: str
    """Whose names the file has or, by its hash, which published weights it is."""
    tensors: int
    new_head: bool
    """Whether the last layer was made anew, and so predicts nothing yet."""
    beside: tuple[str, ...]
    """What else the file held, and is left out."""


def convert(
    file: str | Path,
    *,
    model: str | None = None,
    preprocess: str | Preprocess | None = None,
    classes: str | Path | Sequence[str] | None = None,
    new_head: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> Conversion:
    """Write someone else's weights as a model file, to `out` or `<stem of file>.safetensors` in the working folder.

    What neither the file nor its hash says must be given: `model` (a name in SPECS with changes), `preprocess` (the
    text form of presets, or a Preprocess), `classes` (imagenet, cifar10, cifar100, a file, or the names). `new_head`
    makes the last layer anew (seed 0) for so many classes. A file that is there already is only replaced with `force`.

    Raises UsageError for what is missing or contradicts what is known (v1 or v1.5), ModelFileError for a file that is
    broken, hostile or does not fit. Nothing is written then.
    """
    path = Path(file)
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give a file of weights")
    target = free_target(path, out or f"{path.stem.removesuffix('.weights')}.safetensors", force=force)
    if new_head is not None and new_head < 1:
        raise UsageError(f"--new-head is {new_head}; it takes the number of classes")
    names = None if classes is None else class_names(classes)
    chosen = None if preprocess is None else parse_preprocess(preprocess)

    weights = read_weights(path)
    if HEADER_KEY in weights.metadata:
        raise UsageError(f"{path} is a model file already; use it as it is, or give --to torchvision or timm")
    source = find_source(weights.tensors, where=str(path))
    tensors = renamed(source, weights.tensors, where=str(path))
    inside = len(tensors["fc.weight"]) if "fc.weight" in tensors and tensors["fc.weight"].ndim else None
    sha256 = digest(path, "sha256")
    known = (known_by_hash(sha256) if source.registered else None) or _known_by_source(source, inside, path)
    like = [known.model] if known.model else rows_like(tensors, known.facts)
    network = model or (like[0] if len(like) == 1 else None)
    preset = chosen or known.preprocess
    if new_head and not names:
        names = tuple(map(str, range(new_head)))
    counted = new_head or (len(names) if names else None if model else inside)
    names = names or known.classes
    if network is None:
        raise _question(path, known, like, network, preset, names)

    spec = _spec(network, counted)
    if names and len(names) != spec.classes:
        raise UsageError(f"{len(names)} class names for {spec.classes} classes; give --classes as many, or none")
    refuse_contradictions(known.who, known.facts, spec, where=str(path))
    net = _network(source, tensors, spec, new_head=bool(new_head), where=str(path))
    if preset is None or names is None:
        raise _question(path, known, like, network, preset, names)
    if spec.in_channels != preset.channels:
        raise UsageError(f"the network takes {spec.in_channels} channels and the preprocessing makes {preset.channels}")
    recipe = {**known.about, "converted_from": path.name, "sha256": sha256, "source": known.who}
    header = Header(spec, preset, names, recipe, {} if new_head or chosen else known.metrics)
    save(target, net, header)
    return Conversion(target, header, network, known.who, len(weights.tensors), bool(new_head), weights.beside)


def free_target(source: Path, out: str | Path, *, force: bool) -> Path:
    """The file to write, if it may be written."""
    target = Path(out)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target} is what is read; give another --out")
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give --out a file's name")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; give another --out, or --force to replace it")
    return target


def known_by_hash(sha256: str) -> Known | None:
    """What is known of a file with this SHA-256 (64 hex digits): a published one, or None."""
    if sha256[:8] in CIFAR_MODELS:
        model, preset = CIFAR_MODELS[sha256[:8]]
        facts = _identity(parse_spec(model))
        return Known("chenyaofo/pytorch-cifar-models", model, PREPROCESSES[preset], class_names(preset), facts)
    from resnetkit.models.weights import known_file

    if (found := known_file(sha256)) is None:
        return None
    model, row = found
    who = f"{row.source} {model}:{row.name}"
    return Known(who, model, row.preprocess, row.classes, _identity(row.spec), row.metrics, row.about())


def _identity(spec: ModelSpec) -> dict[str, Any]:
    """The fields that make it another network; those that may change without other weights are left out."""
    free = ("classes", "dilated", "drop_path", "norm")
    return {name: value for name, value in vars(spec).items() if name not in free}


def _known_by_source(source: Source, classes: int | None, path: Path) -> Known:
    preset, names = source.published.get(classes or 0, (None, None))
    return Known(
        source.name,
        preprocess=PREPROCESSES[preset] if preset else None,
        classes=class_names(names) if names else None,
        facts={**source.implies, **(transformers_facts(path) if source.name == "transformers" else {})},
    )


def _question(
    path: Path,
    known: Known,
    like: list[str],
    network: str | None,
    preset: Preprocess | None,
    names: tuple[str, ...] | None,
) -> UsageError:
    """The error that asks for every flag that is missing, with what it takes."""
    fits = f"its tensors fit {', '.join(like)}" if like else "its tensors fit no row of `resnetkit models`"
    needed = [f"--model NAME ({fits})"] if network is None else []
    needed += [f"--preprocess {'|'.join(PREPROCESSES)}"] if preset is None else []
    needed += [f"--classes {'|'.join(CLASS_LISTS)}|FILE"] if names is None else []
    return UsageError(f"{path} has the names of {known.who}, which don't say all; give {', and '.join(needed)}")


def _spec(network: str, counted: int | None) -> ModelSpec:
    """The network, with as many classes as were counted, unless its text says how many."""
    spec = parse_spec(network)
    return replace(spec, classes=counted) if counted and "classes" not in network else spec


def _network(source: Source, tensors: Mapping[str, Tensor], spec: ModelSpec, *, new_head: bool, where: str) -> "ResNet":
    """The network with the file's tensors; its last layer with first values instead, where `new_head` says so."""
    from resnetkit.models.resnet import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(spec)
    head = {name: net.state_dict()[name].clone() for name in HEAD} if new_head else {}
    net.load_state_dict(fit_renamed(source, {**tensors, **head}, spec, where=where) | head)
    return net
