"""The Open Inference Protocol: its messages, and Triton's own client against a server in another process."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.signature import Signature
from resnetkit.modelfile import Header
from resnetkit.models.spec import parse_spec
from resnetkit.serve.answers import RequestError
from resnetkit.serve.protocol import HEADER_LENGTH, InferRequest, Requested, read_request, write_answer
from serving import client, jpeg, process, served, write_model

SIGNATURE = Signature.of(Header(parse_spec("resnet20", classes=3), Preprocess(size=32), ("a", "b", "c")))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def signature() -> Signature:
    return SIGNATURE


@pytest.fixture(scope="module")
def address(path: Path, kernel_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in another process, host:port."""
    cache = tmp_path_factory.mktemp("serving")
    (cache / "kernels").symlink_to(kernel_folder)
    with process(f"m={path}", "--backend", "torch", "--max-pictures", "8", cache=cache) as (_, url):
        yield url.removeprefix("http://")


@pytest.fixture(scope="module")
def triton(address: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(address) as session:
        yield session


def images(contents: list[bytes], *, binary: bool = True, shape: list[int] | None = None) -> InferInput:
    given = InferInput("image", shape or [len(contents)], "BYTES")
    given.set_data_from_numpy(np.array(contents, object).reshape(given.shape()), binary_data=binary)
    return given


def test_metadata_and_readiness_by_tritons_client(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("m")
    assert triton.is_model_ready("m", "1")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["extensions"][0] == "binary_tensor_data"
    metadata = triton.get_model_metadata("m")
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
    ]
    assert {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]} in metadata["outputs"]
    assert triton.get_model_config("m")["input"][0]["name"] == "image"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_files_by_tritons_client(triton: InferenceServerClient, path: Path, binary: bool, shape: list[int]) -> None:
    contents = [jpeg(i) for i in range(3)]
    expected = Predictor(path, backend="torch").probabilities(contents)
    sent = contents if binary else [base64.b64encode(content) for content in contents]
    outputs = [InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "logits")]
    answer = triton.infer("m", [images(sent, binary=binary, shape=shape)], outputs=outputs, request_id="7")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)
    assert answer.as_numpy("logits").shape == (3, 3)
    assert answer.get_response()["id"] == "7"


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_by_tritons_client(triton: InferenceServerClient, path: Path, binary: bool) -> None:
    predictor = Predictor(path, backend="torch")
    pixels = np.stack([predictor.decode(jpeg(i)) for i in range(5)])
    given = InferInput("pixels", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    answer = triton.infer("m", [given])  # all outputs
    np.testing.assert_allclose(answer.as_numpy("logits"), predictor.compute(pixels), atol=1e-5)
    assert answer.as_numpy("probabilities").dtype == np.float32


@pytest.mark.parametrize("binary", [True, False])
def test_classification_by_tritons_client(triton: InferenceServerClient, path: Path, binary: bool) -> None:
    expected = Predictor(path, backend="torch")([jpeg(0), jpeg(1)], top=2)
    output = InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    found = triton.infer("m", [images([jpeg(0), jpeg(1)])], outputs=[output]).as_numpy("probabilities")
    assert found.shape == (2, 2)
    for row, best in zip(found, expected, strict=True):
        for text, one in zip(row, best, strict=True):
            value, index, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(index), label) == (one.index, one.label)
            assert float(value) == pytest.approx(one.probability, abs=2e-6)


def test_a_bad_picture_by_tritons_client(triton: InferenceServerClient, path: Path) -> None:
    contents = [jpeg(0), b"no picture", jpeg(1)]
    with pytest.raises(InferenceServerException, match="picture 1 can't be read: not a picture of a known kind"):
        triton.infer("m", [images(contents)])
    outputs = [InferRequestedOutput("probabilities"), InferRequestedOutput("errors")]
    answer = triton.infer("m", [images(contents)], outputs=outputs)
    expected = Predictor(path, backend="torch").probabilities([jpeg(0), jpeg(1)])
    np.testing.assert_allclose(answer.as_numpy("probabilities")[[0, 2]], expected, atol=1e-6)
    assert answer.as_numpy("probabilities")[1].tolist() == [0, 0, 0]
    assert [bool(error) for error in answer.as_numpy("errors")] == [False, True, False]


