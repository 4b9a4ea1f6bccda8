"""The Open Inference Protocol, version 2, with Triton's extensions for binary tensors and classification: its messages.

https://github.com/kserve/open-inference-protocol and, for the two extensions, Triton's protocol documents.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.infer.signature import Array, Signature
from resnetkit.serve.answers import RequestError
from resnetkit.serve.served import Given
from resnetkit.version import __version__

DATATYPES = {"bytes": "BYTES", "uint8": "UINT8", "float32": "FP32", "int64": "INT64"}
VERSION = "1"
"""The version of every model: a file that replaces another takes its place."""
ERRORS = "errors"
"""The output that says for each picture why it can't be read, and is empty for the others."""
HEADER_LENGTH = "inference-header-content-length"
Tensor: TypeAlias = NDArray[np.float32] | NDArray[np.int64] | Sequence[Sequence[str]] | Sequence[str]
"""Numbers, or text for BYTES."""


@dataclass(frozen=True)
class Requested:
    """An output that a client asks for."""

    name: str
    binary: bool = False
    """Whether its values come after the JSON, as bytes."""
    classes: int = 0
    """If not 0, the number of highest values to return as `value:index:label` instead of the numbers."""


@dataclass(frozen=True)
class InferRequest:
    """A request for inference."""

    id: str | None
    pictures: Sequence[Given]
    outputs: Sequence[Requested]
    timeout: float | None
    """Seconds."""
    threshold: float | None = None
    """The least score of a detection; None for the thresholds of the model file."""


def server_metadata() -> dict[str, Any]:
    """Return the answer to GET /v2."""
    return {
        "name": "resnetkit",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification", "model_configuration"],
    }


def model_metadata(name: str, signature: Signature) -> dict[str, Any]:
    """Return the answer to GET /v2/models/NAME."""
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "resnetkit",
        "inputs": [_metadata(one) for one in signature.inputs],
        "outputs": [*(_metadata(one) for one in signature.outputs), _metadata(Array(ERRORS, "bytes", (None,)))],
    }


def model_configuration(name: str, signature: Signature, batch_size: int) -> dict[str, Any]:
    """Return the answer to GET /v2/models/NAME/config: the parts of Triton's configuration that hold here."""

    def tensor(one: Array) -> dict[str, Any]:
        kind = "STRING" if one.dtype == "bytes" else DATATYPES[one.dtype]
        return {
            "name": one.name,
            "data_type": f"TYPE_{kind}",
            "dims": [-1 if side is None else side for side in one.shape],
        }

    return {
        "name": name,
        "platform": "resnetkit",
        "max_batch_size": 0,  # the dims include the number of pictures
        "input": [tensor(one) | {"optional": True} for one in signature.inputs],
        "output": [tensor(one) for one in signature.outputs],
        "dynamic_batching": {"preferred_batch_size": [batch_size]},
    }


def _metadata(one: Array) -> dict[str, Any]:
    shape = [-1 if side is None else side for side in one.shape]
    return {"name": one.name, "datatype": DATATYPES[one.dtype], "shape": shape}


def read_request(body: bytes, header_length: str | None, signature: Signature, *, most: int) -> InferRequest:
    """Return the request in a body, whose JSON has `header_length` bytes (None: all) and may be followed by tensors.

    Raises RequestError, with a message for the client, for anything that is not a valid request of at most `most`
    pictures.
    """
    message, rest = _divided(body, header_length)
    inputs = _list_of_objects(message, "inputs")
    if len(inputs) != 1:
        names = " or ".join(one.name for one in signature.inputs)
        raise _wrong(f"give one input, {names}; there are {len(inputs)}")
    pictures, used = _pictures(inputs[0], rest, signature, most)
    if used != len(rest):
        raise _wrong(f"{len(rest)} bytes follow the JSON, but binary_data_size is {used}")
    parameters = _object(message, "parameters")
    identity = message.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _wrong("id must be a string")
    timeout = parameters.get("timeout")
    if timeout is not None and (not _is_whole(timeout) or not 1 <= timeout <= 10**15):
        raise _wrong("timeout must be a number of microseconds")
    return InferRequest(
        identity,
        pictures,
        _requested(message, signature, binary=_flag(parameters, "binary_data_output")),
        None if timeout is None else timeout / 1e6,
        _threshold(parameters, signature),
    )


