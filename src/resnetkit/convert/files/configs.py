"""What a config.json beside a file of weights says of the network: tensors can't tell a v1 network from a v1.5 one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetkit.convert.files.checks import parse_json
from resnetkit.convert.presets import names_in
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.spec import ModelSpec, parse_spec
from resnetkit.models.timm import parse_config

RESAMPLINGS = ("nearest", "lanczos", "bilinear", "bicubic")
"""Names by Pillow's numbers, which a preprocessor_config.json has."""
WARPED_FROM = 384
"""From this size in pixels on, transformers' image processor resizes the whole picture to a square, without a crop."""


@dataclass(frozen=True)
class Facts:
    """What the files beside weights say; None or empty for what they don't."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network's spec."""
    who: str = ""
    """Whose weights they are, for people, where the file says more than the names of the tensors."""
    model: str | None = None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    silent: bool = True
    """Whether nothing says how pictures are prepared, so that the project's usual way may be assumed."""


def transformers_facts(weights: Path, classes: int | None) -> Facts:
    """What transformers writes beside its weights, a config.json and a preprocessor_config.json; empty without them.

    `classes` is what the file of weights has. Raises UsageError for a network that no spec describes or other classes,
    ModelFileError for a broken file.
    """
    path = weights.with_name("config.json")
    config = _read(path)
    if config.get("model_type") != "resnet":
        return Facts()  # of something else that lies in the same folder, or nothing
    if config.get("hidden_act", "relu") != "relu" or config.get("downsample_in_first_stage"):
        raise UsageError(
            f"{path} describes a network with another activation or an early stride, which no row here has"
        )
    labels = config.get("id2label")
    names = names_in(labels, where=str(path)) if labels else None
    if names:
        _same_classes(path, len(names), classes)
    processor = weights.with_name("preprocessor_config.json")
    return Facts(
        {"downsample_in": "1x1" if config.get("downsample_in_bottleneck") else "3x3"},
        preprocess=_of_processor(_read(processor)),
        classes=names,
        silent=not processor.is_file(),
    )


def timm_facts(weights: Path, classes: int | None) -> Facts:
    """What the config.json that timm writes beside its weights says; empty without one.

    `classes` is what the file of weights has. Raises UsageError for other classes, and what `timm.parse_config` raises.
    """
    path = weights.with_name("config.json")
    content = _read(path)
    if "architecture" not in content:
        return Facts()
    config = parse_config(content, where=str(path))
    if config.classes:  # without a last layer there is nothing to compare
        _same_classes(path, config.classes, classes)
    names = names_in(config.labels, where=str(path)) if config.labels else None
    if names:
        _same_classes(path, len(names), classes)
    return Facts(
        identity(parse_spec(config.row)),
        f"timm {config.architecture}",
        config.row,
        config.preprocess,
        names,
        silent=config.preprocess is None,
    )


def identity(spec: ModelSpec) -> dict[str, Any]:
    """The fields of a spec without those that may change while the weights stay the same."""
    free = ("classes", "dilated", "drop_path", "norm")
    return {name: value for name, value in vars(spec).items() if name not in free}


def _read(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is no file, or no object in it."""
    if not path.is_file():
        return {}
    try:
        config = parse_json(path, "content", path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}") from error
    return config if isinstance(config, dict) else {}


def _same_classes(path: Path, said: int, inside: int | None) -> None:
    if inside is not None and said != inside:
        raise UsageError(f"{path} says {said:,} classes and the weights beside it have {inside:,}; they don't belong")


def _of_processor(config: Mapping[str, Any]) -> Preprocess | None:
    """The preprocessing of transformers' ConvNextImageProcessor, which its residual networks have; None for others."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    steps = all(config.get(step, True) is True for step in ("do_resize", "do_normalize", "do_rescale"))
    try:
        size = config["size"]
        size = size["shortest_edge"] if isinstance(size, dict) else size
        if not kind.startswith("ConvNext") or not steps or size >= WARPED_FROM:
            return None
        if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            return None
        return Preprocess(
            size=size,
            resize=int(size / config.get("crop_pct", 224 / 256)),
            interpolation=RESAMPLINGS[config.get("resample", 2)],  # pyrefly: ignore
            mean=tuple(config["image_mean"]),
            std=tuple(config["image_std"]),
        )
    except (UsageError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError, OverflowError):
        return None
