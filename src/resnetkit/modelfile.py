"""The self-describing model file: one .safetensors with the weights and a JSON header.

The header holds all that a prediction needs (network, preprocessing, class names) and where the weights come from
(recipe, metrics, data fingerprint, package version), so `load(path)` needs nothing else. Tensors have the names that
torchvision gives them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resnetkit import __version__
from resnetkit.data.folders.listing import is_of_runs, is_picture_name, is_utf8
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import count, cut, line, shell, wrong_name
from resnetkit.errors import ModelFileError
from resnetkit.files import HEADER_KEY, expanded, write_whole
from resnetkit.models.shipped import shipped, shipped_names
from resnetkit.models.spec import SPECS, ModelSpec, nearest_name, text_of

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.models.resnet import ResNet
    from resnetkit.models.weights import Published

FORMAT_VERSION = 1
IN_FOLDERS = ("best.safetensors", "last.safetensors", "model.safetensors")
"""Model files by their name in a folder, the first that is there: of a run, and of what to_hub writes."""
Types: TypeAlias = Mapping[str, type | tuple[type, ...]]
HUB = "hf:"
"""Begins the name of a repository on the Hugging Face Hub: hf:OWNER/NAME."""


@dataclass(frozen=True)
class Header:
    """What a model file says of itself."""

    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the weights were trained: a Recipe's fields."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: step, validation error and the like; errors in percent."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the weights were trained on: name, fingerprint, how training and validation were divided, and what
    recognises the pictures wherever they are now (see resnetkit.data.parts)."""
    version: str = __version__
    """Version of this package that wrote the file."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(self.classes) != self.spec.classes:
            raise ModelFileError(_wrong_count(self.classes, self.spec))

    def __repr__(self) -> str:
        return line(type(self), *self.in_words)

    @property
    def in_words(self) -> tuple[str, ...]:
        """The network, its classes and pictures, what it was trained on, and its error; empty for what is not known."""
        data, error = self.data.get("name"), self.metrics.get("error_percent")
        return (
            text_of(self.spec, without=["classes"]),
            count(len(self.classes), "class"),
            f"pictures of {self.preprocess.size} pixels",
            f"trained on {cut(short_name(data), 40)}" if isinstance(data, str) else "",
            f"validation error {error:.2f} %" if isinstance(error, float) else "",
        )

    def to_json(self) -> str:
        """The header as one JSON document."""
        values = vars(self) | {"spec": self.spec.to_dict(), "preprocess": self.preprocess.to_dict()}
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Header":
        """Read a header; `source` names the file in errors."""
        try:
            values = json.loads(text)
            _check_types(values, {"format_version": int, "version": str})
            if values["format_version"] > FORMAT_VERSION:
                raise ModelFileError(
                    f"{source} has format {values['format_version']}, written by resnetkit {values['version']}; "
                    f"this is {__version__} and reads up to {FORMAT_VERSION}. Upgrade resnetkit."
                )
            _check_types(values, _TYPES)
            _check_types(values.get("data", {}).get("split", {}), _SPLIT_TYPES)
            for kind, given in ((cls, values), (ModelSpec, values["spec"]), (Preprocess, values["preprocess"])):
                if unknown := sorted(given.keys() - {field.name for field in fields(kind)}):
                    raise ModelFileError(
                        f"{source} was written by resnetkit {values['version']}, with a field that this one "
                        f"({__version__}) does not know: {unknown[0]}. Upgrade resnetkit."
                    )
            read = {
                "spec": ModelSpec.from_dict(values["spec"]),
                "preprocess": Preprocess.from_dict(values["preprocess"]),
                "classes": tuple(values["classes"]),
            }
            if len(read["classes"]) != read["spec"].classes:
                raise ValueError(_wrong_count(read["classes"], read["spec"]))
            for of, name in (("data", "name"), ("recipe", "init")):  # earlier versions wrote the whole path
                if Path(path := str(values.get(of, {}).get(name, ""))).is_absolute():
                    values[of] |= {name: short_name(path)}
            return cls(**values | read)
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ModelFileError(f"{source} has a broken header ({reason}); get the file anew") from error


_TYPES: Types = {
    "spec": dict,
    "preprocess": dict,
    "classes": list,
    "recipe": dict,
    "metrics": dict,
    "data": dict,
}
"""What JSON makes of a header's fields."""
_SPLIT_TYPES: Types = {"seed": int, "val_fraction": (int, float), "train_split": str, "read_as": dict}