def test_errors_reach_tritons_client(triton: InferenceServerClient) -> None:
    wrong = InferInput("pixels", [1, 16, 16, 3], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 16, 16, 3), np.uint8))
    for call, message in (
        (lambda: triton.infer("other", [images([jpeg()])]), 'there is no model "other"; there are m'),
        (lambda: triton.infer("m", [images([jpeg()])], model_version="2"), "version 1"),
        (lambda: triton.infer("m", [wrong]), r"shape \[-1, 32, 32, 3\]"),
        (lambda: triton.infer("m", [images([jpeg()] * 9)]), "9 pictures; a request may have 1 to 8"),
        (
            lambda: triton.infer("m", [images([jpeg()])], outputs=[InferRequestedOutput("x")]),
            'there is no output "x"',
        ),
        (lambda: triton.infer("m", [images([jpeg()])], request_compression_algorithm="gzip"), "compressed"),
        (lambda: triton.get_model_metadata("other"), "there is no model"),
        (lambda: triton.get_model_repository_index(), "not found"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            call()


INPUT: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}
PIXELS: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 32, 32, 3]}


def read(message: object, rest: bytes, signature: Signature) -> InferRequest:
    head = json.dumps(message).encode()
    return read_request(head + rest, str(len(head)), signature, most=4)


def read_or_refused(message: object, rest: bytes) -> InferRequest | None:
    """Return what is read; None if it is refused as it should be."""
    try:
        return read(message, rest, SIGNATURE)
    except RequestError as error:
        refusal = error
    assert refusal.status == 400
    assert len(str(refusal)) < 300
    return None


