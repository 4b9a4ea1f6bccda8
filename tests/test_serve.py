"""The server in this process: what it answers, what it refuses, and what it counts."""

import asyncio
import base64
import io
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from resnetkit.calibration import Calibration
from resnetkit.data.decoding.opening import accept_pixels
from resnetkit.errors import UsageError
from resnetkit.infer.predictor import Predictor
from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from resnetkit.serve.served import ServedModel
from serving import CLASSES, client, jpeg, served, write_model

IMAGE = {"content-type": "image/jpeg"}
NO_THRESHOLD = "model m has no threshold to reject pictures by"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "m.safetensors")


def ask(app: Guard, call: Callable[[httpx.AsyncClient], Awaitable[Any]], **headers: str) -> Any:
    async def run() -> Any:
        async with client(app, **headers) as session:
            return await call(session)

    return asyncio.run(run())


class Gate:
    """Holds a model's computations while it is closed."""

    def __init__(self, model: ServedModel) -> None:
        self.open = Event()
        self.open.set()
        self.began = Event()
        self.batches: list[int] = []
        batcher = model._loaded.batcher
        compute = batcher._compute

        def held(pixels: np.ndarray) -> np.ndarray:
            self.batches.append(len(pixels))
            self.began.set()
            assert self.open.wait(20)
            return compute(pixels)

        batcher._compute = held


def test_a_raw_picture_has_the_probabilities_of_predict(path: Path) -> None:
    content = jpeg()
    expected = Predictor(path, backend="torch")(content, top=2)
    with served(path) as (app, _):
        answer = ask(app, lambda c: c.post("/predict?top=2&name=a%20cat", content=content, headers=IMAGE))
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    assert answer.json()["model"] == "m"
    assert result["name"] == "a cat"
    assert [(one["label"], one["index"]) for one in result["predictions"]] == [(p.label, p.index) for p in expected]
    for one, p in zip(result["predictions"], expected, strict=True):
        assert one["probability"] == pytest.approx(p.probability, abs=1e-6)


def test_one_bad_picture_of_a_form_fails_alone(path: Path) -> None:
    files = [("file", (f"{i}.jpg", jpeg(i))) for i in range(6)]
    files.insert(3, ("file", ("../../etc/bad.jpg", b"no picture")))
    expected = Predictor(path, backend="torch")([jpeg(i) for i in range(6)], top=1)
    with served(path) as (app, _):
        answer = ask(app, lambda c: c.post("/predict?top=1", files=files))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert results[3] == {
        "name": "../../etc/bad.jpg",
        "error": "not a picture of a known kind, or broken at its beginning",
    }
    del results[3]
    assert [result["name"] for result in results] == [f"{i}.jpg" for i in range(6)]
    for result, (best,) in zip(results, expected, strict=True):
        assert result["predictions"] == [best._asdict() | {"probability": pytest.approx(best.probability, abs=1e-6)}]


