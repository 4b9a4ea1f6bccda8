"""What the report of a detector shows: curves, and the pictures with most errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetkit.data.detection.samples import Detections, DetectionSamples, Objects
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.report import precision_chart, write_detection_report
from resnetkit.evaluation.detection.matching import Matches
from resnetkit.evaluation.detection.measures import measure
from resnetkit.evaluation.detection.worst import as_plain, precision_curve, worst_pictures
from resnetkit.modelfile import Header
from resnetkit.models.spec import parse_spec


def test_a_curve_has_the_best_precision_from_each_recall_on():
    """Right, wrong, right of four objects: precision 1 up to a quarter, 2 of 3 up to a half, then nothing."""
    curve = precision_curve(Matches(4, np.array([0.9, 0.8, 0.7]), np.array([True, False, True])))
    assert len(curve) == 101
    assert curve[:26] == [1.0] * 26
    assert curve[26:51] == pytest.approx([2 / 3] * 25)
    assert curve[51:] == [0.0] * 50
    assert precision_curve(Matches(0, np.zeros(0), np.zeros(0, bool))) == []


def samples_and_found(folder: Path) -> tuple[DetectionSamples, list[Detections]]:
    paths = tuple(folder / f"{name}.png" for name in "abc")
    for path in paths:
        Image.new("RGB", (60, 50), (90, 90, 90)).save(path)
    one = Objects(np.array([[5, 5, 20, 20], [30, 5, 50, 40]], np.float32), np.array([0, 1]))
    samples = DetectionSamples(("red", "<b>"), paths, ((60, 50),) * 3, (one, one, Objects.none()))
    right = Detections(one.boxes, one.labels, np.array([0.9, 0.8], np.float32))
    far = np.array([[0, 30, 9, 45], [5, 5, 20, 20], [0, 0, 60, 50]], np.float32)
    wrong = Detections(far, np.array([0, 1, 0]), np.array([0.9, 0.7, 0.1], np.float32))
    return samples, [right, wrong, wrong.subset(np.array([0, 2]))]


def test_the_pictures_with_most_errors(tmp_path):
    samples, found = samples_and_found(tmp_path)
    worst = worst_pictures(found, samples, {"red": 0.3, "<b>": 0.6}, most=8)
    assert [(one.picture, one.missed, one.wrong) for one in worst] == [(1, 2, 2), (2, 0, 1)]
    assert len(worst[0].found) == 2  # the third is below the threshold of its class
    assert [one.picture for one in worst_pictures(found, samples, {}, most=1)] == [1]
    plain = as_plain(worst[0], samples)
    assert plain["path"] == str(samples.paths[1])
    assert plain["objects"][1] == [0, 1]


def test_the_report_has_curves_sizes_and_pictures(tmp_path):
    samples, found = samples_and_found(tmp_path)
    result = measure(found, samples)
    worst = worst_pictures(found, samples, {}, most=8)
    measured = {
        "evaluation": result.to_dict() | {"coco": {"ap_small_percent": 12.5, "ap_large_percent": float("nan")}},
        "curves": {name: precision_curve(one) for name, one in zip(result.classes, result.matches, strict=True)},
        "worst": [as_plain(one, samples) for one in worst],
    }
    samples.paths[2].unlink()  # a picture that is gone is left out
    header = Header(parse_spec("resnet18,classes=2"), Preprocess(64), samples.classes)
    path = tmp_path / "report.html"
    write_detection_report(path, header, title="cells", measured=measured, curves=b"", about={})
    text = path.read_text()
    assert "12.50" in text
    assert text.count("<polyline") == 2
    assert "b.png: 2 missed, 2 wrong" in text
    assert "c.png" not in text
    assert text.count("&lt;b&gt;") >= 2  # a class that looks like HTML
    write_detection_report(path, header, title="cells", measured=None, curves=b"", about={})
    assert "<polyline" not in path.read_text()


def test_a_chart_of_very_many_classes_says_what_is_left_out():
    text = precision_chart({str(place): [1.0, 0.5] for place in range(20)} | {"none": []})
    assert text.count("<polyline") == 15
    assert "5 more classes not drawn" in text
