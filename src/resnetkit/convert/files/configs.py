"""Read the config.json in the folder of a file of weights: it distinguishes v1 from v1.5, which tensors can't do."""

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
"""Names of interpolations; a preprocessor_config.json contains Pillow's number, which is the index."""
WARPED_FROM = 384
"""For sizes of at least this many pixels, transformers resizes the whole picture to a square, without a crop."""


@dataclass(frozen=True)
class Facts:
    """The facts in the files beside the weights. Unknown facts are None or empty."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Known fields of the network's spec, with their values."""
    who: str = ""
    """Name of the project and architecture, for people; empty if the tensor names tell as much."""
    model: str | None = None
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None
    silent: bool = True
    """Whether no file describes the preprocessing. The project's usual preprocessing can then be assumed."""


def transformers_facts(weights: Path, classes: int | None) -> Facts:
    """Return the facts in the config.json and preprocessor_config.json of transformers; empty without a config.json.

    `classes` is the number of classes in the file `weights`. Raises UsageError for a network that no spec describes and
    for another number of classes, ModelFileError for a broken file.
    """
    path = weights.with_name("config.json")
    config = _read(path)
    if config.get("model_type") != "resnet":
        return Facts()  # there is no config.json, or it belongs to another file in the folder
    if config.get("hidden_act", "relu") != "relu" or config.get("downsample_in_first_stage"):
        raise UsageError(
            f"{path} describes a network with another activation or an early stride; no network here has these"
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
    """Return the facts in timm's config.json; empty without one.

    `classes` is the number of classes in the file `weights`. Raises UsageError for another number of classes, and the
    errors of `timm.parse_config`.
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
    """Return the fields of a spec, except fields that can change while the weights stay the same."""
    free = ("classes", "dilated", "drop_path", "norm")
    return {name: value for name, value in vars(spec).items() if name not in free}


def _read(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; {} if there is no file, or no object in it."""
    if not path.is_file():
        return {}
    try:
        config = parse_json(path, "content", path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}") from error
    return config if isinstance(config, dict) else {}


def _same_classes(path: Path, said: int, inside: int | None) -> None:
    if inside is not None and said != inside:
        raise UsageError(
            f"{path} has {said:,} classes, but the weights beside it have {inside:,}: they don't belong together"
        )


def _of_processor(config: Mapping[str, Any]) -> Preprocess | None:
    """Return the preprocessing of a ConvNextImageProcessor, as transformers' ResNets use it; None for others."""
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
