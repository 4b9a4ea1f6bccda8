"""The server with detectors: boxes as `detect predict` finds them, limits, metrics, the Open Inference Protocol."""

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from resnetkit.cli import main
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.spec import DETECTORS
from resnetkit.modelfile import inspect
from resnetkit.serve import served as queue
from resnetkit.serve.app import create_app
from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.protocol import HEADER_LENGTH
from resnetkit.serve.served import ServedModel
from resnetkit.verification.detectors import Way
from resnetkit.verification.receipt import verify
from serving import CLASSES, client, jpeg, listening, opened, served, write_detector, write_model

IMAGE = {"content-type": "image/jpeg"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds something in the pictures of these tests, but not everything."""
    path = write_detector(tmp_path_factory.mktemp("model") / "m.safetensors")
    every = DetectorPredictor(path, backend="torch", threshold=0)
    scores = every.compute(np.asarray(every.decode(jpeg()))).scores
    return write_detector(path, thresholds=dict.fromkeys(CLASSES, round(float(scores[20]), 4)))


@pytest.fixture(scope="module")
def least(path: Path) -> float:
    return inspect(path).detector["thresholds"]["cat"]


@pytest.fixture(scope="module")
def app(path: Path) -> Any:
    with served(path, limits=Limits(max_pictures=8)) as (app, _):
        yield app


def ask(app: Guard, call: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with client(app) as session:
            return await call(session)

    return asyncio.run(run())


def turned(content: bytes) -> bytes:
    """The same picture file, to be turned by a quarter when it is shown (EXIF)."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(content)) as picture:
        picture.save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_boxes_are_those_of_detect_predict(path: Path, app: Guard, tmp_path: Path) -> None:
    contents = [jpeg(0, (90, 60)), jpeg(1, (60, 90)), turned(jpeg(2, (90, 60)))]
    files = [("file", (f"{i}.jpg", content)) for i, content in enumerate(contents)]
    files.insert(1, ("file", ("bad.jpg", contents[0][:700])))
    answer = ask(app, lambda c: c.post("/predict", files=files))
    assert (answer.status_code, answer.json()["model"]) == (200, "m")
    results = answer.json()["results"]
    bad = results.pop(1)
    assert list(bad) == ["name", "error"]
    assert "incomplete" in bad["error"]
    predictor = DetectorPredictor(path, backend="torch")
    for i, (result, content) in enumerate(zip(results, contents, strict=True)):
        (tmp_path / "a.jpg").write_bytes(content)
        expected = predictor(tmp_path / "a.jpg")
        del expected["path"]
        assert 0 < len(expected["detections"]) < 90
        assert result == {"name": f"{i}.jpg", **expected}
    assert (results[2]["width"], results[2]["height"]) == (60, 90)  # upright
    unread = ask(app, lambda c: c.post("/predict", content=b"no picture", headers=IMAGE))
    assert unread.status_code == 422


def test_the_threshold_of_a_request_replaces_those_of_the_file(least: float, app: Guard) -> None:
    every = ask(app, lambda c: c.post("/predict?threshold=0", content=jpeg(), headers=IMAGE)).json()["results"][0]
    scores = [one["score"] for one in every["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) < least < scores[3]
    some = ask(app, lambda c: c.post(f"/predict?threshold={scores[3] - 1e-5}", content=jpeg(), headers=IMAGE)).json()
    assert some["results"][0]["detections"] == [one for one in every["detections"] if one["score"] > scores[3] - 1e-5]
    none = ask(app, lambda c: c.post("/predict?threshold=1", content=jpeg(), headers=IMAGE))
    assert (none.status_code, none.json()["results"][0]["detections"]) == (200, [])  # nothing found is an answer


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("threshold=2", "threshold: "),
        ("threshold=nan", "threshold: "),
        ("top=3", "model m is a detector; leave out `top`"),
        ("explain=true", "leave out `explain`"),
        ("reject=true", "leave out `reject`"),
    ],
)
def test_wishes_that_a_detector_can_not_fulfil_are_refused(app: Guard, query: str, error: str) -> None:
    answer = ask(app, lambda c: c.post(f"/predict?{query}", content=jpeg(), headers=IMAGE))
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_pictures_wait_as_files_where_too_much_is_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MOST_DECODED", -1)
    files = [("file", (f"{i}.jpg", content)) for i, content in enumerate([jpeg(0), b"no picture", jpeg(1)])]
    decoding: list[str] = []
    with served(path) as (app, model):
        decode = model.opened.decode
        monkeypatch.setattr(model.opened, "decode", lambda p: (decoding.append(current_thread().name), decode(p))[1])
        found = ask(app, lambda c: c.post("/predict", files=files)).json()["results"]
        loaded = model._loaded
    assert len(decoding) == 3
    assert all(name.startswith("resnetkit-batch") for name in decoding), "as files, until it is their turn"
    assert (loaded.in_flight, loaded.decoded) == (0, 0)
    monkeypatch.undo()
    with served(path) as (app, _):
        assert found == ask(app, lambda c: c.post("/predict", files=files)).json()["results"]
    assert ["error" in one for one in found] == [False, True, False]


def test_a_request_that_would_be_late_is_refused_at_once(path: Path) -> None:
    async def run(c: httpx.AsyncClient) -> tuple[list[httpx.Response], httpx.Response]:
        model._loaded.seconds_per_picture = 20  # so slow is a large detector
        waiting = [asyncio.ensure_future(c.post("/predict", content=jpeg(i), headers=IMAGE)) for i in range(2)]
        while model._loaded.in_flight < 2:
            await asyncio.sleep(0.01)
        late = await c.post("/predict", content=jpeg(), headers=IMAGE)
        go_on.set()
        return await asyncio.gather(*waiting), late

    go_on = Event()
    with served(path, limits=Limits(timeout=30)) as (app, model):
        batcher = model._loaded.batcher
        compute = batcher._compute
        batcher._compute = lambda pictures: go_on.wait(20) and compute(pictures)
        accepted, late = ask(app, run)
    assert [answer.status_code for answer in accepted] == [200, 200]
    assert (late.status_code, late.headers["retry-after"]) == (503, "40")


def test_detectors_and_classifiers_are_served_together(path: Path, least: float, tmp_path: Path) -> None:
    limits, metrics = Limits(), Metrics()
    paths = {"pets": write_model(tmp_path / "c.safetensors"), "cells": path}
    with ThreadPoolExecutor(2) as decoders:
        models = {
            name: ServedModel(name, lambda p=p: opened(p, 4), limits=limits, metrics=metrics, decoders=decoders)
            for name, p in paths.items()
        }
        app = create_app(models, limits=limits, metrics=metrics)

        async def run(c: httpx.AsyncClient) -> list[httpx.Response]:
            calls = [c.post(f"/predict?model={name}", content=jpeg(), headers=IMAGE) for name in (*paths, *paths)]
            calls.append(c.post("/predict?model=pets&threshold=0.5", content=jpeg(), headers=IMAGE))
            return await asyncio.gather(*calls, c.get("/models"))

        *answers, refused, about = ask(app, run)
        for model in models.values():
            model.close()
        text = ask(app, lambda c: c.get("/metrics")).text
    kinds = [next(key for key in ("predictions", "detections") if key in one.json()["results"][0]) for one in answers]
    assert kinds == ["predictions", "detections"] * 2
    assert (refused.status_code, refused.json()["error"]) == (400, "model pets is a classifier; leave out `threshold`")
    classifier, detector = about.json()["models"]
    assert (classifier["kind"], detector["kind"]) == ("classifier", "detector")
    assert detector["fingerprint"] == DetectorPredictor(path, backend="torch").fingerprint
    assert detector["thresholds"] == [least] * 3
    assert detector["metrics"] == {"ap50_percent": 12.5}
    spec = DETECTORS["fpn-small"]
    assert (detector["size"], detector["head"], detector["least_score"]) == (64, "fpn", spec.score_threshold)
    found = answers[1].json()["results"][0]["detections"]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['resnetkit_detections_per_picture_sum{model="cells"}'] == f"{2.0 * len(found)}"
    labels = [one["label"] for one in found]
    assert (
        lines[f'resnetkit_detections_total{{label="{labels[0]}",model="cells"}}'] == f"{2.0 * labels.count(labels[0])}"
    )
    assert lines['resnetkit_pictures_total{model="cells",outcome="answered"}'] == "2.0"


def test_a_file_of_another_kind_replaces_a_model(path: Path, tmp_path: Path) -> None:
    served_path = write_model(tmp_path / "m.safetensors")
    with served(served_path) as (app, model):
        before = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE)).json()["results"][0]
        path_of_next = tmp_path / "next"
        path_of_next.write_bytes(path.read_bytes())
        path_of_next.replace(served_path)
        model.reload_if_changed()
        assert model.reload_if_changed()
        after = ask(app, lambda c: c.post("/predict", content=jpeg(), headers=IMAGE)).json()["results"][0]
        metadata = ask(app, lambda c: c.get("/v2/models/m")).json()
    assert "predictions" in before
    assert "detections" in after
    assert metadata["outputs"][0] == {"name": "boxes", "datatype": "FP32", "shape": [-1, -1, 4]}


