"""Wrong annotations, each named with its place, and what is done about them."""

import json
from html import escape
from pathlib import Path

import pytest

from annotated import box, coco, image, picture, voc, voc_folder, yolo
from resnetkit.data.detection.annotations import Annotated, Drawn, Fault
from resnetkit.data.detection.check import check_boxes
from resnetkit.data.detection.dataset import open_detection, read_detection
from resnetkit.data.detection.faults import settle, turned
from resnetkit.data.detection.xml import read_xml
from resnetkit.detect.overview import write_overview
from resnetkit.errors import DataError

NAN = float("nan")


def settled(form: str, *values: float, size: tuple[int, int] = (64, 48), label: str = "cat"):
    one = Annotated("a", Path("a.jpg"), form, Path("a.xml"), [Drawn(label, values, 7, 12)])  # type: ignore[arg-type]
    return settle(one, {"cat": 0}, size, 1)


@pytest.mark.parametrize(
    ("form", "values", "fault", "kept"),
    [
        ("voc", (1, 1, 64, 48), None, [0, 0, 64, 48]),
        ("voc", (0, 0, 64, 48), None, [0, 0, 64, 48]),  # counted from 0: within rounding
        ("voc", (1, 1, 65, 49), None, [0, 0, 64, 48]),
        ("voc", (-20, 5, 30, 60), "outside", [0, 4, 30, 48]),
        ("voc", (70, 5, 90, 20), "beyond", []),
        ("voc", (20, 5, 20, 5), "empty", []),
        ("voc", (20, 5, 20, 30), "empty", []),
        ("voc", (30, 20, 11, 5), "inverted", [10, 4, 30, 20]),
        ("voc", (30, 5, 11, 20), "inverted", [10, 4, 30, 20]),
        ("voc", (0.1, 0.2, 0.5, 0.9), "unit", None),
        ("voc", (NAN, 1, 2, 3), "number", None),
        ("voc", (1, 1, float("inf"), 3), "number", None),
        ("coco", (10, 4, 20, 16), None, [10, 4, 30, 20]),
        ("coco", (50, 4, 20, 16), "outside", [50, 4, 64, 20]),
        ("coco", (-30, 4, 20, 16), "beyond", []),
        ("coco", (10, 4, 0, 16), "empty", []),
        ("coco", (10, 4, 0.5, 16), "empty", []),
        ("coco", (30, 20, -20, -16), "inverted", [10, 4, 30, 20]),
        ("coco", (0.25, 0.25, 0.5, 0.5), "unit", None),
        ("yolo", (0.5, 0.5, 1, 1), None, [0, 0, 64, 48]),
        ("yolo", (0.5, 0.5, 1.01, 1.0), None, [0, 0, 64, 48]),
        ("yolo", (1.0, 0.5, 0.5, 0.5), "outside", [48, 12, 64, 36]),
        ("yolo", (0.5, 0.5, 0, 0.5), "empty", []),
        ("yolo", (0.5, 0.5, -0.5, 0.5), "inverted", [16, 12, 48, 36]),
        ("yolo", (32, 24, 10, 10), "unit", None),
    ],
)
def test_the_rule(form: str, values: tuple[float, ...], fault: Fault | None, kept: list[float] | None):
    """`kept` is the box that is left, [] if the box is left out, and None if the picture is."""
    result = settled(form, *values)
    assert [finding.fault for finding in result.findings] == ([fault] if fault else [])
    if kept is None:
        assert result.objects is None
    else:
        assert result.objects is not None
        assert result.objects.boxes.tolist() == ([pytest.approx(kept)] if kept else [])


def test_a_box_in_a_tiny_picture_is_not_in_the_wrong_unit():
    assert settled("coco", 0, 0, 1, 1, size=(1, 1)).objects is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_a_box_keeps_it_in_the_picture(orientation: int):
    left, top, right, bottom = turned((10, 4, 30, 20), orientation, (64, 48))
    assert 0 <= left < right <= (48 if orientation > 4 else 64)
    assert 0 <= top < bottom <= (64 if orientation > 4 else 48)
    assert (right - left) * (bottom - top) == 320


