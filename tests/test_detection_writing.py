"""Writing pictures with boxes, reading them again, and fitting anchors to them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from annotated import box, coco, image, picture, voc_folder
from resnetkit.cli import main
from resnetkit.data.detection.anchors import Anchors, fit_anchors, recall
from resnetkit.data.detection.annotations import FORMS, Form
from resnetkit.data.detection.dataset import open_detection
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.data.detection.writing import write_detection
from resnetkit.errors import DataError, UsageError


@pytest.fixture
def given(tmp_path: Path) -> DetectionDataset:
    """Two parts, two folders with equal names, fractions, a crowd, a difficult object, an area, and no objects."""
    root = tmp_path / "given"
    for name, orientation in (("train/x/a.jpg", 1), ("train/y/a.png", 1), ("train/b c.jpg", 6), ("val/d.jpg", 1)):
        picture(root / name, orientation=orientation, seed=orientation)
    images = [image(1, "x/a.jpg"), image(2, "y/a.png"), image(3, "b c.jpg", size=(48, 64))]
    entries = [
        box(1, 1, 1, 10.25, 4.5, 20.125, 16.0, area=200.5),
        box(2, 1, 2, 1 / 3, 2 / 3, 30, 40),
        box(3, 1, 2, 5, 5, 9, 9, ignore=1),
        box(4, 3, 1, 0, 0, 48, 64),
        box(5, 3, 2, 3, 3, 30, 30, iscrowd=1, area=77.0),
    ]
    coco(root / "annotations/instances_train.json", images, entries, ["cat", "red cell"])
    coco(root / "annotations/instances_val.json", [image(1, "d.jpg")], [box(1, 1, 2, 1, 2, 3, 4)], ["cat", "red cell"])
    return open_detection(root)


def plain(data: DetectionDataset, *, flags: bool) -> dict[str, list[tuple[str, list[tuple[str, ...]]]]]:
    """Return each part as picture contents and rounded objects in order; with `flags`, those that VOC and YOLO lack."""

    def rows(objects: Objects) -> list[tuple[str, ...]]:
        chosen = objects if flags else objects.subset(objects.trained)
        values = zip(
            chosen.boxes.round(2).tolist(), chosen.labels, chosen.difficult, chosen.crowd, chosen.areas, strict=True
        )
        return sorted(
            (str(one), data.classes[label], *((str(hard), str(crowd), f"{area:.2f}") if flags else ()))
            for one, label, hard, crowd, area in values
        )

    return {
        part: sorted(
            (str(hash(path.read_bytes())), rows(objects)) for path, objects in zip(of.paths, of.objects, strict=True)
        )
        for part, of in data.parts.items()
    }


@pytest.mark.parametrize(("first", "second"), list(product(FORMS, FORMS)))
def test_there_and_back(tmp_path: Path, given: DetectionDataset, first: Form, second: Form):
    write_detection(given, tmp_path / "first", first)
    write_detection(open_detection(tmp_path / "first"), tmp_path / "second", second)
    again = open_detection(tmp_path / "second")
    assert plain(again, flags=False) == plain(given, flags=False)
    if first == second == "coco":
        assert plain(again, flags=True) == plain(given, flags=True)
    if "yolo" not in (first, second):
        assert sum(map(len, again.parts["train"].objects)) == 5


def test_what_a_form_has_no_place_for_is_counted(tmp_path: Path, given: DetectionDataset):
    assert write_detection(given, tmp_path / "coco", "coco").lost == 0
    done = write_detection(given, tmp_path / "yolo", "yolo")
    assert (done.pictures, done.boxes, done.lost) == (4, 4, 2)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, given: DetectionDataset):
    goal = tmp_path / "goal"
    goal.mkdir()
    (goal / "mine").touch()
    with pytest.raises(UsageError, match="exists already; give a new folder"):
        write_detection(given, goal, "voc")
    (goal / "mine").unlink()
    given.parts["val"].paths[0].unlink()
    with pytest.raises(DataError, match="can't be written"):
        write_detection(given, goal, "voc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "goal"]
    assert not list(goal.iterdir())


def test_links_save_space(tmp_path: Path, given: DetectionDataset):
    write_detection(given, tmp_path / "goal", "yolo", link=True)
    of = {path.stat().st_ino for samples in given.parts.values() for path in samples.paths}
    assert {path.stat().st_ino for path in (tmp_path / "goal/images").rglob("*.*") if path.is_file()} == of


def test_blood_cells_there_and_back(tmp_path: Path, shared: Path):
    data = open_detection(shared / "data" / "bccd")
    for form in FORMS:
        write_detection(data, tmp_path / form, form, link=True)
        again = open_detection(tmp_path / form)
        for part, samples in data.parts.items():
            for one, other in zip(samples.objects, again.parts[part].objects, strict=True):
                assert np.abs(one.boxes - other.boxes).max() < 1e-4
                assert one.labels.tolist() == other.labels.tolist()


def test_the_command_converts_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = voc_folder(tmp_path / "set", {n: [("cat", 1, 1, 9, 9)] for n in "abc"} | {"d": [("cat", 60, 1, 90, 9)]})
    assert main(["data", "check", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "outside: " in printed
    assert "d.xml, object 1 (line 4): 59 0 90 9 leaves the picture of 64×48; cut" in printed
    assert "to fix: 1 finding" in printed
    assert main(["data", "convert", str(root), str(tmp_path / "new"), "--to", "yolo", "--val-fraction", "0.3"]) == 0
    assert "4 pictures with 4 boxes are in" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "new"), "--json"]) == 0
    assert '"form": "yolo"' in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "new"), "--fix"]) == 2
    assert f"resnetkit data convert {tmp_path / 'new'} DIR --to voc" in capsys.readouterr().err
    page = tmp_path / "check.html"
    assert main(["data", "check", str(root), "--page", str(page)]) == 1
    assert f"page: {page}" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--page", str(page)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "new"), "--group-by", "parent", "--annotations", "yolo"]) == 2
    assert "--group-by has no use here" in capsys.readouterr().err
    assert main(["data", "convert", str(root), str(tmp_path / "new"), "--to", "coco"]) == 2


# Anchors

DEFAULT = Anchors(((32.0,), (64.0,), (128.0,)), (0.5, 1.0, 2.0))


def boxed(shapes: list[tuple[float, float]]) -> DetectionSamples:
    """Return a picture of 400 pixels with boxes of these widths and heights, all around its middle."""
    sides = np.array(shapes, np.float32).reshape(-1, 2)
    boxes = np.concatenate([200 - sides / 2, 200 + sides / 2], axis=1)
    return DetectionSamples(("a",), (Path("a.jpg"),), ((400, 400),), (Objects(boxes, np.zeros(len(boxes), np.int64)),))


def test_anchors_find_the_shapes_of_the_boxes():
    random = np.random.default_rng(0)
    centres = [(12.0, 60.0), (20.0, 100.0), (40.0, 200.0)]
    shapes = [(w * f, h * f) for w, h in centres for f in random.uniform(0.9, 1.1, 50)]
    fitted = fit_anchors(boxed(shapes), DEFAULT, (4, 8, 16), shorter_side=400, longest_side=800)
    assert fitted.boxes == 150
    assert fitted.recall_before < 0.5
    assert fitted.recall == 1.0
    assert min(abs(ratio - 5) for ratio in fitted.anchors.ratios) < 0.3
    assert sorted(size for sizes in fitted.anchors.sizes for size in sizes) == pytest.approx(
        [(w * h) ** 0.5 for w, h in centres], rel=0.1
    )


def test_anchors_that_fit_are_kept():
    shapes = [(32.0, 32.0), (64.0, 64.0), (128.0, 128.0)]
    fitted = fit_anchors(boxed(shapes), DEFAULT, (4, 8, 16), shorter_side=400, longest_side=800)
    assert fitted.anchors == DEFAULT
    assert fitted.recall == fitted.recall_before == 1


def test_recall_counts_the_way_to_the_next_position():
    near, far = np.array([[0.0, 0, 32, 32]]) - 16, np.array([[0.0, 0, 32, 32]]) - 16 + 32
    one = Anchors(((32.0,),), (1.0,))
    assert recall(near, one, (64,)) == 1
    assert recall(far, one, (64,)) == 0
    assert recall(far, one, (32,)) == 1


def test_anchors_need_boxes_and_a_stride_for_each_map():
    with pytest.raises(DataError, match="there are no boxes"):
        fit_anchors(boxed([]), DEFAULT, (4, 8, 16), shorter_side=400, longest_side=800)
    with pytest.raises(ValueError, match="2 strides for 3 maps"):
        fit_anchors(boxed([(9, 9)]), DEFAULT, (4, 8), shorter_side=400, longest_side=800)
