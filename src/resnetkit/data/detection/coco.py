"""Read COCO: JSON files with the pictures, objects and classes of a part, or of several files for each part."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resnetkit.data.detection.annotations import Annotated, Annotations, Drawn
from resnetkit.data.detection.outlines import area_of, box_of
from resnetkit.data.detection.pictures import Files
from resnetkit.data.reading import part_of, without_part
from resnetkit.errors import DataError

FIRST_BYTES = 2**16
KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[\s*\{')
NAN = float("nan")


def is_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's form, by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(FIRST_BYTES)
    except OSError:
        return False
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and KEYS.search(start) is not None


def read_coco(files: Files, path: Path) -> Annotations:
    """Read the JSON files below a folder, or `path` and the files beside it that are named like it, but for the part.

    The part of a file is that of its name (instances_train2017.json) or of its folder (valid/_annotations.coco.json),
    else train. Files of captions or keypoints are not read where files of instances are.
    """
    result = Annotations("coco", {}, classes=())
    pictures: dict[tuple[str, Path], Annotated] = {}
    categories: dict[str, None] = {}
    for sheet in _sheets(files, path):
        part = part_of(sheet.stem) or files.part(sheet) or "train"
        try:
            document = _document(sheet)
        except DataError as error:
            result.found("unreadable", sheet, f"{error.reason}; its pictures are left out")
            continue
        if "annotations" not in document:
            result.understood.append(f"{sheet.name} has no annotations: left out")
            continue
        names = _categories(document, sheet, result)
        categories |= dict.fromkeys(names.values())
        _read_pictures(document, sheet, part, names, pictures, files, result)
    for (part, _), one in pictures.items():
        result.parts.setdefault(part, []).append(one)
    result.classes = tuple(categories)
    return result


def _sheets(files: Files, path: Path) -> list[Path]:
    found = [one for one in files.others if one.suffix.lower() == ".json" and is_coco(one)]
    if path.is_file():
        if part_of(path.stem) is None:
            return [path]
        found = [one for one in found if one.parent == path.parent and part_of(one.stem)]
        found = [one for one in found if without_part(one.stem) == without_part(path.stem)]
        return found or [path]
    instances = [one for one in found if one.stem.startswith("instances")]
    return instances or found


def _document(sheet: Path) -> dict[str, Any]:
    try:
        with sheet.open(encoding="utf-8-sig") as file:
            document = json.load(file)
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or error}", name=str(sheet)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not sound JSON: {error}", name=str(sheet)) from error
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key, []), list) for key in ("images", "annotations", "categories")
    ):
        raise DataError("is not of COCO's form: images, annotations and categories must be lists", name=str(sheet))
    return document


def _categories(document: Mapping[str, Any], sheet: Path, result: Annotations) -> dict[Any, str]:
    """Return id -> name, by id. A category that only stands above others, as Roboflow writes it, is no class."""
    entries = [one for one in document.get("categories", []) if isinstance(one, dict) and "id" in one]
    used = {one.get("category_id") for one in document["annotations"] if isinstance(one, dict) and _plain(one)}
    above = {one.get("supercategory") for one in entries}
    names: dict[Any, str] = {}
    for one in sorted(entries, key=lambda one: (not isinstance(one["id"], int), str(one["id"]).zfill(12))):
        identity, name = one["id"], " ".join(str(one.get("name", one["id"])).split())
        if isinstance(identity, int | str) and not (name in above and identity not in used and len(entries) > 1):
            names[identity] = name
    if len(entries) < len(document.get("categories", [])):
        result.found("unreadable", sheet, "has categories without an id; they are left out")
    return names


def _plain(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get("category_id"), int | str)


def _read_pictures(
    document: Mapping[str, Any],
    sheet: Path,
    part: str,
    names: Mapping[Any, str],
    pictures: dict[tuple[str, Path], Annotated],
    files: Files,
    result: Annotations,
) -> None:
    by_id: dict[Any, Annotated | None] = {}
    for number, image in enumerate(document.get("images", []), 1):
        identity = image.get("id") if isinstance(image, dict) else None
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(identity, int | str) or not isinstance(name, str):
            result.found("unreadable", f"{sheet}, image {number}", "has no id or no file_name; left out")
            continue
        if identity in by_id:
            result.found("unreadable", f"{sheet}, image {number}", f"its id {identity} is there already; left out")
            continue
        path = files.find(name, sheet)
        by_id[identity] = None
        if path is None:
            result.found("no picture", f"{sheet}, image {identity}", f"its picture, {name}, is not there; left out")
            continue
        width, height = image.get("width"), image.get("height")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        by_id[identity] = pictures.setdefault((part, path), Annotated(files.key(path), path, "coco", sheet, size=size))
    for number, one in enumerate(document["annotations"], 1):
        if not isinstance(one, dict) or one.get("image_id") not in by_id:
            which = one.get("image_id") if isinstance(one, dict) else None
            identity = one.get("id", number) if isinstance(one, dict) else number
            place = f"{sheet}, annotation {identity}"
            result.found("no picture", place, f"no picture has its image_id, {which}; left out")
            continue
        picture = by_id[one["image_id"]]
        if picture is not None:
            picture.objects.append(_drawn(one, number, names))


def _drawn(one: Mapping[str, Any], number: int, names: Mapping[Any, str]) -> Drawn:
    category = one.get("category_id") if _plain(one) else None
    identity = one.get("id")
    area = one.get("area")
    if isinstance(area, bool) or not isinstance(area, int | float) or not 0 < area < float("inf"):
        area = area_of(one.get("segmentation"))
    return Drawn(
        names.get(category, f"number {category}"),
        _box(one),
        identity if isinstance(identity, int) else number,
        difficult=bool(one.get("ignore")) and not one.get("iscrowd"),
        crowd=bool(one.get("iscrowd")),
        area=area,
    )


def _box(one: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """Return left, top, width and height; those of the outline if there is no box; NaN without both."""
    box: object = one.get("bbox")
    if not box:
        box = box_of(one.get("segmentation"))
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4:
        return (NAN, NAN, NAN, NAN)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in box):
        return (NAN, NAN, NAN, NAN)
    left, top, width, height = box
    try:
        return (float(left), float(top), float(width), float(height))
    except OverflowError:
        return (NAN, NAN, NAN, NAN)