def test_every_wrong_voc_annotation_is_named(tmp_path: Path):
    root = voc_folder(
        tmp_path / "set",
        {
            "fine": [("cat", 1, 1, 9, 9)],
            "more": [("cat", 1, 1, 9, 9)],
            "also": [("cat", 1, 1, 9, 9)],
            "and": [("cat", 1, 1, 9, 9)],
            "too": [("cat", 1, 1, 9, 9)],
            "out": [("cat", 1, 1, 9, 9), ("cat", 50, 5, 80, 20)],
            "twice": [("cat", 1, 1, 9, 9), ("dog", 1, 1, 9, 9), ("cat", 1, 1, 9, 9)],
            "share": [("cat", 0.1, 0.1, 0.5, 0.5)],
            "words": [("cat", 1, 1, 9, 9)],
        },
    )
    sheets = root / "Annotations"
    (sheets / "words.xml").write_text("<annotation>\n<object><name>cat</name>\n</object>\n</annotation>")
    (sheets / "broken.xml").write_text("<annotation>\n<object>")
    picture(root / "JPEGImages/broken.jpg")
    voc(sheets / "gone.xml", [("cat", 1, 1, 9, 9)])
    voc(sheets / "small.xml", [("cat", 2, 2, 18, 18)], size=(128, 96))
    picture(root / "JPEGImages/small.jpg")
    (root / "JPEGImages/torn.jpg").write_bytes((root / "JPEGImages/small.jpg").read_bytes()[:300])
    voc(sheets / "torn.xml", [("cat", 1, 1, 9, 9)])
    picture(root / "JPEGImages/bare.jpg")
    found = check_boxes(root)
    said = {(one.fault, str(one).removeprefix(f"{root}/")) for one in found.findings}
    torn = {text for fault, text in said if fault == "picture"}
    assert len(torn) == 1
    assert torn.pop().startswith("JPEGImages/torn.jpg: ")
    assert {one for one in said if one[0] != "picture"} == {
        ("outside", "Annotations/out.xml, object 2 (line 5): 49 4 80 20 leaves the picture of 64×48; cut"),
        ("doubled", "Annotations/twice.xml, object 3 (line 6): is object 1 again; left out"),
        ("unit", "Annotations/share.xml, object 1 (line 4): 0.1 0.1 0.5 0.5 are shares of the picture's sides, not "
         "pixels; the picture is left out"),
        ("number", "Annotations/words.xml, object 1 (line 2): has no four numbers for its box; the picture is "
         "left out"),
        ("unreadable", "Annotations/broken.xml: is not sound XML: no element found: line 2, column 8; its picture is "
         "left out"),
        ("no picture", "Annotations/gone.xml: its picture, gone.jpg, is not there; left out"),
        ("size", "Annotations/small.xml: names 128×96, but the picture has 64×48 pixels; boxes scaled"),
        ("no annotation", "JPEGImages/bare.jpg: has no annotation; left out"),
    }  # fmt: skip
    data = open_detection(root, val_fraction=0)
    assert data.train is not None
    left = {path.stem: one for path, one in zip(data.train.paths, data.train.objects, strict=True)}
    assert set(left) == {"fine", "more", "also", "and", "too", "out", "twice", "small"}
    assert left["twice"].labels.tolist() == [0, 1]
    assert left["small"].boxes.tolist() == [[0.5, 0.5, 9, 9]]
    assert len(data.notes) >= 8
    write_overview(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert all(escape(one.place) in page and escape(one.what) in page for one in found.findings)
    assert "Leaks" not in page
    assert {one.path.stem for one in found.examples} <= set(left) - {"torn"}
    assert page.count("<img") == len(found.examples) > 0


def test_the_page_shows_leaks_and_every_class(tmp_path: Path):
    root = voc_folder(tmp_path / "set", {"a": [("cat", 1, 1, 9, 9)], "b": [("cat", 1, 1, 9, 9)],
                                         "c": [("dog", 1, 1, 9, 9)], "d": []},
                      lists={"train": "a b", "val": "c d"})  # fmt: skip
    (root / "JPEGImages/d.jpg").write_bytes((root / "JPEGImages/a.jpg").read_bytes())
    found = check_boxes(root)
    assert [one.path.stem for one in found.examples] == ["a", "c", "b"]
    write_overview(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert "Leaks between parts: 1 group" in page
    assert page.count("<img") == 5


def test_every_wrong_coco_annotation_is_named(tmp_path: Path):
    names = "abcdefghij"
    for name in names[:9]:
        picture(tmp_path / f"{name}.jpg")
    images = [image(number, f"{name}.jpg") for number, name in enumerate(names)]
    entries = [
        box(1, 0, 1, 1, 1, 9, 9),
        box(2, 1, 5, 1, 1, 9, 9),
        box(3, 2, 1, 1, 1, 9),
        box(4, 99, 1, 1, 1, 9, 9),
        "no object",
        box(6, 3, 1, 1, 1, -9, 9),
        box(7, 9, 1, 1, 1, 9, 9),
        box(8, 4, 1, 1, 1, 9, 9, category_id=None),
    ]
    coco(tmp_path / "a.json", [*images, image(3, "d.jpg"), {"id": 50}, 7], entries)
    found = check_boxes(tmp_path)
    said = [(one.fault, str(one).removeprefix(f"{tmp_path}/")) for one in found.findings]
    assert said == [
        ("no picture", "a.json, image 9: its picture, j.jpg, is not there; left out"),
        ("unreadable", "a.json, image 11: its id 3 is there already; left out"),
        ("unreadable", "a.json, image 12: has no id or no file_name; left out"),
        ("unreadable", "a.json, image 13: has no id or no file_name; left out"),
        ("no picture", "a.json, annotation 4: no picture has its image_id, 99; left out"),
        ("no picture", "a.json, annotation 5: no picture has its image_id, None; left out"),
        ("class", "a.json, annotation 2: the class 'number 5' is not among the 2 that are declared; the picture is "
         "left out"),
        ("number", "a.json, annotation 3: has no four numbers for its box; the picture is left out"),
        ("inverted", "a.json, annotation 6: 1 1 -9 9 is inverted; exchanged back"),
        ("outside", "a.json, annotation 6: -8 1 1 10 leaves the picture of 64×48; cut"),
        ("class", "a.json, annotation 8: the class 'number None' is not among the 2 that are declared; the picture is "
         "left out"),
    ]  # fmt: skip
    assert found.pictures == {"train": 6}
    assert not found.sound


@pytest.mark.parametrize(
    "text", ["[", '{"images": [{', '{"images": [{}], "annotations": {}}', '{"images": [{"id": ' + "[" * 10**5]
)
def test_a_broken_coco_file_is_named(tmp_path: Path, text: str):
    picture(tmp_path / "a.jpg")
    coco(tmp_path / "one.json", [image(1, "a.jpg")], [box(1, 1, 1, 1, 1, 9, 9)])
    (tmp_path / "two.json").write_text(text)
    found = read_detection(tmp_path)
    broken = [finding for finding in found.findings if finding.fault == "unreadable"]
    assert [finding.place for finding in broken] == ([str(tmp_path / "two.json")] if text != "[" else [])


def test_every_wrong_yolo_line_is_named(tmp_path: Path):
    for number in range(12):
        picture(tmp_path / "images" / f"{number}.jpg")
    labels = {
        0: ["0 0.5 0.5 0.5 0.5", "", "1 0.5 0.5 0.5 0.5", "0 0.5 0.5 0.5 0.5"],
        1: ["2 0.5 0.5 0.5 0.5"],
        2: ["0 32 24 10 10"],
        3: ["cat 0.5 0.5 0.5 0.5"],
        4: ["0 0.5 0.5 0.5"],
        5: ["0 0.5 0.5 0.5 nan"],
        6: ["0 1.2 0.5 0.2 0.2"],
        7: ["0 0.5 0.5 0 0"],
    }
    for number, lines in labels.items():
        yolo(tmp_path / "labels" / f"{number}.txt", *lines)
    yolo(tmp_path / "labels" / "gone.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "labels" / "8.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    found = check_boxes(tmp_path / "data.yaml")
    said = [(one.fault, str(one).removeprefix(f"{tmp_path}/labels/")) for one in found.findings]
    left_out = "; the picture is left out"
    assert sorted(said) == [
        ("beyond", "6.txt, line 1: 70.4 19.2 83.2 28.8 lies outside the picture of 64×48; left out"),
        ("class", f"1.txt, line 1: the class 'number 2' is not among the 2 that are declared{left_out}"),
        ("doubled", "0.txt, line 4: is line 1 again; left out"),
        ("empty", "7.txt, line 1: 32 24 32 24 is empty; left out"),
        ("no picture", "gone.txt: its picture, gone, is not there; left out"),
        ("number", f"3.txt, line 1: has no four numbers for its box{left_out}"),
        ("number", f"4.txt, line 1: has no four numbers for its box{left_out}"),
        ("number", f"5.txt, line 1: has no four numbers for its box{left_out}"),
        ("unit", f"2.txt, line 1: 32 24 10 10 are pixels, not shares of the picture's sides{left_out}"),
        ("unreadable", "8.txt: is not text in UTF-8; its picture is left out"),
    ]
    assert found.background == {"train": 5}


def test_broken_lists_and_yaml_files_of_yolo_are_named(tmp_path: Path):
    for number in range(2):
        picture(tmp_path / "images" / f"{number}.jpg")
        yolo(tmp_path / "labels" / f"{number}.txt", "0 0.5 0.5 0.5 0.5")
    good, bad = tmp_path / "good.yaml", tmp_path / "data.yaml"
    good.write_text("train: train.txt\nval: val.txt\ntest: nowhere\nnames: [cat]\n")
    bad.write_text("train: images\nnames: [cat\nval: x\n")
    (tmp_path / "train.txt").write_text("images/0.jpg\n\nimages/1.jpg\nimages/gone.jpg\nnotes.md\n")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe")
    found = check_boxes(good)
    said = sorted(str(one).removeprefix(f"{tmp_path}/") for one in found.findings)
    assert said[0].startswith("data.yaml: is not YAML (")
    assert said[0].endswith("line 3); it is not used")
    assert said[1:] == [
        "train.txt, line 4: images/gone.jpg is not there; left out",
        "train.txt, line 5: notes.md is no name of a picture; left out",
        "val.txt: is not text in UTF-8; its pictures are left out",
    ]
    with pytest.raises(DataError, match=r"data.yaml: is not YAML \("):
        check_boxes(bad)


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation><object>&b;</object></annotation>',
        '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "http://example.org/x.dtd"> %p;]><annotation/>',
        "<annotation>" + "<a>" * 100_000,
        "<annotation>&undefined;</annotation>",
    ],
)
def test_xml_with_entities_or_endless_depth_is_refused(tmp_path: Path, text: str):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError, match=r"declares entities|nested elements|undefined entity"):
        read_xml(tmp_path / "a.xml")
    picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"1 of 1 annotations can't be used, first .*a\.xml: "):
        open_detection(tmp_path)


