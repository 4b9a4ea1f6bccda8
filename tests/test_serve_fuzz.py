"""Schemathesis over the OpenAPI document, hypothesis over binary tensors: no request gives a 500, and none stays."""

import asyncio
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from serving import client, jpeg, served, write_model

pytestmark = pytest.mark.slow
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.allow_header_conformance,
]
PICTURE = st.sampled_from([jpeg(), jpeg(kind="PNG"), jpeg()[:300]]) | st.binary(max_size=200)


def ask(operation: schemathesis.APIOperation, seen: set[int]) -> None:
    """Send requests of all kinds to one operation, check the answers, and note their statuses."""
    turns = itertools.count()

    @given(operation.as_strategy())
    @settings(
        max_examples=30,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        if next(turns) % 3:  # else a model of any name, which there is not
            case.query = {name: value for name, value in (case.query or {}).items() if name != "model"}
            case.path_parameters = {
                name: {"model": "m", "version": "1"}.get(name, value)
                for name, value in (case.path_parameters or {}).items()
            }
        answer = case.call()
        seen.add(answer.status_code)
        assert answer.status_code != 500
        case.validate_response(answer, checks=CHECKS)

    send()


def test_no_request_breaks_what_the_document_promises(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    schemathesis.openapi.media_type("image/jpeg", PICTURE)
    statuses: dict[str, set[int]] = {}
    with served(path, limits=Limits(timeout=20)) as (app, _):
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        for found in schema.get_all_operations():
            operation = found.ok()
            seen = statuses.setdefault(operation.label, set())
            ask(operation, seen)
    assert len(statuses) == 16
    assert {200, 400, 422} <= statuses["POST /predict"]
    assert {400, 404} <= statuses["POST /v2/models/{model}/infer"]
    assert {200, 404} == statuses["GET /v2/models/{model}"]
    assert {200} == statuses["GET /v2"]


@given(st.data())
@settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def send_frames(app: Guard, seen: set[int], data: st.DataObject) -> None:
    """Send one request with binary tensors, right or damaged, through all of the server."""
    pixels = data.draw(st.booleans())
    if pixels:
        count = data.draw(st.integers(1, 3))
        content = bytes(count * 32 * 32 * 3)
        given: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [count, 32, 32, 3]}
    else:
        files = data.draw(st.lists(PICTURE, min_size=1, max_size=3))
        content = b"".join(struct.pack("<I", len(file)) + file for file in files)
        given = {"name": "image", "datatype": "BYTES", "shape": [len(files)]}
    size = len(content)
    damage = data.draw(st.sampled_from(["none", "cut", "longer", "byte", "size", "header", "shape"]))
    if damage == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif damage == "longer":
        content += data.draw(st.binary(min_size=1, max_size=9))
    elif damage == "byte":
        place = data.draw(st.integers(0, min(7, len(content) - 1)))
        content = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]
    elif damage == "size":
        size = data.draw(st.integers(-1, 2**33))
    elif damage == "shape":
        given["shape"] = data.draw(st.lists(st.integers(-1, 2**33), max_size=4))
    message = {"inputs": [given | {"parameters": {"binary_data_size": size}}]}
    head = json.dumps(message).encode()
    length = str(len(head)) if damage != "header" else data.draw(st.integers(-1, 2**40).map(str) | st.just("x"))

    async def ask() -> httpx.Response:
        async with client(app) as session:
            headers = {"Inference-Header-Content-Length": length}
            return await session.post("/v2/models/m/infer", content=head + content, headers=headers)

    answer = asyncio.run(ask())
    seen.add(answer.status_code)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or list(answer.json()) == ["error"]
    if damage == "none" and pixels:
        assert answer.status_code == 200


def test_no_frame_of_tensors_breaks_the_server_or_stays_in_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    seen: set[int] = set()
    with served(path, limits=Limits(max_pictures=8)) as (app, model):
        send_frames(app, seen)
        assert model._loaded.in_flight == 0
        assert app._bodies == 0
    assert seen == {200, 400}