def tensor(contents: list[bytes], **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(content).decode() for content in contents]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}], **more}


def by_name(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    return {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}


def test_boxes_by_the_protocol_have_a_row_for_each_object_of_the_fullest_picture(path: Path, app: Guard) -> None:
    contents = [jpeg(0, (90, 60)), jpeg(1, (60, 90)), jpeg(2), jpeg(3)]
    predictor = DetectorPredictor(path, backend="torch")
    expected = [predictor.find(predictor.decode(content)) for content in contents]  # type: ignore[arg-type]
    most = max(map(len, expected))
    assert len(set(map(len, expected))) > 1
    found = by_name(ask(app, lambda c: c.post("/v2/models/m/infer", json=tensor(contents))).json())
    assert list(found) == ["boxes", "labels", "scores", "counts", "names"]
    assert found["counts"].tolist() == [len(one) for one in expected]
    assert found["boxes"].shape == (4, most, 4)
    for place, one in enumerate(expected):
        np.testing.assert_array_equal(found["boxes"][place, : len(one)].astype(np.float32), one.boxes)
        np.testing.assert_array_equal(found["labels"][place, : len(one)], one.labels)
        np.testing.assert_array_equal(found["scores"][place, : len(one)].astype(np.float32), one.scores)
        assert found["names"][place, : len(one)].tolist() == [CLASSES[label] for label in one.labels]
        assert not found["boxes"][place, len(one) :].any()
        assert set(found["labels"][place, len(one) :]) <= {-1}
        assert set(found["names"][place, len(one) :]) <= {""}


def test_pixels_thresholds_and_binary_tensors_by_the_protocol(path: Path, app: Guard) -> None:
    predictor = DetectorPredictor(path, backend="torch")
    pixels = np.asarray(predictor.decode(jpeg(3, (80, 50))))
    expected = predictor.kept(predictor.compute(pixels), 0.3)
    given = {"name": "pixels", "datatype": "UINT8", "shape": [1, 50, 80, 3]}
    message = {
        "inputs": [given | {"parameters": {"binary_data_size": pixels.nbytes}}],
        "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("labels", "boxes", "names")],
        "parameters": {"threshold": 0.3},
    }
    head = json.dumps(message).encode()
    answer = ask(
        app,
        lambda c: c.post(
            "/v2/models/m/infer", content=head + pixels.tobytes(), headers={HEADER_LENGTH: str(len(head))}
        ),
    )
    length = int(answer.headers[HEADER_LENGTH])
    described = {one["name"]: one for one in json.loads(answer.content[:length])["outputs"]}
    assert described["labels"]["datatype"] == "INT64"
    count = described["labels"]["shape"][1]
    assert count == len(expected) > 0
    tail = answer.content[length:]
    np.testing.assert_array_equal(np.frombuffer(tail, "<i8", count), expected.labels)
    boxes = np.frombuffer(tail, "<f4", 4 * count, offset=8 * count)
    np.testing.assert_array_equal(boxes.reshape(-1, 4), expected.boxes)


def test_a_bad_picture_by_the_protocol(app: Guard) -> None:
    contents = [jpeg(0), b"no picture"]
    refused = ask(app, lambda c: c.post("/v2/models/m/infer", json=tensor(contents)))
    assert (refused.status_code, "picture 1 can't be read" in refused.json()["error"]) == (400, True)
    outputs = [{"name": "counts"}, {"name": "errors"}]
    found = by_name(ask(app, lambda c: c.post("/v2/models/m/infer", json=tensor(contents, outputs=outputs))).json())
    assert found["counts"][0] > 0
    assert found["counts"][1] == 0
    assert [bool(one) for one in found["errors"]] == [False, True]
    nothing = by_name(
        ask(app, lambda c: c.post("/v2/models/m/infer", json=tensor([jpeg()], parameters={"threshold": 1}))).json()
    )
    assert (nothing["boxes"].shape, nothing["names"].shape, nothing["counts"].tolist()) == ((1, 0, 4), (1, 0), [0])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (tensor([jpeg()], parameters={"threshold": 2}), "threshold must be a number from 0 to 1"),
        (tensor([jpeg()], parameters={"threshold": True}), "threshold must be a number from 0 to 1"),
        (tensor([jpeg()], outputs=[{"name": "scores", "parameters": {"classification": 3}}]), "classification must be"),
        (tensor([jpeg()], outputs=[{"name": "logits"}]), "there are boxes, labels, scores, counts, names, errors"),
        (tensor([jpeg()] * 9), "9 pictures; a request may have 1 to 8"),
        ({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 0, 4, 3], "data": []}]}, "has shape"),
        ({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 3], "data": []}]}, "has shape"),
        ({"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [1]}]}, "12 whole numbers"),
    ],
)
def test_wrong_messages_to_a_detector_say_what_is_wrong(app: Guard, message: dict[str, Any], error: str) -> None:
    answer = ask(app, lambda c: c.post("/v2/models/m/infer", json=message))
    assert answer.status_code == 400
    assert error in answer.json()["error"]


