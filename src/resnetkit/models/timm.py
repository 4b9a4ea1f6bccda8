"""timm's published weights on the Hugging Face Hub: the table of its networks, and reading its config.json files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.published import Published, imagenet_classes
from resnetkit.models.spec import parse_spec

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
"""timm's architecture -> the same network here; the tensors have the same names and shapes."""


PRE_ACTIVATED = {
    f"resnetv2_{layers}{deep}": f"preact_resnet{layers}{changes}"
    for layers in (18, 34, 50, 101, 152)
    for deep, changes in (("", ""), ("d", ",stem=deep,pooled_shortcut=true"))
}
"""timm's pre-activation architecture -> the same network here; their tensors have other names."""


@dataclass(frozen=True)
class TimmConfig:
    """The content of the config.json that timm writes next to its weights."""

    architecture: str
    """A name in ARCHITECTURES or PRE_ACTIVATED."""
    classes: int
    """0 for a network without a last layer."""
    channels: int
    preprocess: Preprocess | None
    """None if the file does not describe the preprocessing."""
    labels: object
    """Class names, as a list or by index; None if the file does not contain them."""
    pretrained: Mapping[str, Any]
    """The whole pretrained_cfg: licence, tag, address of the training and more."""

    @property
    def row(self) -> str:
        """The same network here, as text for `parse_spec`."""
        row = (ARCHITECTURES | PRE_ACTIVATED)[self.architecture]
        return row + (f",in_channels={self.channels}" if self.channels != 3 else "")


def parse_config(config: Mapping[str, Any], *, where: str) -> TimmConfig:
    """Read the content of a config.json of timm; `where` names the file in errors.

    Raises UsageError for a network that is not in the tables here, or has changes that they do not contain;
    ModelFileError for content that timm does not write.
    """
    try:
        architecture, cfg = config["architecture"], config.get("pretrained_cfg") or {}
        known = isinstance(architecture, str) and architecture in ARCHITECTURES | PRE_ACTIVATED
        if not known:
            rows = ", ".join(ARCHITECTURES | PRE_ACTIVATED)
            raise UsageError(f"{where} describes a {architecture}, which is not supported; supported are: {rows}")
        parsed = TimmConfig(
            architecture,
            classes=int(config.get("num_classes", cfg.get("num_classes", 1000))),
            channels=int(cfg["input_size"][0]) if "input_size" in cfg else 3,
            preprocess=preprocess_of(cfg, where=where) if "input_size" in cfg else None,
            labels=config.get("label_names") or cfg.get("label_names"),
            pretrained=cfg,
        )
        changes = [("global_pool", config.get("global_pool")), ("label_offset", cfg.get("label_offset"))]
        changes += (config.get("model_args") or {}).items()
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelFileError(
            f"{where} is not a config.json of timm (missing or wrong: {error}); give a file that timm wrote"
        ) from error
    for name, value in changes:
        if name not in ("num_classes", "in_chans") and value not in (None, 0, "", "avg"):
            raise UsageError(f"{where} describes a {architecture} with {name}={value!r}, which is not supported")
    return parsed


def timm_weights(repository: str) -> Published:
    """Return the description of the weights in `repository` (OWNER/NAME on the Hub); they are not downloaded yet.

    Raises the errors of `parse_config`, and DataError if the repository can't be reached.
    """
    path = fetch_from_hub(repository, "config.json")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON ({error}); download it again") from error
    config = parse_config(content, where=repository)
    if config.architecture in PRE_ACTIVATED:
        raise UsageError(
            f"{repository} contains a {config.architecture}, whose tensors have other names than here; download its "
            f"{WEIGHTS_FILE} and config.json into a folder, and: resnetkit convert {WEIGHTS_FILE}"
        )
    if config.preprocess is None:
        raise ModelFileError(
            f"{repository} does not describe the preprocessing (input_size in {path}); give another repository"
        )
    return Published(
        name=repository,
        spec=parse_spec(config.row, classes=config.classes),
        preprocess=config.preprocess,
        classes=_class_names(config.labels, config.classes),
        source=repository.partition("/")[0],
        licence=str(config.pretrained.get("license") or ""),
        recipe=str(config.pretrained.get("origin_url") or ""),
        data=str(config.pretrained.get("tag") or ""),
        metrics={},
        url=f"https://huggingface.co/{repository}",
        repository=repository,
    )


def preprocess_of(cfg: Mapping[str, Any], *, where: str) -> Preprocess:
    """Return the preprocessing of a `pretrained_cfg`, as in timm's validation at the size of the training.

    Raises UsageError for preprocessing that Preprocess does not support: other crops than the centre crop, inputs that
    are not square; ValueError, KeyError or TypeError for content that timm does not write.
    """
    channels, height, width = cfg["input_size"]
    if height != width:
        raise UsageError(f"{where}: inputs of {height}x{width} pixels; only square inputs are supported")
    if cfg.get("crop_mode", "center") != "center":
        raise UsageError(f"{where}: crop_mode is {cfg['crop_mode']}; only center is supported")
    resize = math.floor(height / cfg["crop_pct"])
    mean, std, mode = tuple(cfg["mean"]), tuple(cfg["std"]), "L" if channels == 1 else "RGB"
    try:
        return Preprocess(height, resize, cfg["interpolation"], mean, std, mode=mode)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _class_names(labels: object, classes: int) -> tuple[str, ...]:
    """Return the repository's class names, if it has any; else ImageNet's for 1,000 classes; else numbers."""
    if isinstance(labels, Mapping):
        labels = [labels.get(str(index), str(index)) for index in range(classes)]
    if isinstance(labels, Sequence) and len(labels) == classes:
        return tuple(map(str, labels))
    return imagenet_classes() if classes == 1000 else tuple(map(str, range(classes)))