def _threshold(parameters: Mapping[str, Any], signature: Signature) -> float | None:
    value = parameters.get("threshold")
    if value is None:
        return None
    if all(one.name != "boxes" for one in signature.outputs):
        raise _wrong("threshold is for detectors, and this model is a classifier")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _wrong("threshold must be a number from 0 to 1")
    return float(value)


def _divided(body: bytes, header_length: str | None) -> tuple[dict[str, Any], bytes]:
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal()) or int(header_length[:20]) > len(body):
            raise _wrong(f"Inference-Header-Content-Length is not a number of bytes of the body, which has {len(body)}")
        length = int(header_length)
    try:
        message = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise _wrong(
            "the request is not JSON; after JSON, binary tensors need Inference-Header-Content-Length"
        ) from error
    if not isinstance(message, dict):
        raise _wrong("the request is not a JSON object")
    return message, body[length:]


def _pictures(given: dict[str, Any], rest: bytes, signature: Signature, most: int) -> tuple[list[Given], int]:
    """Return the pictures of an input, and how many bytes of `rest` they are."""
    known = {one.name: one for one in signature.inputs}
    name = given.get("name")
    spec = known.get(name) if isinstance(name, str) else None
    if spec is None:
        raise _wrong(f"there is no input {quoted(name)}; give {' or '.join(known)}")
    datatype = DATATYPES[spec.dtype]
    if given.get("datatype") != datatype:
        raise _wrong(f"input {spec.name} has datatype {datatype}, not {quoted(given.get('datatype'))}")
    shape = _shape(given.get("shape"), spec)
    count = shape[0]
    if not 1 <= count <= most:
        raise _wrong(f"input {spec.name} has {count} pictures; a request may have 1 to {most}")
    parameters = _object(given, "parameters")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in given):
        raise _wrong(f"input {spec.name} needs either data or binary_data_size")
    if size is not None and (not _is_whole(size) or not 0 <= size <= len(rest)):
        raise _wrong(f"binary_data_size of input {spec.name} is {quoted(size)}; {len(rest)} bytes follow the JSON")
    content = None if size is None else rest[:size]
    if spec.dtype == "bytes":
        found: list[Given] = list(_elements(content, count) if content is not None else _decoded(given["data"], count))
    else:
        found = list(_pixels(content, shape) if content is not None else _listed(given["data"], shape))
    return found, size or 0


def _shape(shape: object, spec: Array) -> tuple[int, ...]:
    """Return the shape of an input, with the number of pictures first; a file may be [n] or [n, 1]."""
    if not isinstance(shape, list) or not all(_is_whole(side) and 0 <= side < 2**31 for side in shape):
        raise _wrong(f"the shape of input {spec.name} is not a list of whole numbers")
    expected = spec.shape
    as_column = spec.dtype == "bytes" and shape[1:] == [1]
    fits = len(shape) == len(expected) and all(
        side == wanted or (wanted is None and side > 0) for side, wanted in zip(shape[1:], expected[1:], strict=True)
    )
    if not (fits or as_column):
        full = str([-1 if side is None else side for side in expected])
        raise _wrong(
            f"input {spec.name} has shape {full}, where -1 is any number, first that of pictures, not {quoted(shape)}"
        )
    return tuple(shape)


def _elements(content: bytes, count: int) -> list[bytes]:
    """Return the elements of a binary BYTES tensor: each has its length, four bytes, the lowest first, before it."""
    found: list[bytes] = []
    place = 0
    while place < len(content):
        if place + 4 > len(content):
            raise _wrong("the BYTES tensor ends within the length of an element")
        (length,) = struct.unpack_from("<I", content, place)
        place += 4 + length
        if place > len(content):
            raise _wrong(f"the BYTES tensor ends within element {len(found)}, which should have {length} bytes")
        found.append(content[place - length : place])
    if len(found) != count:
        raise _wrong(f"the BYTES tensor has {len(found)} elements, but its shape says {count}")
    return found