def test_it_also_fails_alone_if_others_send_theirs_at_the_same_time(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> list[httpx.Response]:
        good = [c.post("/predict", content=jpeg(i), headers=IMAGE) for i in range(20)]
        bad = [c.post("/predict", content=jpeg()[:900], headers=IMAGE) for _ in range(20)]
        return await asyncio.gather(*(one for pair in zip(good, bad, strict=True) for one in pair))

    with served(path) as (app, model):
        gate = Gate(model)
        answers = ask(app, run)
    assert [answer.status_code for answer in answers] == [200, 422] * 20
    assert all("incomplete" in answer.json()["results"][0]["error"] for answer in answers[1::2])
    assert sum(gate.batches) == 20
    assert len(gate.batches) < 20  # some were batched


@pytest.mark.parametrize(
    ("content", "headers", "query", "status", "error"),
    [
        (b"x", {}, "", 415, "Content-Type of image"),
        (b"x", {"content-type": "text/html"}, "", 415, "Content-Type of image"),
        (b"x", {"content-type": "multipart/form-data"}, "", 400, "the form is broken"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, "", 400, "the form is broken"),
        (b"--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}, "", 400, "fields `file`"),
        (b"x", IMAGE, "?top=0", 400, "top: "),
        (b"x", IMAGE, "?top=many", 400, "top: "),
        (b"x", IMAGE, "?model=other", 404, 'there is no model "other"; there are m'),
        (b"x" * 2000, IMAGE, "", 413, "more than 1,999 bytes"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    path: Path, content: bytes, headers: dict[str, str], query: str, status: int, error: str
) -> None:
    with served(path, limits=Limits(max_body=1999)) as (app, _):
        answer = ask(app, lambda c: c.post(f"/predict{query}", content=content, headers=headers))
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert error in answer.json()["error"]


def test_a_form_with_text_or_too_many_pictures_is_refused(path: Path) -> None:
    with served(path, limits=Limits(max_pictures=3)) as (app, _):
        text = ask(app, lambda c: c.post("/predict", files={"file": (None, b"text")}))
        mixed = ask(app, lambda c: c.post("/predict", files={"file": ("a", jpeg())}, data={"top": "3"}))
        many = ask(app, lambda c: c.post("/predict", files=[("file", ("a", jpeg()))] * 4))
    assert [text.status_code, mixed.status_code, many.status_code] == [400, 400, 413]
    assert many.json() == {"error": "more than 3 pictures"}


def test_a_full_queue_says_when_to_come_again(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        waiting = [asyncio.ensure_future(c.post("/predict", content=jpeg(i), headers=IMAGE)) for i in range(4)]
        while model._loaded.in_flight < 4:
            await asyncio.sleep(0.01)
        refused = await c.post("/predict", content=jpeg(), headers=IMAGE)
        gate.open.set()
        return await asyncio.gather(*waiting), refused

    with served(path, limits=Limits(queue=4, max_pictures=4)) as (app, model):
        gate = Gate(model)
        gate.open.clear()
        accepted, refused = ask(app, run)
        after = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE))
    assert [answer.status_code for answer in accepted] == [200] * 4
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert after.status_code == 200
    assert model._loaded.in_flight == 0


def test_a_full_queue_refuses_before_the_body_is_read(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> list[Any]:
        waiting = asyncio.ensure_future(c.post("/predict", files=[("file", ("a", jpeg(i))) for i in range(4)]))
        while model._loaded.in_flight < 4:
            await asyncio.sleep(0.01)
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            raise AssertionError("the body was asked for")

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert (await c.get("/health/ready")).status_code == 200
        gate.open.set()
        assert (await waiting).status_code == 200
        return messages

    with served(path, limits=Limits(queue=4, max_pictures=4)) as (app, model):
        gate = Gate(model)
        gate.open.clear()
        start, body = ask(app, run)
        text = ask(app, lambda c: c.get("/metrics")).text
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert int(headers[b"retry-after"]) >= 1
    assert b"connection" not in headers  # it stays open
    assert json.loads(body["body"]) == {"error": "too many requests wait; try again later"}
    assert 'resnetkit_requests_total{route="/predict",status="503"} 1.0' in text


def test_while_it_drains_a_full_queue_refuses_after_the_body(path: Path) -> None:
    """The connection closes after the answer: with a part of the body unread, the client would not see the answer."""

    async def run(c: httpx.AsyncClient) -> httpx.Response:
        waiting = asyncio.ensure_future(c.post("/predict", files=[("file", ("a", jpeg(i))) for i in range(4)]))
        while model._loaded.in_flight < 4:
            await asyncio.sleep(0.01)
        app.draining = True

        async def body() -> AsyncIterator[bytes]:
            for part in (jpeg()[:500], jpeg()[500:]):
                read.append(len(part))
                yield part

        refused = await c.post("/predict", content=body(), headers=IMAGE)
        gate.open.set()
        assert (await waiting).status_code == 200
        return refused

    read: list[int] = []
    with served(path, limits=Limits(queue=4, max_pictures=4)) as (app, model):
        gate = Gate(model)
        gate.open.clear()
        refused = ask(app, run)
    assert sum(read) == len(jpeg())
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert int(refused.headers["retry-after"]) >= 1


def test_what_is_refused_before_its_route_counts_for_it(path: Path) -> None:
    with served(path, key="s3cret", limits=Limits(max_body=1999)) as (app, _):
        for call in (
            lambda c: c.post("/v2/models/a/infer", content=b""),
            lambda c: c.post("/v2/models/b/versions/1/infer", content=b""),
            lambda c: c.post("/nothing/of/this", content=b""),
            lambda c: c.post("/predict", content=b"x" * 2000, headers={"x-api-key": "s3cret"}),
        ):
            ask(app, call)
        text = ask(app, lambda c: c.get("/metrics"), **{"x-api-key": "s3cret"}).text
    for route, status in (
        ("/v2/models/{model}/infer", 401),
        ("/v2/models/{model}/versions/{version}/infer", 401),
        ("other", 401),
        ("/predict", 413),
    ):
        assert f'resnetkit_requests_total{{route="{route}",status="{status}"}} 1.0' in text


def test_a_late_request_is_answered_and_its_waiting_pictures_are_dropped(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        first = asyncio.ensure_future(c.post("/predict", content=jpeg(), headers=IMAGE))
        while not gate.began.is_set():
            await asyncio.sleep(0.01)
        late = await c.post("/predict?timeout_ms=50", content=jpeg(), headers=IMAGE)
        gate.open.set()
        return await first, late

    with served(path) as (app, model):
        gate = Gate(model)
        gate.open.clear()
        first, late = ask(app, run)
    assert (first.status_code, late.status_code) == (200, 504)
    assert late.json() == {"error": "the request was not answered in time"}
    assert gate.batches == [1]


def test_pictures_of_a_client_that_went_away_are_dropped(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> None:
        first = asyncio.ensure_future(c.post("/predict", content=jpeg(), headers=IMAGE))
        while not gate.began.is_set():
            await asyncio.sleep(0.01)
        sent, status = asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            if not sent.is_set():
                sent.set()
                return {"type": "http.request", "body": jpeg(), "more_body": False}
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            status.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png")],
        }
        await app(scope, receive, send)
        assert status == []
        gate.open.set()
        assert (await first).status_code == 200

    with served(path) as (app, model):
        gate = Gate(model)
        gate.open.clear()
        ask(app, run)
        dropped = 'resnetkit_pictures_total{model="m",outcome="cancelled"} 1.0'
        for _ in range(100):  # the queue drops it when it is its turn
            if dropped in (text := ask(app, lambda c: c.get("/metrics")).text):
                break
            time.sleep(0.05)
    assert gate.batches == [1]
    assert dropped in text
    assert 'resnetkit_requests_total{route="/predict",status="499"} 1.0' in text


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(path: Path) -> None:
    bomb = jpeg(size=(2000, 2000), kind="PNG")
    with served(path) as (app, _), accept_pixels(1_000_000):
        answer = ask(app, lambda c: c.post("/predict", content=bomb, headers=IMAGE))
    assert answer.status_code == 422
    assert answer.json()["results"][0]["error"] == "more than 1,000,000 pixels; make it smaller"


def test_the_key_is_asked_of_all_but_health(path: Path) -> None:
    with served(path, key="s3cret") as (app, _):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Basic s3cret"}):
            answer = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE), **headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "the key is missing or wrong"})
            assert ask(app, lambda c: c.get("/metrics"), **headers).status_code == 401
            assert ask(app, lambda c: c.get("/v2/models/m"), **headers).status_code == 401
        for headers in ({"authorization": "Bearer s3cret"}, {"x-api-key": "s3cret"}):
            answer = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE), **headers)
            assert answer.status_code == 200
        assert ask(app, lambda c: c.get("/health/ready")).json() == {"ready": True}
        assert ask(app, lambda c: c.get("/v2/health/live")).json() == {"live": True}


