"""Published weights: which there are, what is known of them, and how they come into a network.

torchvision's own metadata says where its weights are, their hash, accuracy and preprocessing; nothing of it is repeated
here. It is imported when weights are asked for, since that takes seconds. timm's are in `models.timm`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetkit.data.published.download import fetch
from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.display import type_of
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import cache_folder
from resnetkit.models.shipped import shipped, shipped_names
from resnetkit.models.spec import ModelSpec, parse_spec

if TYPE_CHECKING:
    from torch import Tensor

    from resnetkit.models.resnet import ResNet

IN_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Networks that torchvision has weights of: known beforehand, so that asking for another takes no seconds."""
COUNTER = "num_batches_tracked"
VARIANCES = ("running_var", "moving_variance")  # as PyTorch and Keras call them


@dataclass(frozen=True)
class Published:
    """Weights that somebody published, and what is known of them without having them."""

    name: str
    """As `weights=` takes it: IMAGENET1K_V2, or timm/resnet50.a1_in1k."""
    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    source: str
    """Whose they are."""
    licence: str
    """What the source says; empty where it says nothing."""
    recipe: str
    """Address where the training is described; empty where none is known."""
    data: str
    """What they were trained on."""
    metrics: Mapping[str, float]
    """Errors that the source reports, in percent, on one centre crop."""
    url: str
    """Where the file is; where it is on the Hub, its page."""
    sha256: str = ""
    """First hex digits of the file's SHA-256; a repository's files are checked by the Hub's own."""
    megabytes: float | None = None
    """Size of the file, in 10^6 bytes."""
    repository: str = ""
    """OWNER/NAME on the Hugging Face Hub; empty for what is elsewhere."""

    def about(self) -> dict[str, Any]:
        """Where they come from, for a model file's header."""
        known = {name: getattr(self, name) for name in ("source", "licence", "recipe", "url")}
        return {"weights": self.name} | {name: value for name, value in known.items() if value}


def published(network: str) -> dict[str, Published]:
    """Return torchvision's weights of a row of SPECS, by name, the oldest first; empty where it has none.

    Raises UsageError for an unknown network.
    """
    spec = parse_spec(network)
    if network not in IN_TORCHVISION:
        return {}
    from torchvision.models import get_model_weights

    return {entry.name: _of_torchvision(spec, entry) for entry in get_model_weights(network)}


def find_weights(network: str, weights: object) -> Published:
    """Return the published weights of `network` that `weights` names.

    `weights` is a name in `published(network)`, "DEFAULT" (torchvision's choice, the most accurate), a member of
    torchvision's enumeration, or a repository of timm's on the Hugging Face Hub. Raises UsageError with what there is.
    """
    if isinstance(weights, str) and (Path(weights).is_file() or weights.endswith((".pth", ".pt", ".safetensors"))):
        raise UsageError(f"{weights} is a file: open it with resnetkit.load, after resnetkit convert if it is not ours")
    if isinstance(weights, str) and "/" in weights:
        weights = weights.removeprefix("hf:")
        from resnetkit.models.timm import timm_weights

        return _fitting(network, timm_weights(weights))
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
    """What a constructor's arguments ask for; `pretrained` means torchvision's first weights, there and here."""
    if not isinstance(pretrained, bool):
        raise UsageError(
            f"{network}: pretrained is {pretrained!r}; it takes true or false. Give weights={pretrained!r}"
        )
    if pretrained and weights is not None:
        raise UsageError(f"{network}: pretrained and weights both say what to load; give weights alone")
    if pretrained:
        return find_weights(network, "IMAGENET1K_V1")
    return None if weights is None else find_weights(network, weights)


def known_file(sha256: str) -> tuple[str, Published] | None:
    """The network and the weights of torchvision whose file has this SHA-256 (64 hex digits); None for any other."""
    for network in IN_TORCHVISION:
        for row in published(network).values():
            if sha256.startswith(row.sha256):
                return network, row
    return None


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1,000 class names as torchvision gives them, in the order that every published weight has."""
    return published("resnet18")["IMAGENET1K_V1"].classes


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
    if wrong := _wrong_names(net, tensors):
        raise ModelFileError(f"{weights.name} does not fit: {'; '.join(wrong)}. Get the file anew")
    fill(net, tensors, source=weights.name)


def fill(net: "ResNet", tensors: Mapping[str, "Tensor"], *, source: str) -> None:
    """Put `tensors`, which fit, into `net`, as its own types; a net on the meta device takes them over.

    Raises ModelFileError, with `source`, where a number can't be one of a network: see `wrong_values`.
    """
    for name, tensor in tensors.items():
        if wrong := wrong_values(name, tensor):
            raise ModelFileError(f"{source}: {name} holds {wrong}; get weights that are whole")
    types = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    # Cloned: a file's tensors lie at addresses at which some kernels round otherwise than where torch puts its own.
    own = {
        name: tensor.detach().to(types.get(name, tensor.dtype)).clone().contiguous() for name, tensor in tensors.items()
    }
    net.load_state_dict(own, assign=next(net.parameters()).is_meta)


def wrong_values(name: str, tensor: "Tensor") -> str:
    """What a tensor holds that no network can compute with: "numbers that are not finite"; empty where all is well.

    That is also whole numbers, but for counters, and variances below 0, of which the root is not a number.
    """
    if COUNTER in name:
        return ""
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    if not tensor.float().isfinite().all():
        return "numbers that are not finite"
    if name.endswith(VARIANCES) and tensor.numel() and tensor.float().min() < 0:
        return "variances below 0"
    return ""


def _wrong_names(net: "ResNet", tensors: Mapping[str, Any]) -> list[str]:
    """What is missing, left over or of another shape; but for counters, which some normalisations have and some not."""
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    kinds = {
        "missing": [name for name in expected if name not in tensors],
        "too many": [name for name in tensors if name not in expected],
        "of another shape": [
            name for name, shape in expected.items() if name in tensors and getattr(tensors[name], "shape", ()) != shape
        ],
    }
    kinds = {kind: [name for name in names if not name.endswith(COUNTER)] for kind, names in kinds.items()}
    return [f"{len(names)} tensors {kind}, first {names[0]}" for kind, names in kinds.items() if names]


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
    """The weights, if they are of that network, whatever its classes."""
    if replace(parse_spec(network), classes=1) != replace(weights.spec, classes=1):
        raise UsageError(f"{weights.name} holds no {network}; load it as hf:{weights.name}")
    return weights


def _of_torchvision(spec: ModelSpec, entry: Any) -> Published:
    """A row from a member of one of torchvision's enumerations."""
    meta, transforms = entry.meta, entry.transforms()
    (data, accuracies), *_ = meta["_metrics"].items()
    return Published(
        name=entry.name,
        spec=replace(spec, classes=len(meta["categories"])),
        preprocess=Preprocess(
            size=transforms.crop_size[0],
            resize=transforms.resize_size[0],
            interpolation=transforms.interpolation.value,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
        ),
        classes=tuple(meta["categories"]),
        source="torchvision",
        licence="BSD-3-Clause (torchvision); terms of the data may apply",  # so says its README
        recipe=meta["recipe"],
        data=data,
        metrics={
            "top1_error_percent": round(100 - accuracies["acc@1"], 3),
            "top5_error_percent": round(100 - accuracies["acc@5"], 3),
        },
        url=entry.url,
        # resnet50-11ad3fa6.pth: torchvision's file names end with the first digits of their SHA-256.
        sha256=entry.url.rpartition("-")[2].removesuffix(".pth"),
        megabytes=meta["_file_size"] * 1.048576,
    )