def _decoded(data: object, count: int) -> list[bytes]:
    values = _flat(data)
    if len(values) != count or not all(isinstance(value, str) for value in values):
        raise _wrong(f"data must be {count} strings: the picture files in base64")
    try:
        return [base64.b64decode(value, validate=True) for value in values]
    except (binascii.Error, ValueError) as error:
        raise _wrong("data in JSON must be picture files in base64; or send them as a binary tensor") from error


def _pixels(content: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if len(content) != math.prod(shape):
        raise _wrong(f"the tensor has {len(content)} bytes, but its shape says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _listed(data: object, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    values = _flat(data)
    if len(values) != math.prod(shape) or not all(_is_whole(value) and 0 <= value <= 255 for value in values):
        raise _wrong(f"data must be {math.prod(shape)} whole numbers from 0 to 255")
    return np.array(values, np.uint8).reshape(shape)


def _flat(data: object) -> list[Any]:
    """Return the elements of a list that may be nested like its shape."""
    if not isinstance(data, list):
        raise _wrong("data must be a list")
    while data and all(isinstance(one, list) for one in data):
        data = [element for one in data for element in one]
    return data


def _requested(message: dict[str, Any], signature: Signature, *, binary: bool) -> list[Requested]:
    names = [*(one.name for one in signature.outputs), ERRORS]
    of_classes = [one.name for one in signature.outputs if one.dtype == "float32" and None not in one.shape[1:]]
    if "outputs" not in message or message["outputs"] == []:
        return [Requested(one.name, binary) for one in signature.outputs]
    found: list[Requested] = []
    for given in _list_of_objects(message, "outputs"):
        name = given.get("name")
        if name not in names:
            raise _wrong(f"there is no output {quoted(name)}; there are {', '.join(names)}")
        parameters = _object(given, "parameters")
        classes = parameters.get("classification", 0)
        if not _is_whole(classes) or classes < 0 or (classes and name not in of_classes):
            raise _wrong("classification must be a number of classes, of an output with a number for each class")
        own = _flag(parameters, "binary_data") if "binary_data" in parameters else binary
        found.append(Requested(str(name), own, classes))
    if len({one.name for one in found}) < len(found):
        raise _wrong("an output is asked for twice")
    return found


def write_answer(
    model: str, identity: str | None, outputs: Sequence[tuple[Requested, Tensor]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer and, if tensors follow the JSON, the length of the JSON in bytes."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for requested, values in outputs:
        kind = str(values.dtype) if isinstance(values, np.ndarray) else "bytes"
        shape = list(values.shape) if isinstance(values, np.ndarray) else _shape_of(values)
        one: dict[str, Any] = {"name": requested.name, "datatype": DATATYPES[kind], "shape": shape}
        if requested.binary:
            content = _little(values) if isinstance(values, np.ndarray) else _framed(_flat([*values]))
            one["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        else:
            one["data"] = values.ravel().tolist() if isinstance(values, np.ndarray) else _flat([*values])
        described.append(one)
    message: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": described}
    if identity is not None:
        message["id"] = identity
    head = json.dumps(message, allow_nan=False).encode()
    return b"".join([head, *tail]), len(head) if tail else None


def classified(values: NDArray[np.float32], best: NDArray[np.int64], labels: Sequence[str]) -> list[list[str]]:
    """Return `value:index:label` for the classes `best` (n, k) of values (n, classes), as Triton writes them."""
    return [[f"{row[i]:f}:{i}:{labels[i]}" for i in places] for row, places in zip(values, best.tolist(), strict=True)]


def _shape_of(values: Sequence[Sequence[str]] | Sequence[str]) -> list[int]:
    first = values[0]
    return [len(values)] if isinstance(first, str) else [len(values), len(first)]


def _little(values: NDArray[Any]) -> bytes:
    """Return the bytes of numbers, the lowest first."""
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def _framed(texts: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise _wrong(f"{name} must be an object")
    return found


def _list_of_objects(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _wrong(f"{name} must be a list of objects")
    return found


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(f"{name} must be true or false")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def quoted(value: object) -> str:
    """Return a value of a client for a message to it, as JSON, cut."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _wrong(message: str) -> RequestError:
    return RequestError(400, message)
