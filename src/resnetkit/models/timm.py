"""timm's published weights on the Hugging Face Hub: which of its networks are rows here, and what their files say."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.spec import parse_spec
from resnetkit.models.weights import Published, imagenet_classes

ARCHITECTURES = {
    **{f"resnet{layers}": f"resnet{layers}" for layers in (18, 34, 50, 101, 152)},
    **{f"resnet{layers}d": f"resnet{layers}d" for layers in (18, 34, 50, 101, 152)},
    "resnet26": "resnet50,depths=2-2-2-2",
    "resnet26d": "resnet50d,depths=2-2-2-2",
    "resnet200": "resnet50,depths=3-24-36-3",
    "resnet200d": "resnet50d,depths=3-24-36-3",
    **{f"resnet{layers}c": f"resnet{layers},stem=deep" for layers in (50, 101, 152)},
    "resnet50_gn": "resnet50_gn",
    "resnetblur18": "resnet18,blur=3",
    "resnetblur50": "resnetblur50",
    "resnetblur50d": "resnet50d,blur=3",
    "resnetblur101d": "resnet101d,blur=3",
    **{f"seresnet{layers}": f"resnet{layers},attention=se" for layers in (18, 34, 50, 101, 152)},
    "seresnet152d": "resnet152d,attention=se",
    "seresnet200d": "resnet50d,depths=3-24-36-3,attention=se",
    "seresnet269d": "resnet50d,depths=3-30-48-8,attention=se",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext50d_32x4d": "resnet50d,groups=32,width_per_group=4",
    "resnext101_32x4d": "resnext101_32x8d,width_per_group=4",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_32x16d": "resnext101_32x8d,width_per_group=16",
    "resnext101_32x32d": "resnext101_32x8d,width_per_group=32",
    "resnext101_64x4d": "resnext101_64x4d",
    "seresnext26d_32x4d": "resnet50d,depths=2-2-2-2,groups=32,width_per_group=4,attention=se",
    "seresnext50_32x4d": "resnext50_32x4d,attention=se",
    "seresnext101_32x4d": "resnext101_32x8d,width_per_group=4,attention=se",
    "seresnext101_32x8d": "resnext101_32x8d,attention=se",
    "seresnext101_64x4d": "resnext101_64x4d,attention=se",
    "seresnext101d_32x8d": "resnet101d,groups=32,width_per_group=8,attention=se",
    "wide_resnet50_2": "wide_resnet50_2",
    "wide_resnet101_2": "wide_resnet101_2",
}
"""timm's architecture -> the same network here. The tensors of all of them have the same names and shapes on both
sides; timm's pre-activation nets (resnetv2) have other names and come in with `resnetkit convert`."""


def timm_weights(repository: str) -> Published:
    """Read what `repository` (OWNER/NAME on the Hub) says of its weights; they are not downloaded yet.

    Raises UsageError for a network that is no row here or is changed in a way that no row says, DataError where the
    repository can't be had, ModelFileError for one that timm did not write.
    """
    path = fetch_from_hub(repository, "config.json")
    try:
        config = json.loads(path.read_bytes())
        architecture, cfg = config["architecture"], config["pretrained_cfg"]
        classes = int(config.get("num_classes", cfg["num_classes"]))
        channels = int(cfg["input_size"][0])
        preprocess = preprocess_of(cfg)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{repository}: {error}") from error
        raise ModelFileError(
            f"{repository} is not what timm writes ({path} lacks or breaks {error}); give a repository of timm's"
        ) from error
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"{repository} holds a {architecture}, which is no row here; these are: {', '.join(ARCHITECTURES)}. "
            f"Pre-activation nets (resnetv2) come in with resnetkit convert {WEIGHTS_FILE}"
        )
    said = [("global_pool", config.get("global_pool")), ("label_offset", cfg.get("label_offset"))]
    for name, value in [*said, *(config.get("model_args") or {}).items()]:
        if name not in ("num_classes", "in_chans") and value not in (None, 0, "", "avg"):
            raise UsageError(f"{repository} holds a {architecture} with {name}={value!r}; no row here says that")
    return Published(
        name=repository,
        spec=parse_spec(ARCHITECTURES[architecture], classes=classes, in_channels=channels),
        preprocess=preprocess,
        classes=_class_names(config.get("label_names") or cfg.get("label_names"), classes),
        source=repository.partition("/")[0],
        licence=str(cfg.get("license") or ""),
        recipe=str(cfg.get("origin_url") or ""),
        data=str(cfg.get("tag") or ""),
        metrics={},
        url=f"https://huggingface.co/{repository}",
        repository=repository,
    )


def preprocess_of(cfg: Mapping[str, Any]) -> Preprocess:
    """The preprocessing of a `pretrained_cfg`, as timm's own validation does it at the size of the training.

    Raises UsageError for what Preprocess can't say: other crops than the centre's, inputs that are not square.
    """
    channels, height, width = cfg["input_size"]
    if height != width:
        raise UsageError(f"inputs of {height}x{width} pixels; only squares can be made")
    if cfg.get("crop_mode", "center") != "center":
        raise UsageError(f"crop_mode is {cfg['crop_mode']}; only the centre can be cut")
    return Preprocess(
        size=height,
        resize=math.floor(height / cfg["crop_pct"]),
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        mode="L" if channels == 1 else "RGB",
    )


def _class_names(labels: object, classes: int) -> tuple[str, ...]:
    """The repository's own names, a list or by index; else ImageNet's for 1,000 classes; else numbers."""
    if isinstance(labels, Mapping):
        labels = [labels.get(str(index), str(index)) for index in range(classes)]
    if isinstance(labels, Sequence) and len(labels) == classes:
        return tuple(map(str, labels))
    return imagenet_classes() if classes == 1000 else tuple(map(str, range(classes)))