def test_every_answer_has_safe_headers_and_an_id(path: Path) -> None:
    with served(path) as (app, _):
        answers = [
            ask(app, lambda c: c.get("/health/live")),
            ask(app, lambda c: c.get("/nothing"), origin="http://elsewhere"),
            ask(app, lambda c: c.post("/predict", content=b"")),
            ask(app, lambda c: c.options("/predict"), origin="http://elsewhere"),
        ]
        named = ask(app, lambda c: c.get("/health/live"), **{"x-request-id": "abc-1"})
        forged = ask(app, lambda c: c.get("/health/live"), **{"x-request-id": "a b\tc"})
    assert [answer.status_code for answer in answers] == [200, 404, 415, 405]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert answer.status_code == 200 or list(answer.json()) == ["error"]
    assert named.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{16}", forged.headers["x-request-id"])


def test_an_error_inside_is_logged_and_not_shown(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(pixels: np.ndarray) -> np.ndarray:
        raise RuntimeError("/secret/path")

    with served(path) as (app, model):
        model._loaded.batcher._compute = fail
        answer = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE))
        assert model._loaded.in_flight == 0
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text
    assert "/secret/path" in caplog.text


def test_a_replaced_file_serves_new_requests_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    old = Predictor(path, backend="torch")(jpeg(), top=3)

    async def run(c: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        begun = asyncio.ensure_future(c.post("/predict", content=jpeg(), headers=IMAGE))
        while not gate.began.is_set():
            await asyncio.sleep(0.01)
        assert not model.reload_if_changed()  # it has just changed
        reloading = asyncio.ensure_future(asyncio.to_thread(model.reload_if_changed))
        while model._loaded is before:
            await asyncio.sleep(0.01)
        assert not model._loaded.paces  # what the one before took tells nothing of this one
        newer = await c.post("/predict", content=jpeg(), headers=IMAGE)
        assert not begun.done()
        gate.open.set()
        assert await reloading
        while not model._loaded.paces:  # noted after the answer
            await asyncio.sleep(0.01)
        assert (len(before.paces), len(model._loaded.paces)) == (1, 1)
        return await begun, newer

    with served(path) as (app, model):
        before = model._loaded
        assert not model.reload_if_changed()
        gate = Gate(model)
        gate.open.clear()
        shutil.move(write_model(tmp_path / "next.safetensors", seed=1, size=48), path)
        new = Predictor(path, backend="torch")(jpeg(), top=3)
        begun, newer = ask(app, run)
        for answer, expected in ((begun, old), (newer, new)):
            found = answer.json()["results"][0]["predictions"]
            assert [one["probability"] for one in found] == pytest.approx([p.probability for p in expected], abs=1e-6)
        assert begun.json() != newer.json()
        path.write_bytes(b"broken")
        assert not model.reload_if_changed()
        assert not model.reload_if_changed()  # it was tried, and failed
        assert ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE)).json() == newer.json()
        text = ask(app, lambda c: c.get("/metrics")).text
    assert 'resnetkit_model_loads_total{model="m",outcome="done"} 2.0' in text
    assert 'resnetkit_model_loads_total{model="m",outcome="failed"} 1.0' in text


