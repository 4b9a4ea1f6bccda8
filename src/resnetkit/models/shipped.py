"""The models that come with this package. They were trained here, and need no download."""

import json
from pathlib import Path
from typing import Any

from resnetkit.files import HEADER_KEY

FOLDER = Path(__file__).parent / "packaged"
"""Model files by the name NETWORK-DATA.safetensors, such as resnet20-cifar10: the weights `resnet20:cifar10`."""


def shipped(network: str) -> dict[str, Path]:
    """The model files of a row of SPECS in the package, by the name of their weights; empty where there are none."""
    files = sorted(FOLDER.glob(f"{network}-*.safetensors"))
    return {path.stem.removeprefix(f"{network}-"): path for path in files}


def shipped_names() -> list[str]:
    """Every model in the package, as MODEL takes it: ["resnet20:cifar10", ...]."""
    return sorted(path.stem.replace("-", ":", 1) for path in FOLDER.glob("*-*.safetensors"))


def read_about(path: Path) -> dict[str, Any]:
    """What a model file that is known to be sound says of itself, as JSON has it; its weights are not read.

    `modelfile.inspect` checks what it reads, for which it needs NumPy.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")  # so begins a .safetensors file
        return json.loads(json.loads(file.read(length))["__metadata__"][HEADER_KEY])