def _check_types(values: object, types: Types) -> None:
    """Raise TypeError where `values` is no mapping, or one of its values is of another type; each may be absent."""
    if not isinstance(values, dict):
        raise TypeError(f"{json.dumps(values)[:40]} in place of fields by name")
    for name, expected in types.items():
        if name in values and (not isinstance(values[name], expected) or isinstance(values[name], bool)):
            raise TypeError(f"{name} is {json.dumps(values[name])[:40]}")
    if any(not isinstance(name, str) for name in values.get("classes", ())):
        raise TypeError("classes are not names")


def _wrong_count(classes: Sequence[str], spec: ModelSpec) -> str:
    return f"{len(classes)} class names for a network with {spec.classes} classes"


@dataclass(frozen=True)
class Model:
    """A network and what its file says of it."""

    net: "ResNet"
    """In evaluation mode, float32, on the CPU."""
    header: Header

    def __repr__(self) -> str:
        return line(type(self), *self.header.in_words)


def save(
    path: str | Path, net: "ResNet", header: Header, *, storage: Literal["float32", "float16"] = "float32"
) -> None:
    """Write `net` and `header` to `path`, whole or not at all.

    With `storage` float16, weights of convolutions and of the last layer are rounded to it and take half the space;
    `load` makes float32 of them again, exactly. Vectors (normalisation, biases, counters), which are few, are kept as
    they are, and so is a tensor that has a value beyond float16's 65,504.

    Raises ModelFileError where the tensors of `net` are not those of `header.spec` (a changed norm layer, say):
    such a file could not be loaded.
    """
    from safetensors.torch import save as to_bytes

    path = expanded(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if wrong := _wrong_tensors(_without_weights(header.spec), tensors):
        raise ModelFileError(
            f"{path}: the network's tensors are not those of its spec ({wrong}); it can't be saved as that"
        )
    if storage == "float16":
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    try:
        write_whole(path, to_bytes(tensors, {HEADER_KEY: header.to_json()}))
    except OSError as error:
        raise ModelFileError(
            f"{path} could not be written: {error.strerror}. What was there before is intact."
        ) from error


def _halved(tensor: "Tensor") -> "Tensor":
    half = tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
    return half if half.isfinite().all() else tensor


def short_name(name: str | Path) -> str:
    """What a file may say of where a set or first weights were: the last name of a path, and not where it was.

    A model file of a run has its run's name, too. Names that are no paths stay as they are.
    """
    if str(name).startswith(HUB):
        return str(name)
    path = Path(name).absolute()  # "." has a last name, too
    if path.name == "..":
        path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in IN_FOLDERS else path.name or str(name)


EXPORTED = (".onnx", ".xml", ".pt2")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".txt")