def test_an_explanation_is_a_picture_of_the_class_that_was_asked_for(path: Path) -> None:
    with served(path) as (app, _):
        best = ask(app, lambda c: c.post("/predict?explain=true", content=jpeg(), headers=IMAGE)).json()["results"][0]
        frog = ask(app, lambda c: c.post("/predict?explain=frog", content=jpeg(), headers=IMAGE)).json()["results"][0]
        none = ask(app, lambda c: c.post("/predict?explain=dog", content=jpeg(), headers=IMAGE))
    assert best["explanation"]["label"] == best["predictions"][0]["label"]
    assert frog["explanation"]["label"] == "frog"
    with Image.open(io.BytesIO(base64.b64decode(frog["explanation"]["png"]))) as picture:
        assert picture.size == (60, 44)
    assert none.status_code == 400
    assert "there is no class dog" in none.json()["error"]


def test_calibrated_probabilities_and_rejections_are_those_of_predict(path: Path, tmp_path: Path) -> None:
    contents = [jpeg(i) for i in range(12)]
    confidences = np.linspace(0.45, 0.9, 40)
    calibration = Calibration(2.5, 40, tuple(confidences.tolist()))
    calibrated = write_model(tmp_path / "c.safetensors", calibration=calibration)
    predictor = Predictor(calibrated, backend="torch")
    expected, rejected = predictor(contents, top=3), predictor.rejected(contents)
    assert 0 < rejected.sum() < 12
    files = [("file", ("a", content)) for content in contents]
    image = [base64.b64encode(content).decode() for content in contents]
    tensors = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [12], "data": image}]}
    with served(calibrated) as (app, _):
        results = ask(app, lambda c: c.post("/predict?top=3&reject=true", files=files)).json()["results"]
        (probabilities, _) = ask(app, lambda c: c.post("/v2/models/m/infer", json=tensors)).json()["outputs"]
        text = ask(app, lambda c: c.get("/metrics")).text
    assert [result["rejected"] for result in results] == rejected.tolist()
    for result, best in zip(results, expected, strict=True):
        found = [one["probability"] for one in result["predictions"]]
        assert found == pytest.approx([p.probability for p in best], abs=1e-6)
    np.testing.assert_allclose(np.reshape(probabilities["data"], (12, 3)), predictor.probabilities(contents), atol=1e-6)
    assert f'resnetkit_rejected_pictures_total{{model="m"}} {2.0 * rejected.sum()}' in text
    drift = re.search(r'resnetkit_drift{model="m"} ([\d.]+)', text)
    assert drift
    assert 0.2 < float(drift[1]) < 1
    with served(path) as (app, _):
        refused = ask(app, lambda c: c.post("/predict?reject=true", content=jpeg(), headers=IMAGE))
    assert (refused.status_code, refused.json()) == (400, {"error": NO_THRESHOLD})


