"""A description of the machine and software, for the head of every benchmark's output."""

import platform
from importlib.metadata import version

import torch

from resnetkit.machine import read_machine


def describe() -> str:
    """Return one line: processor, cores, memory, instructions that matter for networks, threads and versions."""
    return (
        f"{read_machine().summary()}, {torch.get_num_threads()} threads; "
        f"torch {version('torch')}, torchvision {version('torchvision')}, Python {platform.python_version()}"
    )
