"""The model file: one .safetensors file with the weights and a JSON header.

The header describes the network, the preprocessing and the class names, which a prediction needs, and the origin of the
weights (recipe, metrics, data fingerprint, package version). So `load(path)` needs no other file. Tensors have
torchvision's names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from resnetkit.calibration import Calibration
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
"""Version of the file format. It is increased when an older reader would misunderstand a file, but not for a new field
that older readers may ignore."""
MULTILABEL = "multilabel-classifier"
CLASSIFIERS = ("classifier", MULTILABEL)
KINDS = (*CLASSIFIERS, "detector")
"""Kinds of model that this version reads. Every kind has a `spec`, a `preprocess` and `classes`. A picture has one
class of a classifier, and several or none of a multilabel-classifier."""
Types: TypeAlias = Mapping[str, type | tuple[type, ...]]


@dataclass(frozen=True)
class Header:
    """The header of a model file. Raises ModelFileError if a classifier does not have one name for each class."""

    spec: ModelSpec
    """The network; for a kind with more parts, the residual network in it."""
    preprocess: Preprocess
    """The preprocessing of pictures."""
    classes: tuple[str, ...] = ()
    """Class names, in the order of the logits; empty for a kind without classes."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the Recipe that trained the weights. Empty for weights that resnetkit did not train."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Measured values: step, validation error and others; errors in percent."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The training data: name, fingerprint, division into training and validation, and a record by which the pictures
    are recognised at another place (see resnetkit.data.parts)."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The origin of weights that resnetkit did not train, with the fields ORIGIN_FIELDS. Empty for other weights."""
    calibration: Calibration | None = None
    """The temperature and the thresholds of predictions; None for probabilities as the network gives them."""
    kind: str = "classifier"
    """The kind of model: one of KINDS."""
    detector: Mapping[str, Any] = field(default_factory=dict)
    """Of a detector: what it has around its trunk, which is `spec` (see resnetkit.detect.spec.DetectorSpec), and what
    its predictions need. Empty for other kinds."""
    version: str = __version__
    """Version of the package that wrote the file."""
    format_version: int = FORMAT_VERSION
    """Version of the file format."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ModelFileError(f"`kind` is {self.kind!r}; this version of resnetkit knows {', '.join(KINDS)}")
        if self.kind in CLASSIFIERS and len(self.classes) != self.spec.classes:
            raise ModelFileError(_wrong_count(self.classes, self.spec))

    def __repr__(self) -> str:
        return line(type(self), *self.in_words)

    @property
    def multilabel(self) -> bool:
        """Whether a picture may have several of the classes, or none: probabilities are sigmoids, not a softmax."""
        return self.kind == MULTILABEL

    @property
    def in_words(self) -> tuple[str, ...]:
        """Phrases for a repr: network, classes, picture size, training data and error; empty if not known."""
        data, error = self.data.get("name"), self.metrics.get("error_percent")
        return (
            text_of(self.spec, without=["classes"]),
            count(len(self.classes), "class") if self.classes else "",
            "several for a picture" if self.multilabel else "",
            f"pictures of {self.preprocess.size} pixels",
            f"trained on {cut(short_name(data), 40)}" if isinstance(data, str) else "",
            f"validation error {error:.2f} %" if isinstance(error, float) else "",
        )

    @property
    def temperature(self) -> float:
        """The logits are divided by it for probabilities; 1 without a calibration."""
        return 1.0 if self.calibration is None else self.calibration.temperature

    def to_json(self) -> str:
        """Return the header as one JSON document.

        `kind`, `origin`, `detector` and `calibration` are left out if they have their defaults: the first readers of
        version 0.1.0 refuse unknown fields.
        """
        values = vars(self) | {"spec": self.spec.to_dict(), "preprocess": self.preprocess.to_dict()}
        if self.kind == "classifier":
            del values["kind"]
        for name in ("origin", "detector"):
            if not values[name]:
                del values[name]
        if self.calibration is None:
            del values["calibration"]
        else:
            values["calibration"] = self.calibration.to_dict()
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Header":
        """Return the header from a JSON document; `source` names the file in errors.

        Unknown fields of the header are ignored: a later version that adds a field which must not be ignored also
        increases FORMAT_VERSION or uses another kind. Unknown fields of the network or the preprocessing are an error,
        since they change the predictions. Raises ModelFileError for a header that is broken or too new.
        """
        try:
            values = json.loads(text)
            _refuse_newer(values, source)
            return cls(**_fields(values))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ModelFileError(f"{source} has a broken header ({reason}); get the file again") from error


ORIGIN_FIELDS = ("source", "weights", "licence", "recipe", "url", "converted_from", "sha256")
"""The publisher of the weights, their name there, the licence, the address of a description of the training, the
address of the file; for converted weights, the name and the SHA-256 of the original file."""
_TYPES: Types = {
    "classes": list,
    "recipe": dict,
    "metrics": dict,
    "data": dict,
    "origin": dict,
    "calibration": dict,
    "detector": dict,
}
"""Types of a header's fields in JSON."""
_SPLIT_TYPES: Types = {"seed": int, "val_fraction": (int, float), "train_split": str, "read_as": dict}


