"""Measures of detectors, against published implementations."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from detections import scene
from resnetkit.data.detection.samples import Detections, DetectionSamples, Objects
from resnetkit.evaluation.detection.average_precision import average_precision, average_precision_11_points
from resnetkit.evaluation.detection.coco import as_coco, as_coco_results, coco_precision
from resnetkit.evaluation.detection.error_kinds import error_kinds
from resnetkit.evaluation.detection.matching import Matches, match
from resnetkit.evaluation.detection.measures import measure
from resnetkit.evaluation.detection.overlap import overlaps, shares_within
from resnetkit.evaluation.detection.thresholds import best_threshold

# Average precisions of the three classes in percent: area, 11 points. They are those of voc_eval.py (py-faster-rcnn),
# the usual translation of the development kit, on the same pictures with boxes as inclusive pixels and exact recalls:
# its own 0.3, 0.6 and 0.7 are rounded up, so that a recall of exactly 3/10 does not reach 0.3.
DEVKIT = {
    (1, False): ((39.812856, 31.481481, 12.731092), (43.415149, 32.323232, 13.529412)),
    (1, True): ((38.509339, 33.333333, 11.666667), (39.801463, 39.393939, 12.727273)),
    (2, False): ((35.859729, 34.754602, 36.717172), (35.052448, 33.347461, 36.717172)),
    (2, True): ((30.219780, 36.053469, 36.888889), (29.220779, 36.918593, 38.989899)),
    (3, False): ((26.822917, 49.837613, 46.598639), (29.924242, 50.077986, 46.428571)),
    (3, True): ((28.205128, 52.272727, 34.848485), (33.333333, 52.272727, 34.710744)),
}
# Counts and gains in percent by tidecv 1.0.1: class, place, both, double, background, missed.
TIDE = {
    1: ((6, 15, 5, 20, 11, 15), (4.706, 11.004, 0.166, 5.288, 1.209, 14.197)),
    2: ((4, 16, 7, 27, 9, 14), (4.275, 16.438, 0.293, 7.192, 0.960, 13.019)),
    3: ((0, 8, 5, 20, 8, 13), (0.0, 11.201, 0.714, 11.309, 0.0, 17.590)),
}


def one_picture(
    truth: list[tuple[float, ...]], found: list[tuple[float, ...]], **flags: list[bool]
) -> tuple[DetectionSamples, list[Detections]]:
    """Return a picture of 100 pixels with objects (left, top, right, bottom, label) and detections (..., score)."""
    of = np.array(truth, np.float32).reshape(-1, 5)
    arrays = {name: np.array(values) for name, values in flags.items()}
    objects = Objects(of[:, :4].copy(), of[:, 4].astype(np.int64), **arrays)
    seen = np.array(found, np.float32).reshape(-1, 6)
    detections = Detections(seen[:, :4].copy(), seen[:, 4].astype(np.int64), seen[:, 5].copy())
    return DetectionSamples(("a", "b"), (Path("0.jpg"),), ((100, 100),), (objects,)), [detections]


@pytest.mark.parametrize(("seed", "hard"), DEVKIT)
def test_average_precisions_are_those_of_the_development_kit(seed: int, hard: bool):
    samples, found = scene(seed, hard=hard)
    matches = match(samples.objects, found, 3)
    area, points = DEVKIT[seed, hard]
    assert [100 * average_precision(one) for one in matches] == pytest.approx(area, abs=1e-5)
    assert [100 * average_precision_11_points(one) for one in matches] == pytest.approx(points, abs=1e-5)
    evaluation = measure(found, samples)
    assert evaluation.ap50_percent == pytest.approx(np.mean(area), abs=1e-5)
    assert evaluation.voc07_percent == pytest.approx(np.mean(points), abs=1e-5)


def test_an_overlap_of_exactly_a_half_is_enough():
    samples, found = one_picture([(0, 0, 10, 10, 0)], [(0, 0, 10, 20, 0, 0.9)])
    assert match(samples.objects, found, 2)[0].right.tolist() == [True]
    samples, found = one_picture([(0, 0, 10, 10, 0)], [(0, 0, 10, 20.1, 0, 0.9)])
    assert match(samples.objects, found, 2)[0].right.tolist() == [False]


def test_eleven_points_are_exact_where_a_recall_is_a_tenth():
    right = np.array([True] * 3 + [False] + [True] * 7)
    matches = Matches(10, np.linspace(1, 0, 11), right)
    assert average_precision_11_points(matches) == pytest.approx((4 * 1 + 7 * 10 / 11) / 11)


def test_a_difficult_object_is_neither_found_nor_missed_nor_a_reason_for_an_error():
    boxes = [(0.0, 0, 10, 10, 0), (50, 50, 60, 60, 0)]
    samples, found = one_picture(boxes, [(*boxes[0], 0.9), (*boxes[1], 0.8)], difficult=[True, False])
    matches = match(samples.objects, found, 2)[0]
    assert (matches.objects, matches.right.tolist()) == (1, [True])
    assert all(not one.count for one in measure(found, samples).errors.values())


def test_detections_in_a_crowd_do_not_count():
    samples, found = one_picture(
        [(0, 0, 50, 50, 0), (60, 60, 70, 70, 0)],
        [(2, 2, 8, 8, 0, 0.9), (20, 2, 28, 8, 0, 0.8), (60, 60, 70, 70, 0, 0.7), (2, 2, 8, 8, 1, 0.6)],
        crowd=[True, False],
    )
    matches = match(samples.objects, found, 2)[0]
    assert (matches.objects, matches.right.tolist()) == (1, [True])
    assert measure(found, samples).errors["background"].count == 1  # that of the other class


def test_a_class_without_objects_has_no_average_precision():
    samples, found = one_picture([(0, 0, 10, 10, 0)], [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 1, 0.8)])
    evaluation = measure(found, samples, coco=True)
    assert np.isnan(evaluation.per_class["b"]["ap50_percent"])
    assert evaluation.ap50_percent == evaluation.ap_percent == pytest.approx(100)
    nothing, none = one_picture([], [])
    assert np.isnan(measure(none, nothing).ap50_percent)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_coco_is_that_of_pycocotools(seed: int, hard: bool):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    samples, found = scene(seed, hard=hard)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = as_coco(samples)
        truth.createIndex()
        measured = cocoeval.COCOeval(truth, truth.loadRes(as_coco_results(found)), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    ours = coco_precision(samples, found)
    got = np.nan_to_num([ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large], nan=-1)
    assert got == pytest.approx(measured.stats[:6], abs=1e-9)
    per_class = measured.eval["precision"][:, :, :, 0, -1].mean(axis=(0, 1))
    assert list(ours.per_class.values()) == pytest.approx(per_class, abs=1e-9)


def test_coco_without_detections_is_0_and_without_objects_unknown():
    samples, _ = one_picture([(0, 0, 10, 10, 0)], [])
    nothing = [Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    ours = coco_precision(samples, nothing)
    assert ours.ap == 0
    assert np.isnan(ours.ap_large)
    assert np.isnan(ours.per_class["b"])


@pytest.mark.parametrize("seed", TIDE)
def test_kinds_of_errors_are_those_of_tide(seed: int):
    samples, found = scene(seed, hard=False)
    errors = error_kinds(samples.objects, found, 3)
    counts, gains = TIDE[seed]
    assert tuple(one.count for one in errors.values()) == counts
    # TIDE's precision is a mean over 101 recalls, ours the area.
    assert [100 * one.gain for one in errors.values()] == pytest.approx(gains, abs=0.5)


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((0, 0, 10, 16, 0), None),
        ((0, 0, 10, 40, 0), "place"),
        ((0, 0, 10, 12, 1), "class"),
        ((0, 0, 10, 40, 1), "both"),
        ((60, 60, 70, 70, 0), "background"),
    ],
)
def test_each_kind_of_error(found: tuple[float, ...], kind: str | None):
    samples, detections = one_picture([(0, 0, 10, 10, 0)], [(*found, 0.9)])
    errors = measure(detections, samples).errors
    named = {name for name, one in errors.items() if one.count}
    missed = {"missed"} if kind in ("both", "background") else set()
    assert named == ({kind} if kind else set()) | missed


def test_a_second_detection_of_an_object_is_double():
    samples, found = one_picture([(0, 0, 10, 10, 0)], [(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 11, 0, 0.95)])
    assert {kind: one.count for kind, one in measure(found, samples).errors.items() if one.count} == {"double": 1}


def test_a_threshold_has_the_largest_f1_of_all():
    samples, found = scene(3)
    for matches in match(samples.objects, found, 3):
        threshold = best_threshold(matches)
        assert threshold is not None
        f1 = []
        for least in np.linspace(0, 1, 2001):
            kept = matches.scores >= least
            f1.append(2 * matches.right[kept].sum() / (matches.objects + kept.sum()))
        assert threshold.f1 == pytest.approx(max(f1))
        kept = matches.scores >= threshold.score
        assert threshold.precision == pytest.approx(matches.right[kept].mean())
        assert threshold.recall == pytest.approx(matches.right[kept].sum() / matches.objects)


def test_equal_scores_are_on_one_side_of_a_threshold():
    matches = Matches(2, np.array([0.9, 0.5, 0.5, 0.5]), np.array([True, True, False, False]))
    threshold = best_threshold(matches)
    assert threshold is not None
    assert (threshold.score, threshold.precision, threshold.recall) == (0.7, 1.0, 0.5)
    assert best_threshold(Matches(2, np.array([0.9]), np.array([False]))) is None


def test_overlaps():
    one = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], np.float32)
    other = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    assert overlaps(one, other)[0].tolist() == pytest.approx([1, 1 / 3, 0])
    assert overlaps(one, other)[1].tolist() == [0, 0, 0]
    assert shares_within(one, other)[0].tolist() == pytest.approx([1, 0.5, 0])


def test_measures_as_plain_values():
    samples, found = scene(2)
    values = measure(found, samples, coco=True).to_dict()
    assert list(values) == ["images", "ap50_percent", "voc07_percent", "ap_percent", "coco", "errors", "per_class"]
    assert set(values["per_class"]["cat"]) >= {"objects", "ap50_percent", "ap_percent", "threshold", "f1_percent"}
    with pytest.raises(ValueError, match="11 detections of 12 pictures"):
        measure(found[:-1], samples)


def test_measuring_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, resnetkit.evaluation.detection.measures; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