def test_metrics_count_what_happened(path: Path) -> None:
    with served(path) as (app, _):
        ask(app, lambda c: c.post("/predict", files=[("file", ("a", jpeg(i))) for i in range(3)]))
        ask(app, lambda c: c.post("/predict", content=b"bad", headers=IMAGE))
        ask(app, lambda c: c.get("/a/path/that/nobody/has"))
        idle = 'resnetkit_in_flight_pictures{model="m"} 0.0'
        for _ in range(100):  # a picture is counted after its answer is ready
            if idle in (text := ask(app, lambda c: c.get("/metrics")).text):
                break
            time.sleep(0.05)
    for line in (
        'resnetkit_requests_total{route="/predict",status="200"} 1.0',
        'resnetkit_requests_total{route="/predict",status="422"} 1.0',
        'resnetkit_requests_total{route="other",status="404"} 1.0',
        'resnetkit_pictures_total{model="m",outcome="answered"} 3.0',
        'resnetkit_pictures_total{model="m",outcome="unreadable"} 1.0',
        'resnetkit_stage_seconds_count{model="m",stage="decode"} 4.0',
        'resnetkit_stage_seconds_count{model="m",stage="queue"} 3.0',
        'resnetkit_batch_pictures_sum{model="m"} 3.0',
        idle,
    ):
        assert line in text.splitlines()


def test_the_models_and_the_document_name_what_there_is(path: Path) -> None:
    with served(path) as (app, _):
        (card,) = ask(app, lambda c: c.get("/models")).json()["models"]
        document = ask(app, lambda c: c.get("/openapi.json")).json()
    assert (card["name"], card["classes"], card["size"]) == ("m", list(CLASSES), 32)
    assert card["choice"]["backend"] == "torch"
    assert {"/predict", "/metrics", "/health/ready", "/v2/models/{model}/infer"} <= document["paths"].keys()
    examples = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["examples"]
    assert set(examples["classifier"]["value"]["results"][0]) == {"name", "predictions"}
    assert set(examples["detector"]["value"]["results"][0]) == {"name", "width", "height", "detections"}
    assert "HTTPValidationError" not in json.dumps(document)


def test_limits_have_bounds() -> None:
    with pytest.raises(UsageError, match="`queue` is 0; it must be at least 1"):
        Limits(queue=0)
    with pytest.raises(UsageError, match="`max_pictures` is 64, more than the `queue` of 8"):
        Limits(queue=8)
    with pytest.raises(UsageError, match="`timeout` is -1"):
        Limits(timeout=-1)
