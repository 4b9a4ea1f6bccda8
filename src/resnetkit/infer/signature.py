"""The names, types and shapes of a model's inputs and outputs, as a server or another program needs them. No torch."""

from dataclasses import dataclass
from typing import Literal

from resnetkit.modelfile import Header


@dataclass(frozen=True)
class Array:
    """An input or an output."""

    name: str
    dtype: Literal["bytes", "uint8", "float32"]
    """The type of an element; bytes is the content of a picture file."""
    shape: tuple[int | None, ...]
    """None is the number of pictures, which may be any."""


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives. One of the inputs is needed, and any of the outputs may be asked for."""

    inputs: tuple[Array, ...]
    """Pictures: whole files, or pixels that are resized and cropped as the model's preprocessing states."""
    outputs: tuple[Array, ...]

    @classmethod
    def of(cls, header: Header) -> "Signature":
        """Return the signature of a classifier with this header."""
        size, classes = header.preprocess.size, len(header.classes)
        return cls(
            inputs=(
                Array("image", "bytes", (None,)),
                Array("pixels", "uint8", (None, size, size, header.preprocess.channels)),
            ),
            outputs=(
                Array("probabilities", "float32", (None, classes)),
                Array("logits", "float32", (None, classes)),
            ),
        )
