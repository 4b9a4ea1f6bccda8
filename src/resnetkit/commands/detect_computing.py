"""The flags that choose how a detector is computed."""

from typing import TYPE_CHECKING, Literal

from resnetkit.commands.parser import Parser

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


def use_one_thread_beside(choice: "Choice") -> None:
    """Let torch use one thread beside a graph: its threads would wait busily for the few operations between the graphs.

    The process must be the command's own.
    """
    from resnetkit.infer.choice import GRAPHS

    if choice.backend in GRAPHS:
        import torch

        torch.set_num_threads(1)


def is_detector(model: str) -> bool:
    """Whether MODEL is the model file or the run folder of a detector. Raises what `find_model` raises."""
    from resnetkit.infer.unloaded import find_model

    return find_model(model).header.kind == "detector"
