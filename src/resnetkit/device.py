"""The choice of device and precision, if they are `auto`."""

import torch

from resnetkit.errors import UsageError
from resnetkit.precision import multiplies_bfloat16


def choose_device(device: str) -> torch.device:
    """Return the device for auto, cpu or cuda; auto is a GPU if there is one, else the CPU.

    Raises UsageError for another device, and for cuda without a GPU that torch can use.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"`device` is {device!r}; choose one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("`device` is cuda, and this machine has no GPU that torch can use; give `device` cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the precision for auto, float32 or bfloat16; auto is bfloat16 if the hardware multiplies it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = multiplies_bfloat16(torch.cpu.get_capabilities())
    return "bfloat16" if fast else "float32"
