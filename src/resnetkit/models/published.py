"""Weights that others publish: what is known of them without having them, and which ones torchvision has.

torchvision's own metadata says where its weights are, their hash, accuracy and preprocessing; nothing of it is repeated
here. torchvision is imported when its weights are asked for, since that takes seconds. timm's are in `models.timm`.
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
"""Networks that torchvision has weights of; listed here, since importing torchvision to ask takes seconds."""


@dataclass(frozen=True)
class Published:
    """Weights that somebody published, and what is known of them before they are downloaded."""

    name: str
    """As `weights=` takes it: IMAGENET1K_V2, or timm/resnet50.a1_in1k."""
    spec: ModelSpec
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Class names, in the order of the logits."""
    source: str
    """Who published them."""
    licence: str
    """What the source says; empty where it says nothing."""
    recipe: str
    """Address where the training is described; empty where none is known."""
    data: str
    """What they were trained on."""
    metrics: Mapping[str, float]
    """Errors that the source reports, in percent, on one centre crop."""
    url: str
    """Address of the file; for a repository on the Hub, of its page."""
    sha256: str = ""
    """First hex digits of the file's SHA-256; a repository's files are checked by the Hub's own."""
    megabytes: float | None = None
    """Size of the file, in 10^6 bytes."""
    repository: str = ""
    """OWNER/NAME on the Hugging Face Hub; empty for what is elsewhere."""

    def origin(self) -> dict[str, str]:
        """Where they come from, as the header of a model file has it; without what is not known."""
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