def _instead(path: Path) -> str:
    """The rest of an error about what is given as MODEL: what it is instead, and the mend; empty where nobody knows."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_of_runs(path):
            runs = sorted(run for run in path.iterdir() if is_of_runs(run))
            return f". Give one of the runs in it, such as {runs[0]}" if runs else ". It is a run that has none yet"
        files = islice(chain(path.glob("*"), path.glob("*/*")), 1000)
        return (
            f". It holds pictures: resnetkit train {shell(path)}"
            if any(is_picture_name(file.name) for file in files)
            else ""
        )
    if is_picture_name(path.name):
        return " but a picture; the model comes first"
    if suffix in EXPORTED:
        return " but one that other programs run, such as resnetkit export writes; give the model that it was made of"
    if suffix in TABLES:
        return " but text; give a .safetensors, a run folder, or NAME:WEIGHTS"
    return ""


def find(model: str | Path) -> Path:
    """The file of MODEL: itself, a run folder's best one, what to_hub wrote, one in this package, or of hf:OWNER/NAME.

    What exists as a file or a folder is that, whatever its name. Raises ModelFileError where there is nothing.
    """
    path = expanded(model)
    if not is_utf8(str(path)):  # safetensors, OpenVINO and ONNX Runtime open no other
        raise ModelFileError(f"{path}: the name {wrong_name('; rename it')}")
    if path.is_dir():
        for name in IN_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise ModelFileError(f"{path} holds no model file; expected {path}/best.safetensors{_instead(path)}")
    if path.is_file():
        return path
    if str(model).startswith(HUB):
        from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub

        return fetch_from_hub(str(model).removeprefix(HUB), WEIGHTS_FILE)
    network, colon, weights = str(model).partition(":")
    if network in SPECS and (own := shipped(network).get(weights)):
        return own
    ours = [name.partition(":")[0] for name in shipped_names() if name.endswith(f":{weights}")]
    near = nearest_name(network, ours or SPECS) if colon else None
    hint = f". Did you mean {near}:{weights}?" if near and near != network else ""
    raise ModelFileError(f"{path} does not exist; give a model file, a run folder, or NAME:WEIGHTS{hint}")


def inspect(model: str | Path) -> Header:
    """Read the header of a model file or run folder, without its weights and without torch.

    For published weights (`load` says how they are named) it is what their source says of them.
    """
    if weights := _published(model):
        return _header(weights)
    path = find(model)
    metadata = _metadata(path)
    if HEADER_KEY not in metadata:
        raise ModelFileError(
            f"{path} holds somebody's weights, without a header that names network, preprocessing and classes. "
            f"Make a model file of it: resnetkit convert {shell(path)}"
        )
    return Header.from_json(metadata[HEADER_KEY], source=str(path))


def _metadata(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        if instead := _instead(path):
            raise ModelFileError(f"{path} is no model file{instead}") from error
        ours = path.suffix == ".safetensors"
        hint = "get it anew" if ours else f"if it holds somebody's weights: resnetkit convert {shell(path)}"
        raise ModelFileError(f"{path} is not a whole .safetensors file ({error}); {hint}") from error


def published_name(model: str | Path) -> str | None:
    """NAME:WEIGHTS where MODEL names a row of SPECS and no weights in this package: published ones, if there are any.

    None for what exists as a file or a folder, and for hf:OWNER/NAME.
    """
    network, colon, name = str(model).partition(":")
    if expanded(model).exists() or network not in SPECS or name in shipped(network):
        return None
    return f"{network}:{name if colon else 'DEFAULT'}"


def _published(model: str | Path) -> "Published | None":
    """The published weights that MODEL names; None for a file, a run folder, or a model file of ours on the Hub."""
    if named := published_name(model):
        from resnetkit.models.weights import find_weights

        network, _, name = named.partition(":")
        return find_weights(network, name)
    if not str(model).startswith(HUB) or expanded(model).exists() or HEADER_KEY in _metadata(find(model)):
        return None
    from resnetkit.models.timm import timm_weights

    return timm_weights(str(model).removeprefix(HUB))


def _header(weights: "Published") -> Header:
    data = {"name": weights.data} if weights.data else {}
    return Header(weights.spec, weights.preprocess, weights.classes, weights.about(), weights.metrics, data)


def load(model: str | Path) -> Model:
    """Load the network that MODEL names, in evaluation mode, and its header.

    `model` is a model file; a run folder, for its best one; NAME:WEIGHTS for weights of a row of SPECS, those that come
    with this package (`resnet56:cifar10`) or published ones (`resnet50:IMAGENET1K_V2`; NAME alone is NAME:DEFAULT); or
    hf:OWNER/NAME for a repository on the Hugging Face Hub that holds a model file or weights of timm's. Published
    weights are downloaded, checked, and kept in the cache.

    Raises ModelFileError for a file that is missing, broken, or does not fit, or holds a number that is not finite;
    UsageError for unknown weights; DataError for a failed download. No random number is drawn.
    """
    from safetensors.torch import load_file

    from resnetkit.models.weights import fill, load_published

    if weights := _published(model):
        net = _without_weights(weights.spec)
        load_published(net, weights)
        return Model(net.eval(), _header(weights))
    path = find(model)
    header = inspect(path)
    net = _without_weights(header.spec)
    tensors = load_file(path)
    if wrong := _wrong_tensors(net, tensors):
        raise ModelFileError(f"{path}: the weights do not fit the network in its header: {wrong}")
    fill(net, tensors, source=str(path))
    return Model(net.eval(), header)


def _without_weights(spec: ModelSpec) -> "ResNet":
    """A network on the meta device: nothing is drawn only to be replaced, and nothing takes memory."""
    import torch

    from resnetkit.models.layers import Blur
    from resnetkit.models.resnet import build

    with torch.device("meta"):
        net = build(spec)
    for module in net.modules():
        if isinstance(module, Blur):  # the one constant that no file brings
            module.kernel = Blur(len(module.kernel), module.stride).kernel
    return net


def _wrong_tensors(net: "ResNet", tensors: Mapping[str, "Tensor"]) -> str:
    """How many of `tensors` are not those of `net` by name and shape, and the first; empty where all are."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in expected | found if expected.get(name) != found.get(name)]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(expected | found)} tensors differ, first {wrong[0]}: " + (
        "missing"
        if wrong[0] not in found
        else "not in the network"
        if wrong[0] not in expected
        else f"of shape {found[wrong[0]]}, not {expected[wrong[0]]}"
    )
