"""The flags that choose how a detector is computed."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from resnetkit.commands.parser import Parser
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.infer.choice import Choice

DETECTOR = "a model file or a run folder of resnetkit detect train, or a file of resnetkit export (.xml or .onnx)"
COMPUTING = ("backend", "precision", "threads", "streams")
"""The names of the flags, which are those of DetectorPredictor's arguments."""


def add_computing(parser: Parser, *, usual: str = "the tuned one, else openvino if it is installed") -> None:
    """Add the flags to a parser; `usual` is the program that computes if --backend is unset."""
    parser.add_argument(
        "--backend",
        type=Literal["openvino", "onnxruntime", "torch"] | None,
        help=f"program that computes; unset: {usual}",
    )
    parser.add_argument(
        "--precision", type=Literal["float32", "bfloat16", "int8"] | None, help="unset: the tuned one, else float32"
    )
    parser.add_argument("--threads", type=int | None, help="threads that compute; unset: all cores")
    parser.add_argument("--streams", type=int | None, help="pictures that are computed at a time; unset: 1")


def use_one_thread_beside(*choices: "Choice") -> None:
    """Let torch use one thread where graphs compute all models: between two graphs, more would wait busily.

    The process must be the command's own. Without a detector, it has not imported torch, and need not.
    """
    from resnetkit.infer.choice import GRAPHS

    if "torch" in sys.modules and all(choice.backend in GRAPHS for choice in choices):
        import torch

        torch.set_num_threads(1)


def check_computing(given: Mapping[str, Any]) -> None:
    """Raise UsageError for values that are too small in the flags of `add_computing`, and in --workers."""
    for name, least in (("threads", 1), ("streams", 1), ("workers", 0)):
        if given[name] is not None and given[name] < least:
            raise UsageError(f"--{name} is {given[name]}; it must be at least {least}")


def is_detector(model: str) -> bool:
    """Return whether MODEL is a detector. Raises what `locate` and `inspect` raise."""
    from resnetkit.location import PublishedWeights, locate
    from resnetkit.modelfile import inspect

    located = locate(model)  # the header of published weights takes seconds to make, and they are classifiers
    return not isinstance(located, PublishedWeights) and inspect(located).kind == "detector"
