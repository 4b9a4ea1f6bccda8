"""A description of the machine and software, for the head of every benchmark's output."""

import os
import platform
from importlib.metadata import version

import torch

from resnetkit.machine import read_machine

LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "RESNETKIT_KERNELS")
"""Variables that keep libraries from using all instructions of the processor."""


def describe() -> str:
    """Return one line: processor, cores, memory, instructions that matter for networks, threads and versions.

    It names the LIMITS that are set: then the processor has more instructions than were used.
    """
    limits = ", ".join(f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ)
    return (
        f"{read_machine().summary()}, {torch.get_num_threads()} threads{limits and f', limited by {limits}'}; "
        f"torch {version('torch')}, torchvision {version('torchvision')}, Python {platform.python_version()}"
    )
