"""The names, types and shapes of a model's inputs and outputs, as a server or another program needs them. No torch."""

from dataclasses import dataclass
from typing import Literal

from resnetkit.modelfile import Header


@dataclass(frozen=True)
class Array:
    """An input or an output."""

    name: str
    dtype: Literal["bytes", "uint8", "float32", "int64"]
    """The type of an element; bytes is the content of a picture file, or text."""
    shape: tuple[int | None, ...]
    """None is a number that may be any: first, that of the pictures."""


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives. One of the inputs is needed, and any of the outputs may be asked for."""

    inputs: tuple[Array, ...]
    """Pictures: whole files, or pixels. For a classifier, they are resized and cropped as its preprocessing states; for
    a detector, they are upright pictures of any size, in colour."""
    outputs: tuple[Array, ...]

    @classmethod
    def of(cls, header: Header) -> "Signature":
        """Return the signature of a model with this header.

        A detector finds another number of objects in each picture. So its outputs have a row for each object of the
        picture with the most, and `counts` says how many of them are a picture's own.
        """
        size, classes = header.preprocess.size, len(header.classes)
        if header.kind == "detector":
            return cls(
                inputs=(Array("image", "bytes", (None,)), Array("pixels", "uint8", (None, None, None, 3))),
                outputs=(
                    Array("boxes", "float32", (None, None, 4)),
                    Array("labels", "int64", (None, None)),
                    Array("scores", "float32", (None, None)),
                    Array("counts", "int64", (None,)),
                    Array("names", "bytes", (None, None)),
                ),
            )
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