def test_a_name_never_leaves_the_folder(tmp_path: Path):
    picture(tmp_path / "secret.jpg")
    root = tmp_path / "set"
    picture(root / "a.jpg")
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "a.jpg"]
    coco(root / "a.json", [image(number, name) for number, name in enumerate(names)], [])
    opened = read_detection(root)
    assert [one.path for one in opened.parts["train"]] == [root / "a.jpg"]
    assert [finding.fault for finding in opened.findings] == ["no picture"] * 2


def test_data_that_are_mostly_wrong_are_refused(tmp_path: Path):
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.jpg")
        yolo(tmp_path / "labels" / f"{number}.txt", "0 10 10 20 20" if number else "0 0.5 0.5 0.5 0.5")
    with pytest.raises(
        DataError, match=r"3 of 4 annotations can't be used, first .*1\.txt, line 1: 10 10 20 20 are pixels"
    ):
        open_detection(tmp_path)
    assert len(check_boxes(tmp_path).findings) == 3


def test_leaks_between_parts_and_copies(tmp_path: Path):
    for part, name in (("train", "a"), ("train", "b"), ("val", "c")):
        picture(tmp_path / "images" / part / f"{name}.png")
        yolo(tmp_path / "labels" / part / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    first = (tmp_path / "images/train/a.png").read_bytes()
    for other in ("train/b", "val/c"):
        (tmp_path / "images" / f"{other}.png").write_bytes(first)
    found = check_boxes(tmp_path)
    assert len(found.leaks) == 1
    assert len(found.leaks[0]) == 3
    assert not found.sound
    assert json.loads(json.dumps(found.to_dict()))["parts"]["val"]["pictures"] == 1


def test_a_label_file_beside_pictures_that_lacks_its_own_is_named(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.jpg")
        yolo(tmp_path / f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "data.yaml").write_text("train: .\nnames: [cat]\n")
    found = check_boxes(tmp_path / "data.yaml").findings
    assert [(one.fault, str(one)) for one in found] == [
        ("no picture", f"{tmp_path}/b.txt: its picture, b, is not there; left out")
    ]
