"""Read Keras' files, .h5 and .keras: tensors in Keras' layout, under Keras' names (`conv1_conv/kernel`)."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from resnetkit.convert.files.checks import check_expansion, parse_json
from resnetkit.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    import h5py

NUMBERED = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
"""Number of tensors in a layer -> their names. Since Keras 2.12 the file has numbers instead, in this order."""
NOT_WEIGHTS = re.compile(r"(^|/)(optimizer|optimizer_weights|_metrics|compile_metrics|metrics|seed_generator)(/|$)")
"""Names in the file of a compiled model that do not belong to its layers."""


def read_hdf5(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """Read an .h5 file: a whole model, its weights by layer name, or Keras 3's .weights.h5. See `read_keras`."""
    return read_keras(path, file, b"{}")


def read_keras(path: Path, file: BinaryIO, config: bytes) -> dict[str, Tensor]:
    """Read the HDF5 part of a .keras file. `config` is its config.json: older files have the layers' names only there.

    Returns tensors by `<layer>/<variable>`, in the dtypes of the file. Links to other files are never followed. Raises
    UsageError if h5py is not installed, ModelFileError for a broken file, and for one without names of layers.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError(f'{path} is a file of Keras and requires h5py: pip install "resnetkit[keras]"') from None
    layers = _layer_names(parse_json(path, "config.json", config))
    tensors: dict[str, Tensor] = {}
    try:
        with h5py.File(file, "r") as root:
            found = [(name, data) for name, data in _datasets(root) if not NOT_WEIGHTS.search(name)]
            check_expansion(path, sum(data.size * data.dtype.itemsize for _, data in found if data.size is not None))
            for name, data in found:
                if data.external or data.is_virtual or data.dtype.kind not in "fiu" or data.size is None:
                    raise ModelFileError(f"{path}: {name} is not a plain array in the file itself; get another file")
                key = _keras_name(path, data, layers)
                if key in tensors:
                    raise ModelFileError(
                        f"{path} has two tensors for {key}; save a file that contains only the network"
                    )
                tensors[key] = torch.from_numpy(np.array(data[()], data.dtype.newbyteorder("="), order="C"))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ModelFileError(f"{path} is not a complete HDF5 file ({said}); get the file again") from error
    return tensors


def _datasets(root: "h5py.File") -> Iterator[tuple[str, "h5py.Dataset"]]:
    """Yield every array in the file once. visititems follows neither soft links nor links to other files."""
    import h5py

    found: list[tuple[str, h5py.Dataset]] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    root.visititems(note)
    yield from found


def _keras_name(path: Path, data: "h5py.Dataset", layers: Mapping[str, str]) -> str:
    """`conv1_conv/kernel` for `model_weights/conv1_conv/conv1_conv/kernel:0` or `layers/conv2d/vars/0`."""
    *parents, name = str(data.name).strip("/").split("/")
    name = name.partition(":")[0]
    if not name.isdecimal():
        return f"{parents[-1] if parents else ''}/{name}"
    group = data.parent
    if len(parents) < 2 or parents[-1] != "vars" or len(group) not in NUMBERED or int(name) >= len(group):
        return "/".join([*parents, name])
    said = group.attrs.get("name")  # since Keras 3.8; older files have it only in the config.json of a .keras file
    layer = said if isinstance(said, str) else layers.get(parents[-2])
    if layer is None:
        raise ModelFileError(
            f"{path} was written by an older Keras and does not name its layers; "
            "load it in Keras, and save it as .keras or .h5"
        )
    return f"{layer}/{NUMBERED[len(group)][int(name)]}"


def _layer_names(config: Any) -> dict[str, str]:
    """Return, from the content of a config.json: name of a group of variables -> name of the layer.

    Group names are the layers' classes with a count, in the order of the layers: conv2d, conv2d_1, batch_normalization.
    """
    names: dict[str, str] = {}
    seen: Counter[str] = Counter()
    layers = config.get("config", {}).get("layers", []) if isinstance(config, dict) else []
    for layer in layers if isinstance(layers, list) else []:
        try:
            kind, name = str(layer["class_name"]), str(layer["config"]["name"])
        except (TypeError, KeyError):
            continue
        kind = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", kind).lower().replace("conv2_d", "conv2d")
        names[f"{kind}_{seen[kind]}" if seen[kind] else kind] = name
        seen[kind] += 1
    return names
