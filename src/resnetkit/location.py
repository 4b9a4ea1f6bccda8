"""What MODEL names, and where it is: a model file, a run folder, NAME[:WEIGHTS] or hf:OWNER/NAME. Read by `modelfile`.

Nothing is opened or downloaded here, and neither torch nor torchvision is imported.
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
"""Names of the model file in a folder, in the order in which they are looked for: a run's, and what to_hub writes."""
EXPORTED = (".onnx", ".xml", ".pt2")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".txt")


@dataclass(frozen=True)
class LocalFile:
    """A model file on this disk."""

    name: str
    """As MODEL was written."""
    path: Path
    shipped: bool = False
    """Whether it comes with this package: MODEL is NAME:WEIGHTS then."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of a row of SPECS that torchvision or timm publishes. Whether there are such weights is not known yet."""

    network: str
    """The row of SPECS."""
    weights: str
    """IMAGENET1K_V2, DEFAULT, or a repository of timm's: OWNER/NAME, which may begin with hf:."""

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
    """A repository on the Hugging Face Hub. Its files say whether it holds a model file or weights of timm's."""

    repository: str
    """OWNER/NAME."""

    @property
    def name(self) -> str:
        """hf:OWNER/NAME."""
        return HUB + self.repository


Located: TypeAlias = LocalFile | PublishedWeights | HubRepository


def locate(model: str | Path) -> Located:
    """Find out what MODEL names; what exists as a file or a folder is that, whatever its name.

    A folder is the first of IN_FOLDERS in it. Raises ModelFileError where there is nothing, with what was probably
    meant.
    """
    path = expanded(model)
    if not is_utf8(str(path)):  # safetensors, OpenVINO and ONNX Runtime open no other
        raise ModelFileError(f"{path}: the name {wrong_name('; rename it')}")
    if path.is_dir():
        if file := file_in(path):
            return LocalFile(str(model), file)
        raise ModelFileError(f"{path} holds no model file; expected {path}/{IN_FOLDERS[0]}{what_else(path)}")
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
    """The model file of a folder: of a run its best one. None where it has none."""
    return next((folder / name for name in IN_FOLDERS if (folder / name).is_file()), None)


def short_name(name: str | Path) -> str:
    """What a file may say of where a data set or first weights were: the last name of a path, and not where it was.

    A model file of a run has its run's name, too. Names that are no paths stay as they are.
    """
    if str(name).startswith(HUB):
        return str(name)
    path = Path(name).absolute()  # "." has a last name, too
    if path.name == "..":
        path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name in IN_FOLDERS else path.name or str(name)


def what_else(path: Path) -> str:
    """The rest of an error about a path that holds no model: what it is instead, and the mend; empty if not known."""
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
