"""What a figure was measured on: a line for the head of every benchmark's output."""

import platform
from importlib.metadata import version

import torch


def describe() -> str:
    """Processor, cores, instructions that matter here, and versions."""
    capabilities = torch.cpu.get_capabilities()
    fast = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    have = ", ".join(name for name in fast if capabilities.get(name))
    return (
        f"{capabilities.get('cpu_name', platform.processor())}, {torch.get_num_threads()} threads ({have}); "
        f"torch {version('torch')}, torchvision {version('torchvision')}, Python {platform.python_version()}"
    )
