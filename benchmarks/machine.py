"""What a figure was measured on: a line for the head of every benchmark's output."""

import platform
from importlib.metadata import version

import torch

from resnetkit.machine import read_machine


def describe() -> str:
    """Processor, cores, memory, instructions that matter here, threads and versions."""
    return (
        f"{read_machine().summary()}, {torch.get_num_threads()} threads; "
        f"torch {version('torch')}, torchvision {version('torchvision')}, Python {platform.python_version()}"
    )
