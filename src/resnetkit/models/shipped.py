"""The model files in this package. They were trained with it, and need no download."""

import json
from pathlib import Path
from typing import Any

from resnetkit.files import HEADER_KEY

FOLDER = Path(__file__).parent / "packaged"
"""The folder of these files, NETWORK-DATA.safetensors. For example, resnet20-cifar10 is the model resnet20:cifar10."""


def shipped(network: str) -> dict[str, Path]:
    """Return the package's model files for a row of SPECS, by the name of their weights; empty if it has no files."""
    files = sorted(FOLDER.glob(f"{network}-*.safetensors"))
    return {path.stem.removeprefix(f"{network}-"): path for path in files}


def shipped_names() -> list[str]:
    """Return the names of all models in the package: ["resnet20:cifar10", ...]."""
    return sorted(path.stem.replace("-", ":", 1) for path in FOLDER.glob("*-*.safetensors"))


def read_about(path: Path) -> dict[str, Any]:
    """Return the header of a model file as JSON values, without checks and without reading the weights.

    It is for the files in this package only. `modelfile.inspect` checks other files; it needs NumPy, which is slow to
    import.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")  # a .safetensors file begins with its header's length
        return json.loads(json.loads(file.read(length))["__metadata__"][HEADER_KEY])
