"""Published weights into a network: found by name, downloaded, checked, and refused where they do not fit."""

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
    torchvision's enumeration, or a repository of timm's on the Hugging Face Hub. Raises UsageError with what there is.
    """
    if isinstance(weights, str) and (Path(weights).is_file() or weights.endswith((".pth", ".pt", ".safetensors"))):
        raise UsageError(f"{weights} is a file: open it with resnetkit.load, after resnetkit convert if it is not ours")
    if isinstance(weights, str) and "/" in weights:
        return _fitting(network, timm_weights(weights.removeprefix(HUB)))
    known = published(network)
    if not known:
        asked = "" if weights == "DEFAULT" else f" {weights!s}"
        own = [f"{network}:{name}" for name in shipped(network)] or shipped_names()
        ours = f"this package brings {', '.join(own)}, " if own else ""
        raise UsageError(
            f"{network} has no published weights{asked}; {ours}torchvision has some of {', '.join(IN_TORCHVISION)}, "
            f"and timm more, such as hf:timm/resnet50.a1_in1k"
        )
    if isinstance(weights, str):
        from torchvision.models import get_model_weights

        name = get_model_weights(network)["DEFAULT"].name if weights == "DEFAULT" else weights
        if name in known:
            return known[name]
    else:  # a member of an enumeration; its address tells whether it is one of this network
        for row in known.values():
            if row.url == getattr(weights, "url", None):
                return row
    near = get_close_matches(str(weights).upper(), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near and isinstance(weights, str) else "."
    raise UsageError(f"{network} has no weights {weights!s}{hint} It has {', '.join(known)}")


def chosen_weights(network: str, *, pretrained: bool, weights: object) -> Published | None:
    """The weights that a constructor's arguments ask for; `pretrained` means torchvision's first ones, as there."""
    if not isinstance(pretrained, bool):
        raise UsageError(
            f"{network}: `pretrained` is {pretrained!r}; it takes true or false. Give `weights`={pretrained!r}"
        )
    if pretrained and weights is not None:
        raise UsageError(f"{network}: `pretrained` and `weights` both say what to load; give `weights` alone")
    if pretrained:
        return find_weights(network, "IMAGENET1K_V1")
    return None if weights is None else find_weights(network, weights)


def check_fits(spec: ModelSpec, weights: Published) -> None:
    """Raise UsageError, before anything is downloaded, where a network can't take these weights.

    Dilation changes no tensor, so it may differ.
    """
    if spec.classes != weights.spec.classes:
        raise UsageError(
            f"{weights.name} has {weights.spec.classes} classes, not {spec.classes}. Load it with all of them and put "
            f"a new fc in its place, or fine-tune with resnetkit train DATA --init"
        )
    if replace(spec, dilated=()) != replace(weights.spec, dilated=()):
        differing = [name for name, value in vars(spec).items() if value != getattr(weights.spec, name)]
        raise UsageError(
            f"{weights.name} is for another network: {', '.join(differing)} differ; leave them as they are"
        )


def load_published(net: "ResNet", weights: Published, *, progress: bool = True) -> None:
    """Put published weights into `net`, downloaded and checked first unless they are in the cache; all must fit.

    Raises UsageError where the network is another one, DataError for a failed download, ModelFileError for a broken
    file.
    """
    check_fits(net.spec, weights)
    tensors = _tensors(weights, progress=progress)
    if misfit := compare(without_counters(net.state_dict()), without_counters(tensors)):
        raise ModelFileError(f"{weights.name} does not fit: {misfit}. Get the file anew")
    fill(net, tensors, source=weights.name)


def _tensors(weights: Published, *, progress: bool) -> "Mapping[str, Tensor]":
    if weights.repository:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = fetch_from_hub(weights.repository, WEIGHTS_FILE)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ModelFileError(f"{path} is not a whole .safetensors file ({error}); get it anew") from error
    from pickle import UnpicklingError

    import torch

    path = cache_folder() / "weights" / weights.url.rpartition("/")[2]
    fetch(weights.url, path, sha256=weights.sha256, progress=progress)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelFileError(f"{path} holds no weights that torch can read without running code: {reason}") from error
    if not isinstance(tensors, Mapping):
        raise ModelFileError(f"{path} holds {type_of(tensors)}, not tensors by name")
    return tensors


def _fitting(network: str, weights: Published) -> Published:
    """Return the weights if they are of that network, whatever its number of classes. Raises UsageError."""
    if replace(parse_spec(network), classes=1) != replace(weights.spec, classes=1):
        raise UsageError(f"{weights.name} holds no {network}; load it as {HUB}{weights.name}")
    return weights
