"""The self-describing model file: one .safetensors with the weights and a JSON header.

The header holds all that a prediction needs (network, preprocessing, class names) and where the weights come from
(recipe, metrics, data fingerprint, package version), so `load(path)` needs nothing else. Tensors have the names that
torchvision gives them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import count, cut, line, shell
from resnetkit.errors import ModelFileError
from resnetkit.files import HEADER_KEY, expanded, write_whole
from resnetkit.location import HubRepository, LocalFile, Located, PublishedWeights, locate, short_name, what_else
from resnetkit.models.spec import ModelSpec, text_of
from resnetkit.models.tensors import compare, fill
from resnetkit.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.models.published import Published
    from resnetkit.models.resnet import ResNet

FORMAT_VERSION = 1
"""Raised when a reader of the version before would misunderstand a file. A field that may be ignored raises nothing."""
KINDS = ("classifier",)
"""Kinds of model that this version reads. Every kind has a `spec` and a `preprocess`; a classifier has `classes`."""
Types: TypeAlias = Mapping[str, type | tuple[type, ...]]


@dataclass(frozen=True)
class Header:
    """What a model file says of itself. Raises ModelFileError where a classifier has not one name for each class."""

    spec: ModelSpec
    """The network; of a kind with more parts, the residual network in it."""
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    """Class names, in the order of the logits; empty for a kind that has none."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the weights were trained: a Recipe's fields. Empty for weights that were not trained here."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured: step, validation error and the like; errors in percent."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the weights were trained on: name, fingerprint, how training and validation were divided, and what
    recognises the pictures wherever they are now (see resnetkit.data.parts)."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where weights that were not trained here come from: ORIGIN_FIELDS. Empty for others."""
    kind: str = "classifier"
    """What the model does: one of KINDS."""
    version: str = __version__
    """Version of this package that wrote the file."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.kind == "classifier" and len(self.classes) != self.spec.classes:
            raise ModelFileError(_wrong_count(self.classes, self.spec))

    def __repr__(self) -> str:
        return line(type(self), *self.in_words)

    @property
    def in_words(self) -> tuple[str, ...]:
        """The network, its classes and pictures, what it was trained on, and its error; empty for what is not known."""
        data, error = self.data.get("name"), self.metrics.get("error_percent")
        return (
            text_of(self.spec, without=["classes"]),
            count(len(self.classes), "class") if self.classes else "",
            f"pictures of {self.preprocess.size} pixels",
            f"trained on {cut(short_name(data), 40)}" if isinstance(data, str) else "",
            f"validation error {error:.2f} %" if isinstance(error, float) else "",
        )

    def to_json(self) -> str:
        """The header as one JSON document.

        Fields that earlier versions did not have, `kind` and `origin`, are left out at their defaults: version 0.1.0
        refuses fields that it does not know, and so reads every classifier that was trained here.
        """
        values = vars(self) | {"spec": self.spec.to_dict(), "preprocess": self.preprocess.to_dict()}
        if self.kind == "classifier":
            del values["kind"]
        if not self.origin:
            del values["origin"]
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Header":
        """Read a header; `source` names the file in errors.

        A field that only a later version has is ignored: one that must not be comes with a higher FORMAT_VERSION or
        with another kind. But an unknown field of the network or of the preprocessing is an error, since it changes
        what is computed. Raises ModelFileError.
        """
        try:
            values = json.loads(text)
            _refuse_newer(values, source)
            return cls(**_fields(values))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ModelFileError(f"{source} has a broken header ({reason}); get the file anew") from error


ORIGIN_FIELDS = ("source", "weights", "licence", "recipe", "url", "converted_from", "sha256")
"""Whose the weights are, their name there, the licence, an address where the training is described, where the file is;
for converted ones the name and the SHA-256 of the file that they were in."""
_TYPES: Types = {
    "classes": list,
    "recipe": dict,
    "metrics": dict,
    "data": dict,
    "origin": dict,
}
"""What JSON makes of a header's fields."""
_SPLIT_TYPES: Types = {"seed": int, "val_fraction": (int, float), "train_split": str, "read_as": dict}