@pytest.mark.parametrize(
    ("message", "rest", "error"),
    [
        ([], b"", "not a JSON object"),
        ({}, b"", "inputs must be a list of objects"),
        ({"inputs": []}, b"", "give one input, image or pixels; there are 0"),
        ({"inputs": [INPUT, INPUT]}, b"", "there are 2"),
        ({"inputs": [INPUT | {"name": ["x"]}]}, b"", "there is no input"),
        ({"inputs": [INPUT | {"datatype": "FP32"}]}, b"", 'datatype BYTES, not "FP32"'),
        ({"inputs": [INPUT | {"shape": [1.5]}]}, b"", "not a list of whole numbers"),
        ({"inputs": [INPUT | {"shape": [True]}]}, b"", "not a list of whole numbers"),
        ({"inputs": [INPUT | {"shape": []}]}, b"", "has shape"),
        ({"inputs": [INPUT | {"shape": [0], "data": []}]}, b"", "has 0 pictures"),
        ({"inputs": [INPUT | {"shape": [5]}]}, b"", "1 to 4"),
        ({"inputs": [INPUT | {"shape": [2]}]}, b"", "data must be 2 strings"),
        ({"inputs": [INPUT | {"data": ["###"]}]}, b"", "base64"),
        ({"inputs": [INPUT | {"data": ["é"]}]}, b"", "base64"),
        ({"inputs": [INPUT | {"data": {}}]}, b"", "must be a list"),
        ({"inputs": [INPUT | {"parameters": {"binary_data_size": 1}}]}, b"x", "either data or binary_data_size"),
        ({"inputs": [INPUT | {"parameters": []}]}, b"", "parameters must be an object"),
        ({"inputs": [INPUT]}, b"x", "1 bytes follow the JSON, but binary_data_size is 0"),
        ({"inputs": [PIXELS | {"parameters": {"binary_data_size": 3}}]}, b"abc", "3 bytes, but its shape says 3072"),
        ({"inputs": [PIXELS | {"parameters": {"binary_data_size": 3072}}]}, b"abc", "3 bytes follow"),
        ({"inputs": [PIXELS | {"parameters": {"binary_data_size": -1}}]}, b"abc", "binary_data_size"),
        ({"inputs": [PIXELS | {"data": [256] * 3072}]}, b"", "from 0 to 255"),
        ({"inputs": [INPUT], "id": 7}, b"", "id must be a string"),
        ({"inputs": [INPUT], "parameters": {"timeout": 10**400}}, b"", "microseconds"),
        ({"inputs": [INPUT], "outputs": [{"name": "logits"}] * 2}, b"", "twice"),
        ({"inputs": [INPUT], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, b"", "number of"),
        ({"inputs": [INPUT], "outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]}, b"", "true or false"),
    ],
)
def test_wrong_messages_say_what_is_wrong(message: object, rest: bytes, error: str, signature: Signature) -> None:
    with pytest.raises(RequestError, match=error.replace("(", r"\(")):
        read(message, rest, signature)


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "9" * 5000, "99999", ""])
def test_a_wrong_header_length_is_refused(length: str, signature: Signature) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        read_request(b'{"inputs": []}', length, signature, most=4)


def test_deep_json_is_refused(signature: Signature) -> None:
    for body in (b"[" * 100_000, b'{"inputs": ' + b"[" * 100_000, b"\xff", b"", b'{"a": NaN'):
        with pytest.raises(RequestError):
            read_request(body, None, signature, most=4)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_binary_elements_are_read_back_or_refused(contents: list[bytes], data: st.DataObject) -> None:
    """Right framing gives the elements; any other bytes give them or a RequestError, and nothing else."""
    framed = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    parameters = {"binary_data_size": len(framed)}
    given = {"name": "image", "datatype": "BYTES", "shape": [len(contents)], "parameters": parameters}
    assert list(read({"inputs": [given]}, framed, SIGNATURE).pictures) == contents
    damaged = bytearray(framed)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    parameters["binary_data_size"] = data.draw(st.one_of(st.just(len(cut)), st.integers(-5, 300)))
    found = read_or_refused({"inputs": [given]}, cut)
    if isinstance(found, InferRequest):
        assert len(found.pictures) == len(contents)
        assert sum(len(one) + 4 for one in found.pictures) == len(cut)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "pixels", "logits", "errors"]) | JSON,
        "datatype": st.sampled_from(["BYTES", "UINT8"]) | JSON,
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=4) | JSON,
        "data": JSON,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data", "classification"]), st.integers() | JSON, max_size=3
        )
        | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(FIELDS, max_size=2) | JSON},
        optional={"outputs": st.lists(FIELDS, max_size=2) | JSON, "parameters": JSON, "id": JSON},
    )
    | JSON,
    st.binary(max_size=20),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused(message: object, rest: bytes) -> None:
    read_or_refused(message, rest)


def test_what_is_written_is_the_json_and_then_the_tensors() -> None:
    values = np.array([[0.25, 1e-30]], np.float32)
    body, length = write_answer(
        "m",
        "\ud800",
        [
            (Requested("logits", binary=True), values),
            (Requested("errors", binary=True), ["é"]),
            (Requested("p"), values),
        ],
    )
    assert length is not None
    head = json.loads(body[:length])
    assert [one["shape"] for one in head["outputs"]] == [[1, 2], [1], [1, 2]]
    assert [one.get("parameters", {}).get("binary_data_size") for one in head["outputs"]] == [8, 6, None]
    assert head["outputs"][2]["data"] == values.ravel().tolist()
    assert body[length:] == values.tobytes() + struct.pack("<I", 2) + "é".encode()


def test_the_deadline_of_tritons_client_holds(path: Path) -> None:
    async def run() -> Any:
        async with client(app) as session:
            message = {"inputs": [PIXELS | {"data": [0] * 3072}], "parameters": {"timeout": 1}}
            return await session.post("/v2/models/m/infer", json=message)

    with served(path) as (app, _):
        answer = asyncio.run(run())
    assert answer.status_code == 504
    assert HEADER_LENGTH not in answer.headers
