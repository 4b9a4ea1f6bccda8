"""Other people's weights to a model file, where every tensor fits and nothing is left to guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resnetkit.convert.configs import Facts, identity, timm_facts, transformers_facts
from resnetkit.convert.fitting import HEAD, find_source, fit, refuse_contradictions, renamed, rows_like
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
    assumed: tuple[str, ...] = ()
    """What of it the weights' author usually does, and no file says: preprocess, classes."""


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
    assumed: tuple[str, ...] = ()
    """What was neither given nor known from a file or its hash, but is as its author publishes: preprocess, classes."""
    part: str = ""
    """Where in the file the network was."""
    other_parts: tuple[str, ...] = ()
    """Where else in it there is one."""


def convert(
    file: str | Path,
    *,
    model: str | None = None,
    preprocess: str | Preprocess | None = None,
    classes: str | Path | Sequence[str] | None = None,
    new_head: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    part: str | None = None,
) -> Conversion:
    """Write someone else's weights as a model file, to `out` or `<stem of file>.safetensors` in the working folder.

    What neither the file nor its hash nor a config.json beside it says must be given: `model` (a name in SPECS with
    changes), `preprocess` (the text form of presets, or a Preprocess), `classes` (imagenet, cifar10, cifar100, a file,
    or the names). The number of classes is the file's, unless `model` or `classes` says another. `new_head` makes the
    last layer anew (seed 0) for so many classes. A file that is there already is only replaced with `force`.
    `part` says which network of several in the file: its nested name, and prefixes, with dots.

    Raises UsageError for what is missing or contradicts what is known (v1 or v1.5), ModelFileError for a file that is
    broken, hostile or does not fit. Nothing is written then.
    """
    path = Path(file)
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give a file of weights")
    target = free_target(path, out or f"{path.stem.removesuffix('.weights')}.safetensors", force=force)
    if new_head is not None and new_head < 1:
        raise UsageError(f"--new-head is {new_head}; it takes the number of classes")
    asked = _classes_in(model) if model else None
    if new_head and asked not in (None, new_head):
        raise UsageError(f"--new-head is {new_head} and --model has classes={asked}; leave one of them out")
    names = None if classes is None else class_names(classes)
    chosen = None if preprocess is None else parse_preprocess(preprocess)

    weights = read_weights(path, part=part)
    if HEADER_KEY in weights.metadata:
        raise UsageError(f"{path} is a model file already; use it as it is, or give --to torchvision or timm")
    source = find_source(weights.tensors, where=str(path))
    tensors = renamed(source, weights.tensors, where=str(path))
    inside = len(tensors["fc.weight"]) if "fc.weight" in tensors and tensors["fc.weight"].ndim else None
    sha256 = digest(path, "sha256")
    known = (known_by_hash(sha256) if source.registered else None) or _known_by_files(source, inside, path)
    like = [known.model] if known.model else rows_like(tensors, known.facts)
    network = model or (like[0] if len(like) == 1 else None)
    preset = chosen or known.preprocess
    if network is None:
        raise _question(path, known, like, network, preset, names or known.classes, inside)

    if new_head and not names:
        names = tuple(map(str, range(new_head)))
    counted = new_head or asked or (len(names) if names else inside)
    spec = replace(parse_spec(network), classes=counted) if counted else parse_spec(network)
    if names and len(names) != spec.classes:
        raise UsageError(f"{len(names)} class names for {spec.classes} classes; give --classes as many, or none")
    refuse_contradictions(known.who, known.facts, spec, where=str(path))
    net = _network(source, tensors, spec, new_head=bool(new_head), where=str(path))
    assumed = tuple(
        name for name, value in (("preprocess", chosen), ("classes", names)) if name in known.assumed and value is None
    )
    names = names or known.classes
    if preset is None or names is None:
        raise _question(path, known, like, network, preset, names, spec.classes)
    if spec.in_channels != preset.channels:
        raise UsageError(f"the network takes {spec.in_channels} channels and the preprocessing makes {preset.channels}")
    recipe = {**known.about, "converted_from": path.name, "sha256": sha256, "source": known.who}
    header = Header(spec, preset, names, recipe, {} if new_head or chosen else known.metrics)
    save(target, net, header)
    return Conversion(
        target,
        header,
        network,
        known.who,
        len(weights.tensors),
        bool(new_head),
        weights.beside,
        assumed,
        weights.part,
        weights.others,
    )


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
        facts = identity(parse_spec(model))
        return Known("chenyaofo/pytorch-cifar-models", model, PREPROCESSES[preset], class_names(preset), facts)
    from resnetkit.models.weights import known_file

    if (found := known_file(sha256)) is None:
        return None
    model, row = found
    who = f"{row.source} {model}:{row.name}"
    return Known(who, model, row.preprocess, row.classes, identity(row.spec), row.metrics, row.about())


def _known_by_files(source: Source, classes: int | None, path: Path) -> Known:
    """What the names of the tensors say, and the files beside them; beyond that, what their author publishes."""
    beside = Facts()
    if source.name == "transformers":
        beside = transformers_facts(path, classes)
    elif source.name in ("torchvision or timm", "timm (resnetv2)"):
        beside = timm_facts(path, classes)
    preset, names = source.published.get(classes or 0, (None, None))
    if beside.model and classes == 1000:  # timm names no classes where they are ImageNet's
        names = "imagenet"
    usual = PREPROCESSES[preset] if preset and beside.silent else None
    assumed = {"preprocess": usual if beside.preprocess is None else None, "classes": None if beside.classes else names}
    return Known(
        beside.who or source.name,
        beside.model,
        beside.preprocess or usual,
        beside.classes or (class_names(names) if names else None),
        {**source.implies, **beside.fields},
        assumed=tuple(name for name, value in assumed.items() if value),
    )


def _question(
    path: Path,
    known: Known,
    like: list[str],
    network: str | None,
    preset: Preprocess | None,
    names: tuple[str, ...] | None,
    counted: int | None,
) -> UsageError:
    """The error that asks for every flag that is missing, with what it takes."""
    fits = f"its tensors fit {', '.join(like)}" if like else "its tensors fit no row of `resnetkit models`"
    needed = [f"--model NAME ({fits})"] if network is None else []
    needed += [f"--preprocess {'|'.join(PREPROCESSES)}"] if preset is None else []
    many = f" ({counted:,} names)" if counted else ""
    needed += [f"--classes {'|'.join(CLASS_LISTS)}|FILE{many}"] if names is None else []
    return UsageError(f"{path} has the names of {known.who}, which don't say all; give {', and '.join(needed)}")


def _classes_in(network: str) -> int | None:
    """The number of classes that the text of a network gives, if it does."""
    said = any(setting.partition("=")[0].strip() == "classes" for setting in network.split(",")[1:])
    return parse_spec(network).classes if said else None


def _network(source: Source, tensors: Mapping[str, Tensor], spec: ModelSpec, *, new_head: bool, where: str) -> "ResNet":
    """The network with the file's tensors; its last layer with first values instead, where `new_head` says so."""
    from resnetkit.models.resnet import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(spec)
    head = {name: net.state_dict()[name].clone() for name in HEAD} if new_head else {}
    net.load_state_dict(fit(source, {**tensors, **head}, spec, where=where) | head)
    return net
