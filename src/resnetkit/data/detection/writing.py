"""Write pictures with boxes as PASCAL VOC, COCO or YOLO, in the layout that their readers expect."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import yaml

from resnetkit.data.detection.annotations import Form
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.errors import DataError, UsageError
from resnetkit.progress import Advance, ignore

DIGITS = 10
"""Significant digits of YOLO's shares: a box of a picture of 10,000 pixels comes back within 1e-5 pixels."""
VOC_PICTURES, VOC_SHEETS, VOC_LISTS = "JPEGImages", "Annotations", "ImageSets/Main"


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    pictures: int
    boxes: int
    lost: int
    """Number of objects that the form has no place for: crowds and, in YOLO, difficult objects."""


def write_detection(
    dataset: DetectionDataset, folder: Path, form: Form, *, link: bool = False, advance: Advance = ignore
) -> Written:
    """Write a data set in another form to a new folder, whole or not at all.

    The pictures are copied with their names; with `link`, they are hard links where the file system allows it. A name
    that is there already gets a number. Boxes are those of the target format: in pixels of upright pictures, mended by
    the rule for wrong boxes. COCO keeps everything; VOC makes crowds difficult objects; YOLO has no place for
    crowds and difficult objects. `advance` is called with 1 after each picture.

    Raises UsageError if something is in `folder` already, and DataError if it can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already; give a new folder")
    temporary = folder.with_name(f".{folder.name}.{token_hex(4)}.part")
    write: Mapping[Form, Callable[[Path, str, DetectionSamples, list[str]], int]] = {
        "voc": _write_voc,
        "coco": _write_coco,
        "yolo": _write_yolo,
    }
    places: Mapping[Form, str] = {"voc": VOC_PICTURES, "coco": "{part}", "yolo": "images/{part}"}
    lost = 0
    try:
        taken: set[str] = set()
        for part, samples in dataset.parts.items():
            goal = temporary / places[form].format(part=part)
            goal.mkdir(parents=True, exist_ok=True)
            names = [_free(path, taken) for path in samples.paths]
            for path, name in zip(samples.paths, names, strict=True):
                _place(path, goal / name, link=link)
                advance(1)
            lost += write[form](temporary, part, samples, names)
        if form == "voc":
            _write_trainval(temporary, dataset)
        if form == "yolo":
            _write_data_yaml(temporary, dataset)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    parts = dataset.parts.values()
    boxes = sum(len(objects) for samples in parts for objects in samples.objects)
    return Written(folder, sum(map(len, parts)), boxes - lost, lost)


def _free(path: Path, taken: set[str]) -> str:
    """Return the name of a picture, with a number if another one has its name without the suffix."""
    stem, number = path.stem, 1
    while stem.lower() in taken:
        number += 1
        stem = f"{path.stem}-{number}"
    taken.add(stem.lower())
    return stem + path.suffix


def _place(path: Path, goal: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(path.resolve(), goal)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(path, goal)


def _plain(value: float, digits: int = 4) -> str:
    """Return a number without zeros at its end."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


# VOC


def _write_voc(root: Path, part: str, samples: DetectionSamples, names: list[str]) -> int:
    sheets, lists = root / VOC_SHEETS, root / VOC_LISTS
    sheets.mkdir(exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    for name, size, objects in zip(names, samples.sizes, samples.objects, strict=True):
        sheet = _as_voc(name, size, objects, samples.classes)
        (sheets / f"{Path(name).stem}.xml").write_bytes(tostring(sheet, encoding="utf-8") + b"\n")
    stems = "".join(f"{Path(name).stem}\n" for name in names)
    (lists / f"{part}.txt").write_text(stems, encoding="utf-8")
    return 0


def _as_voc(name: str, size: tuple[int, int], objects: Objects, classes: tuple[str, ...]) -> Element:
    """Return the annotation of a picture: pixels are counted from 1, and the last one is included."""
    root = Element("annotation")
    SubElement(root, "folder").text = VOC_PICTURES
    SubElement(root, "filename").text = name
    sides = SubElement(root, "size")
    for side, value in (("width", size[0]), ("height", size[1]), ("depth", 3)):
        SubElement(sides, side).text = str(value)
    SubElement(root, "segmented").text = "0"
    for box, label, trained in zip(
        objects.boxes.tolist(), objects.labels.tolist(), objects.trained.tolist(), strict=True
    ):
        one = SubElement(root, "object")
        SubElement(one, "name").text = classes[label]
        for field, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", str(int(not trained)))):
            SubElement(one, field).text = value
        corners = SubElement(one, "bndbox")
        left, top, right, bottom = box
        for corner, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            SubElement(corners, corner).text = _plain(value)
    indent(root)
    return root


def _write_trainval(root: Path, dataset: DetectionDataset) -> None:
    lists = root / VOC_LISTS
    texts = [(lists / f"{part}.txt").read_text(encoding="utf-8") for part in ("train", "val") if part in dataset.parts]
    (lists / "trainval.txt").write_text("".join(texts), encoding="utf-8")


# COCO


def _write_coco(root: Path, part: str, samples: DetectionSamples, names: list[str]) -> int:
    annotations = [
        {
            "id": 0,
            "image_id": image,
            "category_id": label + 1,
            "bbox": [round(value, 4) for value in (left, top, right - left, bottom - top)],
            "area": round(area, 4),
            "iscrowd": int(crowd),
            **({"ignore": 1} if difficult else {}),
        }
        for image, objects in enumerate(samples.objects, 1)
        for (left, top, right, bottom), label, area, crowd, difficult in zip(
            objects.boxes.tolist(),
            objects.labels.tolist(),
            objects.areas.tolist(),
            objects.crowd.tolist(),
            objects.difficult.tolist(),
            strict=True,
        )
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    images = [
        {"id": image, "file_name": name, "width": width, "height": height}
        for image, (name, (width, height)) in enumerate(zip(names, samples.sizes, strict=True), 1)
    ]
    categories = [{"id": label, "name": name, "supercategory": ""} for label, name in enumerate(samples.classes, 1)]
    folder = root / "annotations"
    folder.mkdir(exist_ok=True)
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"instances_{part}.json").write_text(json.dumps(document), encoding="utf-8")
    return 0


# YOLO


def _write_yolo(root: Path, part: str, samples: DetectionSamples, names: list[str]) -> int:
    folder = root / "labels" / part
    folder.mkdir(parents=True)
    lost = 0
    for name, (width, height), objects in zip(names, samples.sizes, samples.objects, strict=True):
        lost += int((~objects.trained).sum())
        kept = objects.subset(objects.trained)
        lines = []
        for label, (left, top, right, bottom) in zip(kept.labels.tolist(), kept.boxes.tolist(), strict=True):
            shares = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            shares += ((right - left) / width, (bottom - top) / height)
            lines.append(f"{label} {' '.join(_plain(share, DIGITS) for share in shares)}\n")
        (folder / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
    return lost


def _write_data_yaml(root: Path, dataset: DetectionDataset) -> None:
    config = {part: f"images/{part}" for part in dataset.parts} | {"names": dict(enumerate(dataset.classes))}
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    (root / "data.yaml").write_text(text, encoding="utf-8")
