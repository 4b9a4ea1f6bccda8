"""Weights that others publish, described before they are downloaded, and the list of those of torchvision.

torchvision's own metadata contains the address, hash, accuracy and preprocessing of its weights, so they are not
repeated here. torchvision is imported only when its weights are requested, since the import takes seconds. timm's
weights are in `models.timm`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.models.spec import ModelSpec, parse_spec

IN_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Networks for which torchvision has weights. They are listed here, since importing torchvision takes seconds."""


@dataclass(frozen=True)
class Published:
    """Published weights, described before they are downloaded."""

    name: str
    """Name for the argument `weights`: IMAGENET1K_V2, or timm/resnet50.a1_in1k."""
    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    source: str
    """Publisher of the weights."""
    licence: str
    """Licence that the source states; empty if it states no licence."""
    recipe: str
    """Address of a description of the training; empty if it is not known."""
    data: str
    """Name of the training data."""
    metrics: Mapping[str, float]
    """Errors that the source reports, in percent, on one centre crop."""
    url: str
    """Address of the file, or of the repository's page on the Hub."""
    sha256: str = ""
    """First hex digits of the file's SHA-256; empty for a repository, whose files the Hub's client checks."""
    megabytes: float | None = None
    """Size of the file, in 10^6 bytes."""
    repository: str = ""
    """OWNER/NAME on the Hugging Face Hub; empty for weights elsewhere."""

    def origin(self) -> dict[str, str]:
        """Return the origin of the weights for the header of a model file; entries that are empty are left out."""
        known = {name: getattr(self, name) for name in ("source", "licence", "recipe", "url")}
        return {"weights": self.name} | {name: value for name, value in known.items() if value}


def published(network: str) -> dict[str, Published]:
    """Return torchvision's weights for a row of SPECS, by name, the oldest first; empty if torchvision has no weights.

    Raises UsageError for an unknown network.
    """
    spec = parse_spec(network)
    if network not in IN_TORCHVISION:
        return {}
    from torchvision.models import get_model_weights

    return {entry.name: _of_torchvision(spec, entry) for entry in get_model_weights(network)}


def known_file(sha256: str) -> tuple[str, Published] | None:
    """Return the network and the weights of torchvision whose file has this SHA-256 (64 hex digits), or None."""
    for network in IN_TORCHVISION:
        for row in published(network).values():
            if sha256.startswith(row.sha256):
                return network, row
    return None


def imagenet_classes() -> tuple[str, ...]:
    """Return torchvision's 1,000 class names of ImageNet, in the order of the logits of all published weights."""
    return published("resnet18")["IMAGENET1K_V1"].classes


def _of_torchvision(spec: ModelSpec, entry: Any) -> Published:
    """Return the description of a member of one of torchvision's enumerations."""
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
        licence="BSD-3-Clause (torchvision); terms of the data may apply",  # according to its README
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
