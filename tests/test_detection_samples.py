"""The one target format of detection."""

from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.errors import DataError


def one(*boxes: tuple[float, float, float, float], label: int = 0) -> Objects:
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), label, np.int64))


def samples(tmp_path: Path, *objects: Objects) -> DetectionSamples:
    paths = tuple(tmp_path / f"{number}.jpg" for number in range(len(objects)))
    for path in paths:
        path.write_bytes(b"pixels")
    return DetectionSamples(("cat", "dog"), paths, ((64, 48),) * len(objects), objects)


def test_defaults_are_ordinary_objects_as_large_as_their_boxes():
    objects = one((0, 0, 4, 5), (1, 1, 3, 3))
    assert objects.areas.tolist() == [20, 4]
    assert objects.trained.tolist() == [True, True]
    assert Objects.none().boxes.shape == (0, 4)


def test_difficult_objects_and_crowds_are_not_trained_on():
    objects = Objects(
        np.zeros((3, 4), np.float32),
        np.zeros(3, np.int64),
        difficult=np.array([True, False, False]),
        crowd=np.array([False, True, False]),
    )
    assert objects.trained.tolist() == [False, False, True]
    assert len(objects.subset(objects.trained)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"boxes": np.zeros((2, 4), np.float32), "labels": np.zeros(1, np.int64)},
        {"boxes": np.zeros((1, 4)), "labels": np.zeros(1, np.int64)},
        {"boxes": np.zeros((1, 4), np.float32), "labels": np.zeros(1, np.int32)},
        {"boxes": np.zeros((1, 4), np.float32), "labels": np.zeros(1, np.int64), "crowd": np.zeros(2, bool)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(fields):
    with pytest.raises(ValueError, match=r"must be|need"):
        Objects(**fields)


def test_labels_must_be_classes(tmp_path):
    with pytest.raises(DataError, match="labels go from 0 to 2, but there are 2 classes"):
        samples(tmp_path, one((0, 0, 4, 4)), one((0, 0, 4, 4), label=2))


def test_the_fingerprint_sees_every_box_flag_and_name(tmp_path):
    base = samples(tmp_path, one((0, 0, 4, 4)), Objects.none())
    crowd = Objects(np.array([[0, 0, 4, 4]], np.float32), np.zeros(1, np.int64), crowd=np.ones(1, bool))
    others = [
        samples(tmp_path, one((0, 0, 4, 5)), Objects.none()),
        samples(tmp_path, one((0, 0, 4, 4), label=1), Objects.none()),
        samples(tmp_path, crowd, Objects.none()),
        base.subset(np.array([1, 0])),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 5
    assert base.fingerprint() == samples(tmp_path, one((0, 0, 4, 4)), Objects.none()).fingerprint()


def test_parts_by_name(tmp_path):
    train, val = samples(tmp_path, Objects.none()), samples(tmp_path, one((0, 0, 1, 1)), Objects.none())
    dataset = DetectionDataset("cells", ("cat", "dog"), train, val, None)
    assert dataset.part("auto") == ("val", val)
    assert val.objects_per_class().tolist() == [1, 0]
    with pytest.raises(DataError, match="cells has no test pictures; it has train, val"):
        dataset.part("test")