def _refuse_newer(values: Any, source: str) -> None:
    """Raise ModelFileError for a header that only a later version of this package can read."""
    _check_types(values, {"format_version": int, "version": str, "kind": str})
    wrote = f"written by resnetkit {values['version']}"
    if values["format_version"] > FORMAT_VERSION:
        raise ModelFileError(
            f"{source} has format {values['format_version']}, {wrote}; this is {__version__} and reads up to "
            f"{FORMAT_VERSION}. Upgrade resnetkit."
        )
    if (kind := values.get("kind", "classifier")) not in KINDS:
        raise ModelFileError(
            f"{source} contains a {kind}, {wrote}; this is {__version__} and reads a {' or a '.join(KINDS)}. "
            f"Upgrade to resnetkit {values['version']} or newer."
        )
    _check_types(values, {"spec": dict, "preprocess": dict})
    for part, given in ((ModelSpec, values["spec"]), (Preprocess, values["preprocess"])):
        if unknown := sorted(given.keys() - {field.name for field in fields(part)}):
            raise ModelFileError(
                f"{source} was {wrote}, with a field that this version ({__version__}) does not support: {unknown[0]}. "
                f"Upgrade resnetkit."
            )


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a Header from JSON values, including those of earlier versions.

    Raises ValueError, KeyError or TypeError for values that are not valid.
    """
    _check_types(values, _TYPES)
    _check_types(values.get("data", {}).get("split", {}), _SPLIT_TYPES)
    known = {field.name: values[field.name] for field in fields(Header) if field.name in values}
    for of, name in (("data", "name"), ("recipe", "init")):  # earlier versions wrote the whole path
        if Path(path := str(known.get(of, {}).get(name, ""))).is_absolute():
            known[of] = known[of] | {name: short_name(path)}
    recipe = known.get("recipe", {})  # earlier versions wrote the origin into it; a Recipe does not have these fields
    if "origin" not in known and (origin := {name: recipe[name] for name in ORIGIN_FIELDS if name in recipe}):
        known |= {"origin": origin, "recipe": {name: recipe[name] for name in recipe if name not in origin}}
    spec = ModelSpec.from_dict(known["spec"])
    if known.get("kind", "classifier") in CLASSIFIERS and len(known["classes"]) != spec.classes:
        raise ValueError(_wrong_count(known["classes"], spec))
    preprocess, classes = Preprocess.from_dict(known["preprocess"]), tuple(known.get("classes", ()))
    if "calibration" in known:
        known["calibration"] = Calibration.from_dict(known["calibration"])
    return known | {"spec": spec, "preprocess": preprocess, "classes": classes}


def _check_types(values: object, types: Types) -> None:
    """Raise TypeError if `values` is not a dict, or if a value has another type than in `types`; none is required."""
    if not isinstance(values, dict):
        raise TypeError(f"{json.dumps(values)[:40]} instead of fields by name")
    for name, expected in types.items():
        if name in values and (not isinstance(values[name], expected) or isinstance(values[name], bool)):
            raise TypeError(f"{name} is {json.dumps(values[name])[:40]}")
    if any(not isinstance(name, str) for name in values.get("classes", ())):
        raise TypeError("classes are not names")


def _wrong_count(classes: Sequence[str], spec: ModelSpec) -> str:
    return f"{len(classes)} class names for a network with {spec.classes} classes"


@dataclass(frozen=True)
class Model:
    """A network and the header of its model file."""

    net: "ResNet"
    """In evaluation mode, float32, on the CPU."""
    header: Header

    def __repr__(self) -> str:
        return line(type(self), *self.header.in_words)


def save(
    path: str | Path, net: "ResNet", header: Header, *, storage: Literal["float32", "float16"] = "float32"
) -> None:
    """Write `net` and `header` to `path`, whole or not at all.

    With `storage` float16, weights of convolutions and of the last layer are rounded to float16, and need half the
    space; `load` returns the rounded values as float32. Vectors (normalisation, biases, counters) are not rounded, and
    neither is a tensor with a value over 65,504, the largest of float16.

    Raises ModelFileError if the tensors of `net` do not fit `header.spec`, for example after a change of the norm
    layer, since such a file could not be loaded; and if the file can't be written.
    """
    from resnetkit.models.empty import empty_network

    path = expanded(path)
    if misfit := compare(empty_network(header.spec).state_dict(), net.state_dict()):
        raise ModelFileError(
            f"{path}: the network's tensors do not fit its spec ({misfit}); give the spec of this network"
        )
    write_tensors(path, net.state_dict(), header, storage=storage)


def write_tensors(
    path: Path, state: "Mapping[str, Tensor]", header: Header, *, storage: Literal["float32", "float16"] = "float32"
) -> None:
    """Write the tensors of a model of any kind and its header to `path`, whole or not at all, as `save` does.

    Raises ModelFileError if the file can't be written.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if storage == "float16":
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    try:
        write_whole(path, to_bytes(tensors, {HEADER_KEY: header.to_json()}))
    except OSError as error:
        raise ModelFileError(
            f"{path} could not be written: {error.strerror}. An earlier file of this name is intact."
        ) from error


