"""Predictions of a detector: thresholds, tiles of large pictures, drawings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.detection.samples import Detections, Objects
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.drawing import COLORS, draw_boxes, draw_objects
from resnetkit.detect.files import DetectorModel, header_of, with_thresholds
from resnetkit.detect.model import Detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.spec import DETECTORS
from resnetkit.detect.tiles import find_in_tiles, tiles_of
from resnetkit.errors import UsageError
from resnetkit.models.spec import parse_spec


def find_bright(pixels: NDArray[np.uint8]) -> Detections:
    """A detector of bright rectangles on black, each of another value; its score is the value / 255."""
    boxes, scores = [], []
    for value in np.unique(pixels[pixels > 0]):
        rows, columns = np.nonzero(pixels[:, :, 0] == value)
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        scores.append(value / 255)
    order = np.argsort(scores)[::-1]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4)[order],
        np.zeros(len(boxes), np.int64),
        np.array(scores, np.float32)[order],
    )


def scene(*rectangles: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    pixels = np.zeros((300, 500, 3), np.uint8)
    for number, (left, top, right, bottom) in enumerate(rectangles):
        pixels[top:bottom, left:right] = 100 + number
    return pixels


def test_tiles_cover_a_picture_and_overlap():
    tiles = list(tiles_of((500, 300), 100))
    covered = np.zeros((300, 500), int)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (100, 100)
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1
    lefts = sorted({left for left, *_ in tiles})
    assert max(np.diff(lefts)) <= 75
    assert not list(tiles_of((150, 100), 100))
    assert {(bottom - top) for _, top, _, bottom in tiles_of((500, 60), 100)} == {60}


def test_an_object_at_an_edge_of_tiles_is_found_once_and_whole():
    rectangles = [(90, 90, 112, 110), (10, 10, 30, 30), (480, 280, 500, 300), (100, 120, 330, 290)]
    found = find_in_tiles(find_bright, scene(*rectangles), side=100, nms_iou=0.5, most=100)
    assert sorted(map(tuple, found.boxes.astype(int).tolist())) == sorted(rectangles)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_what_only_tiles_find_is_found():
    """A detector that sees nothing in large pictures, as one for which objects are too small there."""

    def near_sighted(pixels: NDArray[np.uint8]) -> Detections:
        found = find_bright(pixels)
        return found if pixels.shape[1] <= 100 else found.subset(np.zeros(0, np.int64))

    found = find_in_tiles(near_sighted, scene((90, 90, 112, 110)), side=100, nms_iou=0.5, most=100)
    assert found.boxes.tolist() == [[90, 90, 112, 110]]


@pytest.fixture
def model() -> DetectorModel:
    torch.manual_seed(0)
    spec = replace(DETECTORS["fpn-small"], width=16, hidden=32, proposals=(50, 30))
    net = Detector(parse_spec("resnet18,width=8,norm=frozen"), spec, Preprocess(64), classes=2).eval()
    return DetectorModel(net, header_of(net, ("cat", "dog"), data={"name": "pets", "shorter_side": 48}))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


def test_thresholds_are_those_of_validation_or_the_given_one(model, picture):
    every = DetectorPredictor(model, threshold=0.0)(picture)["detections"]
    assert len(every) > 5
    scores = sorted((one["score"] for one in every if one["label"] == "dog"), reverse=True)
    between = (scores[0] + scores[1]) / 2
    chosen = replace(model, header=with_thresholds(model.header, {"cat": 1.0, "dog": between}))
    found = DetectorPredictor(chosen)(picture)["detections"]
    assert [one["label"] for one in found] == ["dog"]
    assert found[0]["score"] == scores[0]
    assert DetectorPredictor(model, threshold=1.0)(picture)["detections"] == []
    with pytest.raises(UsageError, match="`threshold` is 2"):
        DetectorPredictor(model, threshold=2)


def test_a_tile_is_as_large_as_pictures_of_the_training(model):
    assert DetectorPredictor(model).tile_size is None
    assert DetectorPredictor(model, tile=True).tile_size == 48
    assert DetectorPredictor(model, tile_size=100).tile_size == 100
    with pytest.raises(UsageError, match="`tile_size` is 3; it must be at least 32"):
        DetectorPredictor(model, tile_size=3)


def test_files_are_in_their_order_with_reasons(model, picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    paths = [tmp_path / "none.png", picture, tmp_path / "broken.jpg"]
    results = list(DetectorPredictor(model, threshold=0).predict_paths(paths, draw=tmp_path / "out"))
    assert [result["path"] for result in results] == [str(path) for path in paths]
    assert "no such file" in results[0]["error"]
    assert (results[1]["width"], results[1]["height"]) == (96, 64)
    assert Image.open(results[1]["drawing"]).size == (96, 64)
    assert "error" in results[2]


def test_frames_have_the_colour_of_the_class():
    found = Detections(np.array([[20, 30, 60, 70]], np.float32), np.array([1]), np.array([0.9], np.float32))
    truth = Objects(np.array([[5, 5, 15, 15]], np.float32), np.array([0]))
    drawn = np.array(draw_boxes(np.zeros((100, 120, 3), np.uint8), found, ("cat", "dog"), truth=truth))
    color = tuple(int(COLORS[1][place : place + 2], 16) for place in (1, 3, 5))
    assert tuple(drawn[70, 40]) == color
    assert tuple(drawn[50, 40]) == (0, 0, 0)
    assert tuple(drawn[5, 10]) == (255, 255, 255)
    drawn = np.array(draw_objects(np.zeros((100, 120, 3), np.uint8), truth, ("cat", "dog")))
    assert "#{:02x}{:02x}{:02x}".format(*drawn[15, 10]) == COLORS[0]
    assert drawn[70, 40].tolist() == [0, 0, 0]
