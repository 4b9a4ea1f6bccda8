"""What a config.json beside a file of weights says of the network: tensors can't tell a v1 network from a v1.5 one."""

from pathlib import Path
from typing import Any

from resnetkit.convert.readers import parse_json
from resnetkit.errors import ModelFileError, UsageError


def transformers_facts(weights: Path) -> dict[str, Any]:
    """Fields of the spec from the config.json that transformers writes beside its weights; none where there is none.

    Raises UsageError for a network that no spec describes, ModelFileError for a broken file.
    """
    path = weights.with_name("config.json")
    if not path.is_file():
        return {}
    try:
        config = parse_json(path, "content", path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}") from error
    if not isinstance(config, dict) or config.get("model_type") != "resnet":
        return {}  # of something else that lies in the same folder
    if config.get("hidden_act", "relu") != "relu" or config.get("downsample_in_first_stage"):
        raise UsageError(
            f"{path} describes a network with another activation or an early stride, which no row here has"
        )
    return {"downsample_in": "1x1" if config.get("downsample_in_bottleneck") else "3x3"}
