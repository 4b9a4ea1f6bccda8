"""Finding the model that MODEL names: a model file, a run folder, NAME[:WEIGHTS] or hf:OWNER/NAME.

Nothing is opened or downloaded here, and neither torch nor torchvision is imported. `modelfile` opens the models.
"""

from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from resnetkit.data.folders.listing import is_of_runs, is_picture_name, is_utf8
from resnetkit.data.published.huggingface import HUB
from resnetkit.display import shell, wrong_name
from resnetkit.errors import ModelFileError
from resnetkit.files import expanded
from resnetkit.models.shipped import shipped, shipped_names
from resnetkit.models.spec import SPECS, nearest_name

IN_FOLDERS = ("best.safetensors", "last.safetensors", "model.safetensors")
"""Names of the model file in a folder, in the order of the search: two of a run folder, and one of `to_hub`."""
EXPORTED = (".onnx", ".xml", ".pt2")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".txt")


@dataclass(frozen=True)
class LocalFile:
    """A model file on this disk."""

    name: str
    """MODEL as it was given."""
    path: Path
    shipped: bool = False
    """Whether the file is in this package; MODEL is then NAME:WEIGHTS."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of a row of SPECS that torchvision or timm publishes. It is not checked yet whether they exist."""

    network: str
    """The row of SPECS."""
    weights: str
    """IMAGENET1K_V2, DEFAULT, or a repository of timm: OWNER/NAME, which may begin with hf:."""

    @property
    def name(self) -> str:
        """NAME:WEIGHTS."""
        return f"{self.network}:{self.weights}"

    @property
    def repository(self) -> str:
        """OWNER/NAME on the Hugging Face Hub; empty for weights of torchvision."""
        return self.weights.removeprefix(HUB) if "/" in self.weights else ""


@dataclass(frozen=True)
class HubRepository:
    """A repository on the Hugging Face Hub, which contains a model file or weights of timm."""

    repository: str
    """OWNER/NAME."""

    @property
    def name(self) -> str:
        """hf:OWNER/NAME."""
        return HUB + self.repository


Located: TypeAlias = LocalFile | PublishedWeights | HubRepository


def locate(model: str | Path) -> Located:
    """Return the location of MODEL. An existing file or folder has priority over the other meanings of a name.

    For a folder, it is the first file of IN_FOLDERS in it. Raises ModelFileError, which suggests a similar name, if
    there is no such model.
    """
    path = expanded(model)
    if not is_utf8(str(path)):  # safetensors, OpenVINO and ONNX Runtime open no other names
        raise ModelFileError(f"{path}: the name {wrong_name('; rename it')}")
    if path.is_dir():
        if file := file_in(path):
            return LocalFile(str(model), file)
        raise ModelFileError(f"{path} contains no model file; expected {path}/{IN_FOLDERS[0]}{what_else(path)}")
    if path.is_file():
        return LocalFile(str(model), path)
    if str(model).startswith(HUB):
        return HubRepository(str(model).removeprefix(HUB))
    network, colon, weights = str(model).partition(":")
    if network in SPECS:
        if file := shipped(network).get(weights):
            return LocalFile(str(model), file, shipped=True)
        return PublishedWeights(network, weights if colon else "DEFAULT")
    ours = [name.partition(":")[0] for name in shipped_names() if name.endswith(f":{weights}")]
    near = nearest_name(network, ours or SPECS) if colon else None
    hint = f". Did you mean {near}:{weights}?" if near else ""
    raise ModelFileError(f"{path} does not exist; give a model file, a run folder, or NAME:WEIGHTS{hint}")


def file_in(folder: Path) -> Path | None:
    """Return the model file of a folder, for a run its best model; None if there is no model file."""
    return next((folder / name for name in IN_FOLDERS if (folder / name).is_file()), None)


def short_name(name: str | Path) -> str:
    """Return the last part of a path, so that files do not contain the whole path of data or first weights.

    For a model file of a run, the result includes the run's name. Names that are not paths are not changed.
    """
    if str(name).startswith(HUB):
        return str(name)
    path = Path(name).absolute()  # so that "." gets a name
    if path.name == "..":
        path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in IN_FOLDERS else path.name or str(name)


def what_else(path: Path) -> str:
    """Return the end of an error about a path without a model: what it is instead, and advice; empty if not known."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if is_of_runs(path):
            runs = sorted(run for run in path.iterdir() if is_of_runs(run))
            return f". Give one of the runs in it, such as {runs[0]}" if runs else ". It is a run without a model yet"
        files = islice(chain(path.glob("*"), path.glob("*/*"), path.glob("*/*/*")), 1000)
        return (
            f". It contains pictures; to train on them: resnetkit train {shell(path)}"
            if any(is_picture_name(file.name) for file in files)
            else ""
        )
    if is_picture_name(path.name):
        return " but a picture; give the model before the pictures"
    if suffix in EXPORTED:
        return " but an exported file for other programs; give the model that it was exported from"
    if suffix in TABLES:
        return " but text; give a .safetensors file, a run folder, or NAME:WEIGHTS"
    return ""