def _halved(tensor: "Tensor") -> "Tensor":
    half = tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
    return half if half.isfinite().all() else tensor


def load(model: str | Path | Located) -> Model:
    """Return the network that MODEL names, in evaluation mode, and its header.

    `model` is one of:
    - a model file;
    - a run folder, for its best model;
    - NAME:WEIGHTS, weights for a row of SPECS, in this package (`resnet56:cifar10`) or published
      (`resnet50:IMAGENET1K_V2`; NAME alone is NAME:DEFAULT);
    - hf:OWNER/NAME, a repository on the Hugging Face Hub that contains a model file or weights of timm;
    - the result of `location.locate` for one of these.
    Published weights are downloaded, checked, and kept in the cache. No random numbers are drawn.

    Raises ModelFileError for a file that is missing or broken, does not fit, or contains a number that is not finite;
    UsageError for unknown weights; DataError for a failed download.
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
    if header.kind not in CLASSIFIERS:
        raise ModelFileError(
            f"{found} contains a {header.kind}, which the verbs of resnetkit detect use; give a classifier here"
        )
    net = empty_network(header.spec)
    tensors = load_file(found)
    if misfit := compare(net.state_dict(), tensors):
        raise ModelFileError(f"{found}: the weights do not fit the network in its header: {misfit}")
    fill(net, tensors, source=str(found))
    return Model(net.eval(), header)


def inspect(model: str | Path | Located) -> Header:
    """Return the header of MODEL without reading the weights; for a file, torch is not imported.

    `model` and the errors are those of `load`. For published weights, the header contains the facts that their source
    states. A repository on the Hub is downloaded.
    """
    found = _file_or_weights(model)
    return _read_header(found) if isinstance(found, Path) else _header(found)


def model_file(model: str | Path | Located) -> Path:
    """Return the path of MODEL's model file. A file on the Hub is downloaded, unless it is in the cache.

    Raises ModelFileError for weights that others publish, since they are not in a model file.
    """
    found = _file_or_weights(model)
    if not isinstance(found, Path):
        raise ModelFileError(
            f"{found.name} names weights of {found.source}, which are not in a model file; save them as a model file: "
            "resnetkit.save(path, model.net, model.header) with model = resnetkit.load(...)"
        )
    return found


def _file_or_weights(model: str | Path | Located) -> "Path | Published":
    """Return the path of the model file that MODEL names, or the description of the published weights."""
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
            f"{path} contains weights without resnetkit's header, which names network, preprocessing and classes. "
            f"Convert it to a model file: resnetkit convert {shell(path)}"
        )
    return Header.from_json(metadata[HEADER_KEY], source=str(path))


def _metadata(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        if instead := what_else(path):
            raise ModelFileError(f"{path} is not a model file{instead}") from error
        ours = path.suffix == ".safetensors"
        hint = "get it again" if ours else f"if it contains weights of another project: resnetkit convert {shell(path)}"
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