def test_the_metadata_of_a_detector(app: Guard) -> None:
    metadata = ask(app, lambda c: c.get("/v2/models/m")).json()
    assert metadata["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
    ]
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["outputs"]] == [
        ("boxes", "FP32", [-1, -1, 4]),
        ("labels", "INT64", [-1, -1]),
        ("scores", "FP32", [-1, -1]),
        ("counts", "INT64", [-1]),
        ("names", "BYTES", [-1, -1]),
        ("errors", "BYTES", [-1]),
    ]
    config = ask(app, lambda c: c.get("/v2/models/m/config")).json()
    assert config["output"][1] == {"name": "labels", "data_type": "TYPE_INT64", "dims": [-1, -1]}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place in range(3):
        (folder / f"{place}.jpg").write_bytes(jpeg(place, (90, 60)))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_the_boxes_of_a_server_join_the_receipt(
    path: Path, app: Guard, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listening(app) as url:
        assert main(["verify", str(path), str(pictures), "--url", url, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["verify", str(path), str(pictures), "--url", url]) == 0
        assert "all ways agree" in capsys.readouterr().out
        another = write_detector(tmp_path / "other.safetensors", seed=1, thresholds=dict.fromkeys(CLASSES, 0.2))
        assert main(["verify", str(another), str(pictures), "--url", url]) == 1
        out = capsys.readouterr().out
    assert (found["agrees"], found["pictures"]) == (True, 3)
    assert found["ways"]["served"]["objects"] > 10
    assert found["ways"]["served"]["other_objects"] == 0
    assert found["served"]["same_file"]
    assert found["served"]["way"]["largest_score_difference"] <= 1e-6
    assert "its model file is ANOTHER one" in out
    assert "the ways do NOT agree" in out


def test_a_receipt_without_a_server_or_pictures_draws_its_own(path: Path) -> None:
    found = verify(path)
    assert (found.pictures, found.agrees) == (24, True)
    assert list(found.ways) == ["detect predict"]
    assert found.ways["detect predict"].objects > 0


def test_what_boxes_agree() -> None:
    def objects(*rows: tuple[float, list[float]]) -> list[dict[str, Any]]:
        return [{"index": 0, "score": score, "box": box} for score, box in rows]

    box, moved = [10.0, 10.0, 50.0, 50.0], [10.0, 10.05, 50.0, 50.0]
    expected = [objects((0.9, box), (0.5003, [100.0, 0.0, 120.0, 20.0]))]
    near = Way.of(expected, [objects((0.9005, moved))], [0.5])  # the other one is just below its threshold
    assert (near.agrees, near.objects, near.other_objects) == (True, 2, 0)
    assert near.largest_edge_difference == pytest.approx(0.05)
    assert not Way.of(expected, [objects((0.9005, moved))], [0.5], close=(1e-6, 0.01)).agrees
    assert Way.of(expected, [objects((0.9, [200.0, 10.0, 240.0, 50.0]))], [0.5]).other_objects == 2
    many = [objects(*((0.9, [40.0 * place, 0.0, 40.0 * place + 30, 30.0]) for place in range(20)))]
    assert Way.of(many, [many[0][:18]], [0.5], precision="int8").agrees
    assert not Way.of(many, [many[0][:17]], [0.5], precision="int8").agrees
    moved_away = [objects((0.9, [0.0, 900.0, 30.0, 930.0]), (0.9, [90.0, 900.0, 120.0, 930.0])), many[0][2:]]
    assert Way.of(many, [[*moved_away[0], *moved_away[1]]], [0.5], precision="int8").agrees
    assert Way.of([objects((0.9, box))], [[]], [0.5], precision="int8").agrees
    assert not Way.of([objects((0.9, box))], [moved_away[0][:1]], [0.5], precision="int8").agrees  # another object
    strange = [{"index": 5, "score": 0.9, "box": box}]  # a class that the model has not
    assert Way.of([[]], [strange], [0.5]).other_objects == 1
    assert not Way.of(many, [many[0][:19]], [0.5]).agrees
