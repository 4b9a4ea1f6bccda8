"""Readers of PASCAL VOC, COCO and YOLO, in the layouts of the tools that write them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from annotated import box, coco, image, picture, voc, voc_folder, yolo
from resnetkit.data.dataset import open_dataset
from resnetkit.data.detection.dataset import open_detection
from resnetkit.data.detection.division import Kept
from resnetkit.data.detection.outlines import area_of, box_of, run_lengths
from resnetkit.data.detection.samples import DetectionSamples, Objects
from resnetkit.data.detection.sources import forms_of
from resnetkit.errors import DataError, UsageError

CAT = ("cat", 11, 5, 30, 20)


def objects(samples: DetectionSamples | None, name: str) -> Objects:
    """Return the objects of a picture by its name without a suffix."""
    assert samples is not None
    return samples.objects[[path.stem for path in samples.paths].index(name)]


def test_voc_counts_pixels_from_1_and_includes_the_last(tmp_path: Path):
    root = voc_folder(tmp_path / "set", {"a": [CAT], "b": [("dog", 1, 1, 64, 48)]}, lists={"train": "a b"})
    data = open_detection(root, val_fraction=0)
    assert data.classes == ("cat", "dog")
    assert objects(data.train, "a").boxes.tolist() == [[10, 4, 30, 20]]
    assert objects(data.train, "b").boxes.tolist() == [[0, 0, 64, 48]]
    assert objects(data.train, "a").areas.tolist() == [20 * 16]


def test_voc_lists_make_the_parts(tmp_path: Path):
    names = {name: [CAT] for name in "abcdef"}
    lists = {"train": "a b", "val": "c", "trainval": "a b c", "test": "d e"}
    data = open_detection(voc_folder(tmp_path / "set", names, lists=lists))
    assert [len(part) for part in data.parts.values()] == [2, 1, 2]
    assert data.split == {"rule": "as given"}
    assert data.test is not None
    assert [path.stem for path in data.test.paths] == ["d", "e"]


def test_voc_lists_of_a_class_have_flags_and_are_not_lists_of_a_part(tmp_path: Path):
    names = {name: [CAT] for name in "abc"}
    root = voc_folder(tmp_path / "set", names, lists={"train": "a b", "val": "c", "cat_train": "a b c"})
    (root / "ImageSets/Main/train.txt").write_text("a  1\nb -1\n")
    assert [len(part) for part in open_detection(root).parts.values()] == [2, 1]


def test_voc_07_12_trains_on_trainval_of_both_years(tmp_path: Path):
    kit = tmp_path / "VOCdevkit"
    old = {"train": "o1", "val": "o2", "trainval": "o1 o2", "test": "o3"}
    voc_folder(kit / "VOC2007", {f"o{number}": [CAT] for number in (1, 2, 3)}, lists=old)
    new = {"train": "n1", "val": "n2", "trainval": "n1 n2"}
    voc_folder(kit / "VOC2012", {f"n{number}": [CAT] for number in (1, 2)}, lists=new)
    data = open_detection(tmp_path, val_fraction=0)
    assert data.train is not None
    assert data.test is not None
    assert [path.stem for path in data.train.paths] == ["o1", "o2", "n1", "n2"]
    assert [path.stem for path in data.test.paths] == ["o3"]


def test_a_picture_in_train_and_test_is_in_test_alone(tmp_path: Path):
    root = voc_folder(tmp_path / "set", {n: [CAT] for n in "abc"}, lists={"train": "a b", "test": "b c"})
    data = open_detection(root, val_fraction=0)
    assert [len(part) for part in data.parts.values()] == [1, 2]


def test_voc_as_roboflow_exports_it(tmp_path: Path):
    for part, name in (("train", "a"), ("train", "b"), ("valid", "c"), ("test", "d")):
        picture(tmp_path / part / f"{name}_jpg.rf.1f3a.jpg")
        voc(tmp_path / part / f"{name}_jpg.rf.1f3a.xml", [CAT], extra="<polygon><x1>1</x1></polygon>")
    data = open_detection(tmp_path)
    assert [len(part) for part in data.parts.values()] == [2, 1, 1]


def test_voc_as_labelimg_writes_it_beside_the_pictures(tmp_path: Path):
    for number in range(6):
        picture(tmp_path / f"photo {number}.png")
        voc(tmp_path / f"photo {number}.xml", [("red blood  cell", 1, 1, 9, 9)])
    picture(tmp_path / "unlabelled.png")
    data = open_detection(tmp_path)
    assert data.classes == ("red blood cell",)
    assert {part: len(samples) for part, samples in data.parts.items()} == {"train": 5, "val": 1}
    assert any("pictures have no annotation: left out; first" in note for note in data.notes)


def test_voc_as_cvat_writes_it(tmp_path: Path):
    """Fractions, attributes, subfolders, a list default.txt with folders, and no flag of difficulty."""
    picture(tmp_path / "JPEGImages" / "job 1" / "frame_0.PNG".lower())
    attributes = "<attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes>"
    path = tmp_path / "Annotations" / "job 1" / "frame_0.xml"
    voc(path, [("cat", 10.55, 5.5, 30.25, 20.0)], extra=attributes)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("job 1/frame_0\n")
    data = open_detection(tmp_path)
    assert objects(data.train, "frame_0").boxes.tolist() == [pytest.approx([9.55, 4.5, 30.25, 20])]


def test_voc_fields_that_are_left_out_or_odd(tmp_path: Path):
    root = voc_folder(tmp_path / "set", {"a": [CAT]})
    (root / "Annotations/a.xml").write_text(
        "<?xml version='1.0' encoding='gbk'?><annotation><folder/><object><name>\u732b</name><difficult>1</difficult>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        "<bndbox><ymax> 20 </ymax><xmax>30,0</xmax><xmin>11</xmin><ymin>5</ymin></bndbox></object></annotation>",
        encoding="gbk",
    )
    data = open_detection(root)
    assert data.classes == ("\u732b",)
    assert objects(data.train, "a").boxes.tolist() == [[10, 4, 30, 20]]
    assert objects(data.train, "a").difficult.tolist() == [True]


def test_voc_without_objects_is_background(tmp_path: Path):
    root = voc_folder(tmp_path / "set", {"a": [CAT], "b": [], "c": [CAT]}, lists={"train": "a b c"})
    data = open_detection(root, val_fraction=0)
    assert len(objects(data.train, "b")) == 0
    assert "1 picture without boxes: background" in data.notes


def test_coco_of_the_official_layout(tmp_path: Path):
    for part, names in (("train2017", "ab"), ("val2017", "c")):
        for name in names:
            picture(tmp_path / part / f"{name}.jpg")
    train = [image(7, "a.jpg"), image(9, "b.jpg")]
    crowd = box(3, 9, 2, 0, 0, 40, 40, iscrowd=1, segmentation={"counts": [0, 100], "size": [10, 10]}, area=100)
    folder = tmp_path / "annotations"
    coco(folder / "instances_train2017.json", train, [box(1, 7, 1, 10, 4, 20, 16, area=99.5), crowd])
    coco(folder / "instances_val2017.json", [image(7, "c.jpg")], [box(1, 7, 2, 1, 2, 3, 4)])
    coco(folder / "captions_train2017.json", train, [{"id": 1, "image_id": 7, "caption": "a cat"}], ())
    for data in (open_detection(tmp_path), open_detection(folder / "instances_val2017.json")):
        assert data.classes == ("cat", "dog")
        assert [len(part) for part in data.parts.values()] == [2, 1]
        assert objects(data.train, "a").boxes.tolist() == [[10, 4, 30, 20]]
        assert objects(data.train, "a").areas.tolist() == [99.5]
        assert objects(data.train, "b").crowd.tolist() == [True]
        assert objects(data.val, "c").boxes.tolist() == [[1, 2, 4, 6]]


def test_coco_as_roboflow_exports_it(tmp_path: Path):
    """The category 0 stands above the others; it is no class."""
    for part in ("train", "valid", "test"):
        picture(tmp_path / part / f"{part}.jpg")
        path = coco(tmp_path / part / "_annotations.coco.json", [image(0, f"{part}.jpg")], [box(0, 0, 1, 1, 1, 9, 9)])
        text = path.read_text().replace('"supercategory": "none"', '"supercategory": "cells"')
        path.write_text(text.replace('"categories": [', '"categories": [{"id": 0, "name": "cells"}, '))
    data = open_detection(tmp_path)
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in data.parts.values()] == [1, 1, 1]


def test_coco_several_files_of_a_part_and_pictures_without_annotations(tmp_path: Path):
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.jpg")
    coco(tmp_path / "one.json", [image(1, "a.jpg"), image(2, "b.jpg")], [box(1, 1, 1, 1, 1, 9, 9)])
    coco(tmp_path / "two.json", [image(1, "b.jpg"), image(2, "c.jpg")], [box(1, 1, 1, 2, 2, 9, 9)], ["owl"])
    data = open_detection(tmp_path, val_fraction=0)
    assert data.classes == ("cat", "dog", "owl")
    assert [len(one) for one in (data.train.objects if data.train else ())] == [1, 1, 0]


def test_coco_boxes_and_areas_of_outlines(tmp_path: Path):
    picture(tmp_path / "a.jpg")
    polygon = {"bbox": None, "segmentation": [[10, 4, 30, 4, 30, 20], [12, 2, 13, 3]]}
    runs = {"segmentation": {"size": [48, 64], "counts": [48 * 5 + 10, 8, 40, 8, 48 * 64 - 48 * 6 - 66 + 42 - 42]}}
    coco(tmp_path / "a.json", [image(1, "a.jpg")], [box(1, 1, 1) | polygon, box(2, 1, 1) | {"bbox": None} | runs])
    found = objects(open_detection(tmp_path).train, "a")
    assert found.boxes.tolist() == [[10, 2, 30, 20], [5, 10, 7, 18]]
    assert found.areas.tolist() == [20 * 18, 16]


def test_packed_run_lengths_are_those_of_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for _ in range(20):
        pixels = np.asfortranarray(random.random((37, 53)) < random.random(), dtype=np.uint8)
        packed = mask.encode(pixels)
        outline = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
        lengths = run_lengths(outline["counts"])
        assert lengths is not None
        assert sum(lengths) == pixels.size
        assert area_of(outline) == mask.area(packed) == pixels.sum()
        if pixels.any():
            assert box_of(outline) == tuple(mask.toBbox(packed))
    for wrong in ("\x01", "~~~~", 7, [-1], None):
        assert run_lengths(wrong) is None


def test_yolo_of_ultralytics(tmp_path: Path):
    for part, names in (("train", "abc"), ("val", "d")):
        for name in names:
            picture(tmp_path / "images" / part / f"{name}.jpg")
    yolo(tmp_path / "labels/train/a.txt", "1 0.3125 0.25 0.3125 0.3333333")
    yolo(tmp_path / "labels/train/b.txt")
    yolo(tmp_path / "labels/val/d.txt", "0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text(
        "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}"
    )
    for data in (open_detection(tmp_path), open_detection(tmp_path / "data.yaml")):
        assert data.classes == ("cat", "dog")
        assert [len(part) for part in data.parts.values()] == [3, 1]
        assert objects(data.train, "a").boxes.tolist() == [pytest.approx([10, 4, 30, 20], abs=1e-4)]
        assert objects(data.val, "d").boxes.tolist() == [[0, 0, 64, 48]]
        assert "2 pictures without boxes: background" in data.notes
        assert "1 of 3 pictures of train have no label file: background" in data.notes


def test_yolo_as_roboflow_exports_it(tmp_path: Path):
    for part in ("train", "valid", "test"):
        picture(tmp_path / part / "images" / f"{part}.jpg")
        yolo(tmp_path / part / "labels" / f"{part}.txt", "0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['red cell']\n"
    )
    data = open_detection(tmp_path)
    assert data.classes == ("red cell",)
    assert [[path.stem for path in part.paths] for part in data.parts.values()] == [["train"], ["valid"], ["test"]]


def test_yolo_as_labelimg_writes_it(tmp_path: Path):
    for number in range(5):
        picture(tmp_path / f"{number}.jpg")
        yolo(tmp_path / f"{number}.txt", "1 0.5 0.5 0.5 0.5")
    (tmp_path / "classes.txt").write_text("cat\nred cell\n")
    data = open_detection(tmp_path)
    assert data.classes == ("cat", "red cell")
    assert {part: len(samples) for part, samples in data.parts.items()} == {"train": 4, "val": 1}


def test_yolo_polygons_scores_and_classes_without_names(tmp_path: Path):
    picture(tmp_path / "images/a.jpg")
    yolo(tmp_path / "labels/a.txt", "2 0.25 0.25 0.75 0.25 0.75 0.5", "0.0 0.5 0.5 0.25 0.25 0.9")
    data = open_detection(tmp_path)
    assert data.classes == ("0", "1", "2")
    found = objects(data.train, "a")
    assert found.boxes.tolist() == [[16, 12, 48, 24], [24, 18, 40, 30]]
    assert found.labels.tolist() == [2, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_boxes_turn_with_their_picture(tmp_path: Path, orientation: int, suffix: str):
    """The annotation names the size of the stored picture if its tool ignored EXIF, else that of the upright one."""
    from resnetkit.data.decoding.pictures import open_picture

    stored = np.zeros((48, 64, 3), np.uint8)
    stored[4:20, 10:30] = 255
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **lossless)
    upright = np.asarray(open_picture(tmp_path / f"a.{suffix}"))[:, :, 0] > 128
    rows, columns = np.flatnonzero(upright.any(axis=1)), np.flatnonzero(upright.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    if orientation in (1, 5, 6, 7, 8):
        voc(tmp_path / "a.xml", [CAT], size=(64, 48))
        assert objects(open_detection(tmp_path).train, "a").boxes.tolist() == [seen]
    height, width = upright.shape
    voc(tmp_path / "a.xml", [("cat", seen[0] + 1, seen[1] + 1, seen[2], seen[3])], size=(width, height))
    assert objects(open_detection(tmp_path).train, "a").boxes.tolist() == [seen]


def test_val_keeps_alike_pictures_and_groups_together(tmp_path: Path):
    for number in range(20):
        first = picture(tmp_path / f"p{number:02d}_a.png", seed=number)
        shutil.copy(first, tmp_path / f"p{number:02d}_b.png")
        for view in "ab":
            voc(tmp_path / f"p{number:02d}_{view}.xml", [CAT])
    data = open_detection(tmp_path)
    assert data.val is not None
    assert len(data.val) == 8
    patients = [path.stem[:3] for path in data.val.paths]
    assert all(patients.count(one) == 2 for one in patients)
    again = open_detection(tmp_path, kept=Kept(drawn=data.split["drawn"]))
    assert again.val is not None
    assert again.val.paths == data.val.paths
    other = open_detection(tmp_path, kept=Kept(alike=False, group_by=r"_(.)\."), val_fraction=0.5)
    assert other.val is not None
    assert len({path.stem[-1] for path in other.val.paths}) == 1
    assert open_detection(tmp_path, seed=1).split["drawn"] != data.split["drawn"]


def test_a_class_is_never_in_val_alone(tmp_path: Path):
    for number in range(10):
        picture(tmp_path / f"{number}.png", seed=number)
        voc(tmp_path / f"{number}.xml", [CAT, ("rare", 1, 1, 9, 9)] if number == 4 else [CAT])
    for seed in range(8):
        data = open_detection(tmp_path, val_fraction=0.5, seed=seed)
        assert "4" in [path.stem for path in (data.train.paths if data.train else ())]


def test_no_annotations_or_several_forms(tmp_path: Path):
    picture(tmp_path / "cat" / "a.jpg")
    (tmp_path / "meta.json").write_text('{"categories": ["cat"], "images": 1}')
    (tmp_path / "cat" / "a.txt").write_text("a caption of 3 words\n")
    (tmp_path / "settings.yaml").write_text("names: [cat]\nlr: 0.1\n")
    assert forms_of(tmp_path) == ()
    with pytest.raises(DataError, match="has no annotations of boxes; expected PASCAL VOC"):
        open_detection(tmp_path)
    yolo(tmp_path / "cat" / "a.txt", "0 0.5 0.5 0.5 0.5")
    assert forms_of(tmp_path) == ("yolo",)
    voc(tmp_path / "cat" / "a.xml", [CAT])
    several = "several forms, voc and yolo; choose one with `annotations`, or write one of them: resnetkit data convert"
    with pytest.raises(DataError, match=several):
        open_detection(tmp_path)
    assert open_detection(tmp_path, annotations="voc").classes == ("cat",)
    assert open_detection(tmp_path, annotations="yolo").classes == ("0",)
    assert open_detection(tmp_path, usual="yolo").classes == ("0",)
    assert open_detection(tmp_path, usual="yolo", annotations="voc").classes == ("cat",)
    with pytest.raises(DataError, match="several forms"):
        open_detection(tmp_path, usual="coco")
    with pytest.raises(DataError, match="of the form coco, but voc and yolo; leave `annotations` out"):
        open_detection(tmp_path, annotations="coco")
    with pytest.raises(UsageError, match="`annotations` is 'labelme'; give voc, coco, yolo"):
        open_detection(tmp_path, annotations="labelme")
    with pytest.raises(UsageError, match="`val_fraction` is 1"):
        open_detection(tmp_path, val_fraction=1)
    with pytest.raises(DataError, match="no such data"):
        open_detection(tmp_path / "nowhere")


def voc_of_2012(root: Path) -> None:
    voc_folder(root / "VOCdevkit/VOC2012", {"a": [CAT], "b": [CAT]}, lists={"train": "a", "val": "b"})
    for name in ("SegmentationClass", "SegmentationObject"):
        picture(root / f"VOCdevkit/VOC2012/{name}/a.png")


def coco_of_2017(root: Path) -> None:
    for part, name in (("train2017", "a"), ("val2017", "b")):
        picture(root / part / f"{name}.jpg")
        sheet = root / f"annotations/instances_{part}.json"
        coco(sheet, [image(1, f"{name}.jpg")], [box(1, 1, 1, 1, 1, 9, 9)])


def coco_of_roboflow(root: Path) -> None:
    for part in ("train", "valid"):
        picture(root / part / f"{part}.jpg")
        coco(root / part / "_annotations.coco.json", [image(1, f"{part}.jpg")], [box(1, 1, 1, 1, 1, 9, 9)])


def yolo_of_ultralytics(root: Path) -> None:
    for part in ("train", "val"):
        picture(root / f"images/{part}/{part}.jpg")
        yolo(root / f"labels/{part}/{part}.txt", "0 0.5 0.5 0.2 0.2")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [cat]\n")


def yolo_of_roboflow(root: Path) -> None:
    for part in ("train", "valid"):
        picture(root / f"{part}/images/{part}.jpg")
        yolo(root / f"{part}/labels/{part}.txt", "0 0.5 0.5 0.2 0.2")


def labelimg(root: Path) -> None:
    picture(root / "a.jpg")
    voc(root / "a.xml", [CAT])


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (voc_of_2012, "PASCAL VOC"),
        (labelimg, "PASCAL VOC"),
        (coco_of_2017, "COCO"),
        (coco_of_roboflow, "COCO"),
        (yolo_of_ultralytics, "YOLO"),
        (yolo_of_roboflow, "YOLO"),
    ],
)
def test_boxes_are_no_class_folders(tmp_path: Path, write: Callable[[Path], None], kind: str) -> None:
    root = tmp_path / "my set"
    write(root)
    wanted = f"my set has boxes ({kind}) and no class folders; train a detector: resnetkit detect train '{root}'"
    for data in (root, *root.glob("*.yaml"), *root.glob("*/*.json")):
        with pytest.raises(DataError, match=re.escape(wanted) if data == root else "resnetkit detect train"):
            open_dataset(data)
    with pytest.raises(DataError, match=re.escape(wanted)):
        open_dataset(root, strict=True)


def test_class_folders_are_no_boxes(tmp_path: Path) -> None:
    """A data.yaml of class folders names no boxes; boxes in class folders are named, and the folders read."""
    root = tmp_path / "set"
    for part, name in (("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog")):
        picture(root / part / name / "a.jpg")
    (root / "data.yaml").write_text("train: train\nval: val\nnames: [cat, dog]\n")
    assert forms_of(root) == ()
    assert open_dataset(root).understood == ()
    with pytest.raises(DataError, match=f"it is class folders, for a classifier: resnetkit train {root}"):
        open_detection(root)
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\nset/train/cat/a.jpg,cat\nset/train/dog/a.jpg,dog\n")
    with pytest.raises(DataError, match=f"a list of pictures with their classes, .* resnetkit train {listed}"):
        open_detection(listed)
    voc(root / "train/cat/a.xml", [CAT])
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert "boxes (PASCAL VOC)" in dataset.understood[0]
    with pytest.raises(DataError, match=r"a\.xml"):
        open_dataset(root, strict=True)
    picture(root / "val" / "bird" / "a.jpg")
    with pytest.raises(DataError, match='only in val: "bird"'):
        open_dataset(root)


def test_blood_cells(shared: Path):
    data = open_detection(shared / "data" / "bccd")
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert [len(part) for part in data.parts.values()] == [205, 87, 72]
    assert data.test is not None
    assert data.test.objects_per_class().tolist() == [69, 805, 71]
    assert data.test.sizes[0] == (640, 480)
