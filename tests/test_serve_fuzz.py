"""Schemathesis over the OpenAPI document: no request gives a 500, or an answer that the document does not have."""

import itertools
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import checks

from resnetkit.serve.limits import Limits
from serving import jpeg, served, write_model

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
