"""Loading published weights into a network: finding them by name, downloading them, and checking that they fit."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from resnetkit.data.published.download import fetch
from resnetkit.data.published.huggingface import HUB, WEIGHTS_FILE, fetch_from_hub
from resnetkit.display import type_of
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import cache_folder
from resnetkit.models.published import IN_TORCHVISION, Published, published
from resnetkit.models.shipped import shipped, shipped_names
from resnetkit.models.spec import ModelSpec, parse_spec
from resnetkit.models.tensors import compare, fill, without_counters
from resnetkit.models.timm import timm_weights

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.models.resnet import ResNet


def find_weights(network: str, weights: object) -> Published:
    """Return the published weights of `network` that `weights` names.

    `weights` is a name in `published(network)`, "DEFAULT" (torchvision's choice, the most accurate), a member of
    torchvision's enumeration, or a repository of timm's on the Hugging Face Hub. Raises UsageError, which lists the
    available weights, if there are none with this name.
    """
    if isinstance(weights, str) and (Path(weights).is_file() or weights.endswith((".pth", ".pt", ".safetensors"))):
        raise UsageError(
            f"{weights} is a file: open a model file with resnetkit.load, and convert others first (resnetkit convert)"
        )
    if isinstance(weights, str) and "/" in weights:
        return _fitting(network, timm_weights(weights.removeprefix(HUB)))
    known = published(network)
    if not known:
        asked = "" if weights == "DEFAULT" else f" {weights!s}"
        own = [f"{network}:{name}" for name in shipped(network)] or shipped_names()
        ours = f"this package contains {', '.join(own)}, " if own else ""
        raise UsageError(
            f"{network} has no published weights{asked}; {ours}torchvision has weights for "
            f"{', '.join(IN_TORCHVISION)}, and timm has more, such as hf:timm/resnet50.a1_in1k"
        )
    if isinstance(weights, str):
        from torchvision.models import get_model_weights

        name = get_model_weights(network)["DEFAULT"].name if weights == "DEFAULT" else weights
        if name in known:
            return known[name]
    else:  # a member of an enumeration; it belongs to this network if its address does
        for row in known.values():
            if row.url == getattr(weights, "url", None):
                return row
    near = get_close_matches(str(weights).upper(), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near and isinstance(weights, str) else "."
    raise UsageError(f"{network} has no weights {weights!s}{hint} It has {', '.join(known)}")


def chosen_weights(network: str, *, pretrained: bool, weights: object) -> Published | None:
    """Return the weights that a constructor's arguments name, or None.

    `pretrained` means IMAGENET1K_V1, as in torchvision. Raises UsageError if the arguments are wrong or contradict each
    other.
    """
    if not isinstance(pretrained, bool):
        raise UsageError(
            f"{network}: `pretrained` is {pretrained!r}; it takes true or false. Give `weights`={pretrained!r}"
        )
    if pretrained and weights is not None:
        raise UsageError(f"{network}: `pretrained` and `weights` both name weights; give only `weights`")
    if pretrained:
        return find_weights(network, "IMAGENET1K_V1")
    return None if weights is None else find_weights(network, weights)


def check_fits(spec: ModelSpec, weights: Published) -> None:
    """Raise UsageError if these weights do not fit the network of `spec`; it is called before a download.

    Dilation may differ, since it changes no tensor.
    """
    if spec.classes != weights.spec.classes:
        raise UsageError(
            f"{weights.name} has {weights.spec.classes} classes, not {spec.classes}. Load it with all of them and "
            f"replace the layer fc, or fine-tune with resnetkit train DATA --init"
        )
    if replace(spec, dilated=()) != replace(weights.spec, dilated=()):
        differing = [name for name, value in vars(spec).items() if value != getattr(weights.spec, name)]
        raise UsageError(
            f"{weights.name} is for another network: {', '.join(differing)} differ; do not change these fields"
        )


def load_published(net: "ResNet", weights: Published, *, progress: bool = True) -> None:
    """Put published weights into `net`; they are downloaded and checked unless they are in the cache.

    Raises UsageError if they are for another network, DataError for a failed download, ModelFileError for a broken
    file.
    """
    check_fits(net.spec, weights)
    tensors = _tensors(weights, progress=progress)
    if misfit := compare(without_counters(net.state_dict()), without_counters(tensors)):
        raise ModelFileError(f"{weights.name} does not fit: {misfit}. Download the file again")
    fill(net, tensors, source=weights.name)


def _tensors(weights: Published, *, progress: bool) -> "Mapping[str, Tensor]":
    if weights.repository:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = fetch_from_hub(weights.repository, WEIGHTS_FILE)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelFileError(f"{path} is not a whole .safetensors file ({error}); download it again") from error
    from pickle import UnpicklingError

    import torch

    path = cache_folder() / "weights" / weights.url.rpartition("/")[2]
    fetch(weights.url, path, sha256=weights.sha256, progress=progress)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(
            f"{path} contains no weights that torch can read without running code: {reason}"
        ) from error
    if not isinstance(tensors, Mapping):
        raise ModelFileError(f"{path} contains {type_of(tensors)}, not tensors by name")
    return tensors


def _fitting(network: str, weights: Published) -> Published:
    """Return `weights`. Raises UsageError if they are for another network; the number of classes may differ."""
    if replace(parse_spec(network), classes=1) != replace(weights.spec, classes=1):
        raise UsageError(f"{weights.name} does not contain a {network}; load it as {HUB}{weights.name}")
    return weights
