"""The self-describing model file: one .safetensors with the weights and a JSON header.

The header holds all that a prediction needs (network, preprocessing, class names) and where the weights come from
(recipe, metrics, data fingerprint, package version), so `load(path)` needs nothing else. Tensors have the names that
torchvision gives them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit import __version__
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import write_whole
from resnetkit.models.spec import ModelSpec

if TYPE_CHECKING:
    from resnetkit.models.resnet import ResNet

FORMAT_VERSION = 1
HEADER_KEY = "resnetkit"


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
    """What the weights were trained on: name, fingerprint, and how training and validation were divided."""
    version: str = __version__
    """Version of this package that wrote the file."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(self.classes) != self.spec.classes:
            raise ModelFileError(f"{len(self.classes)} class names for a network with {self.spec.classes} classes")

    def to_json(self) -> str:
        """The header as one JSON document."""
        fields = vars(self) | {"spec": self.spec.to_dict(), "preprocess": self.preprocess.to_dict()}
        return json.dumps(fields, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Header":
        """Read a header; `source` names the file in errors."""
        try:
            fields = json.loads(text)
            written_as = fields["format_version"]
            if written_as > FORMAT_VERSION:
                raise ModelFileError(
                    f"{source} has format {written_as}, written by resnetkit {fields['version']}; "
                    f"this is {__version__} and reads up to {FORMAT_VERSION}. Upgrade resnetkit."
                )
            return cls(
                **fields
                | {
                    "spec": ModelSpec.from_dict(fields["spec"]),
                    "preprocess": Preprocess.from_dict(fields["preprocess"]),
                    "classes": tuple(fields["classes"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelFileError(f"{source} has a broken header ({error}); get the file anew") from error


@dataclass(frozen=True)
class Model:
    """A network and what its file says of it."""

    net: "ResNet"
    """In evaluation mode, float32, on the CPU."""
    header: Header


def save(path: str | Path, net: "ResNet", header: Header) -> None:
    """Write `net` and `header` to `path`, whole or not at all.

    Raises ModelFileError where the tensors of `net` are not those of `header.spec` (a changed norm layer, say):
    such a file could not be loaded.
    """
    import torch
    from safetensors.torch import save as to_bytes

    from resnetkit.models.resnet import build

    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    with torch.device("meta"):
        expected = build(header.spec).state_dict()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {name: tensor.shape for name, tensor in expected.items()}:
        raise ModelFileError(f"{path}: the network's tensors are not those of its spec; it can't be saved as that")
    try:
        write_whole(path, to_bytes(tensors, {HEADER_KEY: header.to_json()}))
    except OSError as error:
        raise ModelFileError(
            f"{path} could not be written: {error.strerror}. What was there before is intact."
        ) from error


def find(model: str | Path) -> Path:
    """The file that MODEL names: a model file itself, or the best (else the last) one of a run folder."""
    path = Path(model)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise ModelFileError(f"{path} holds no model file; expected {path}/best.safetensors")
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist; give a model file or a run folder")
    return path


def inspect(model: str | Path) -> Header:
    """Read the header of a model file or run folder, without its weights and without torch."""
    from safetensors import SafetensorError, safe_open

    path = find(model)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a whole .safetensors file ({error}); get it anew") from error
    if HEADER_KEY not in metadata:
        raise ModelFileError(
            f"{path} holds weights but no resnetkit header, so network, preprocessing and classes are unknown. "
            "Build the network with resnetkit.build(NAME), load them with load_state_dict, and resnetkit.save it."
        )
    return Header.from_json(metadata[HEADER_KEY], source=str(path))


def load(model: str | Path) -> Model:
    """Load a model file, or the best one of a run folder: the network in evaluation mode, and its header."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from resnetkit.models.resnet import build

    path = find(model)
    header = inspect(path)
    try:
        net = build(header.spec)
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, UsageError) as error:
        raise ModelFileError(f"{path}: the weights do not fit the network in its header: {error}") from error
    return Model(net.eval(), header)