def _refuse_newer(values: Any, source: str) -> None:
    """Raise ModelFileError for a header that only a later version of this package understands."""
    _check_types(values, {"format_version": int, "version": str, "kind": str})
    wrote = f"written by resnetkit {values['version']}"
    if values["format_version"] > FORMAT_VERSION:
        raise ModelFileError(
            f"{source} has format {values['format_version']}, {wrote}; this is {__version__} and reads up to "
            f"{FORMAT_VERSION}. Upgrade resnetkit."
        )
    if (kind := values.get("kind", "classifier")) not in KINDS:
        raise ModelFileError(
            f"{source} holds a {kind}, {wrote}; this is {__version__} and reads a {' or a '.join(KINDS)}. "
            f"Upgrade to resnetkit {values['version']} or newer."
        )
    _check_types(values, {"spec": dict, "preprocess": dict})
    for part, given in ((ModelSpec, values["spec"]), (Preprocess, values["preprocess"])):
        if unknown := sorted(given.keys() - {field.name for field in fields(part)}):
            raise ModelFileError(
                f"{source} was {wrote}, with a field that this one ({__version__}) does not know: {unknown[0]}. "
                f"Upgrade resnetkit."
            )


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Header in what JSON has, as this version writes them; ValueError for what does not fit."""
    _check_types(values, _TYPES)
    _check_types(values.get("data", {}).get("split", {}), _SPLIT_TYPES)
    known = {field.name: values[field.name] for field in fields(Header) if field.name in values}
    for of, name in (("data", "name"), ("recipe", "init")):  # earlier versions wrote the whole path
        if Path(path := str(known.get(of, {}).get(name, ""))).is_absolute():
            known[of] = known[of] | {name: short_name(path)}
    recipe = known.get("recipe", {})  # into which earlier versions wrote the origin; a Recipe has no such fields
    if "origin" not in known and (origin := {name: recipe[name] for name in ORIGIN_FIELDS if name in recipe}):
        known |= {"origin": origin, "recipe": {name: recipe[name] for name in recipe if name not in origin}}
    spec = ModelSpec.from_dict(known["spec"])
    if known.get("kind", "classifier") == "classifier" and len(known["classes"]) != spec.classes:
        raise ValueError(_wrong_count(known["classes"], spec))
    preprocess, classes = Preprocess.from_dict(known["preprocess"]), tuple(known.get("classes", ()))
    return known | {"spec": spec, "preprocess": preprocess, "classes": classes}


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

    from resnetkit.models.empty import empty_network

    path = expanded(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    if misfit := compare(empty_network(header.spec).state_dict(), tensors):
        raise ModelFileError(
            f"{path}: the network's tensors are not those of its spec ({misfit}); it can't be saved as that"
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


def load(model: str | Path | Located) -> Model:
    """Load the network that MODEL names, in evaluation mode, and its header.

    `model` is a model file; a run folder, for its best one; NAME:WEIGHTS for weights of a row of SPECS, those that come
    with this package (`resnet56:cifar10`) or published ones (`resnet50:IMAGENET1K_V2`; NAME alone is NAME:DEFAULT);
    hf:OWNER/NAME for a repository on the Hugging Face Hub that holds a model file or weights of timm's; or what
    `location.locate` made of one of these. Published weights are downloaded, checked, and kept in the cache.

    Raises ModelFileError for a file that is missing, broken, or does not fit, or holds a number that is not finite;
    UsageError for unknown weights; DataError for a failed download. No random number is drawn.
    """
    from safetensors.torch import load_file

    from resnetkit.models.empty import empty_network

    found = _file_or_weights(model)
    if not isinstance(found, Path):
        from resnetkit.models.weights import load_published

        net = empty_network(found.spec)
        load_published(net, found)
        return Model(net.eval(), _header(found))
    header = _read_header(found)
    net = empty_network(header.spec)
    tensors = load_file(found)
    if misfit := compare(net.state_dict(), tensors):
        raise ModelFileError(f"{found}: the weights do not fit the network in its header: {misfit}")
    fill(net, tensors, source=str(found))
    return Model(net.eval(), header)


def inspect(model: str | Path | Located) -> Header:
    """Read the header of MODEL, as `load` takes it, without its weights; of a file, without torch.

    For published weights it is what their source says of them. A repository on the Hub is downloaded for it.
    """
    found = _file_or_weights(model)
    return _read_header(found) if isinstance(found, Path) else _header(found)


def model_file(model: str | Path | Located) -> Path:
    """The model file of MODEL on this disk; one on the Hub is downloaded, unless it is in the cache.

    Raises ModelFileError for weights that others publish: they are in no model file.
    """
    found = _file_or_weights(model)
    if not isinstance(found, Path):
        raise ModelFileError(
            f"{found.name} names weights of {found.source}, which are in no model file; save them as one: "
            "resnetkit.save(path, model.net, model.header) with model = resnetkit.load(...)"
        )
    return found


def _file_or_weights(model: str | Path | Located) -> "Path | Published":
    """The model file that MODEL names, or the weights, of which only what is known of them is read."""
    match model if isinstance(model, LocalFile | PublishedWeights | HubRepository) else locate(model):
        case LocalFile(path=path):
            return path
        case PublishedWeights(network=network, weights=weights):
            from resnetkit.models.weights import find_weights

            return find_weights(network, weights)
        case HubRepository(repository=repository):
            path = fetch_from_hub(repository, WEIGHTS_FILE)
            if HEADER_KEY in _metadata(path):
                return path
            from resnetkit.models.timm import timm_weights

            return timm_weights(repository)


def _read_header(path: Path) -> Header:
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
        if instead := what_else(path):
            raise ModelFileError(f"{path} is no model file{instead}") from error
        ours = path.suffix == ".safetensors"
        hint = "get it anew" if ours else f"if it holds somebody's weights: resnetkit convert {shell(path)}"
        raise ModelFileError(f"{path} is not a whole .safetensors file ({error}); {hint}") from error


def _header(weights: "Published") -> Header:
    return Header(
        weights.spec,
        weights.preprocess,
        weights.classes,
        metrics=weights.metrics,
        data={"name": weights.data} if weights.data else {},
        origin=weights.origin(),
    )
