"""Read YOLO: a text file per picture, one object a line, and a data.yaml or a list of class names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from resnetkit.data.detection.annotations import Annotated, Annotations, Drawn
from resnetkit.data.detection.pictures import Files
from resnetkit.data.folders.listing import find_below, is_picture_name
from resnetkit.data.reading import PARTS
from resnetkit.errors import DataError

YAML = (".yaml", ".yml")
DATA = ("data", "dataset")
"""Names of the files, without their suffixes, that tools write for the classes and the parts."""
NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "names.txt", "predefined_classes.txt")
"""Files of class names, one a line, as labelImg, CVAT, Roboflow and Darknet name them."""
NOT_LABELS = (*NAMES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "notes.txt", "requirements.txt")
LINE = re.compile(rb"\s*\d+(\.0*)?(\s+[-+.\deE]+){4,}\s*$")
MOST_BYTES = 2**24
NAN = float("nan")


def is_yolo(files: Files, path: Path) -> bool:
    """Whether a folder has labels in text files, or `path` is a data.yaml.

    A data.yaml beside class folders has no label files. Beside a data.yaml, empty ones are labels: of background.
    Raises DataError if `path` is a YAML file that can't be read.
    """
    if path.is_file():
        if path.suffix.lower() in YAML and (reason := _fault(path)):
            raise DataError(reason, name=str(path))
        return path.suffix.lower() in YAML and "names" in _config(path)
    stems = {picture.stem for picture in files.pictures}
    sheets = [one for one in files.others if one.suffix == ".txt" and one.stem in stems]
    sheets = [one for one in sheets if one.name not in NOT_LABELS or "labels" in one.relative_to(files.root).parts]
    if any(map(_begins_as_labels, sheets[:1000])):
        return True
    return bool(sheets or not files.pictures) and bool(_configs(files))  # its pictures may be elsewhere


def _begins_as_labels(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return LINE.match(file.readline(4096)) is not None
    except OSError:
        return False


def _configs(files: Files) -> list[Path]:
    """Return the files of the form of data.yaml, the nearest to the root first."""
    sheets = [one for one in files.others if one.suffix.lower() in YAML]
    sheets.sort(key=lambda one: (len(one.parts), one.name))
    return [one for one in sheets if "names" in (config := _config(one)) and {*PARTS, "valid", "path"} & config.keys()]


def _config(path: Path) -> dict[str, Any]:
    """Return the values in a YAML file; none if it is no mapping or can't be read."""
    try:
        return _parse(path)
    except DataError:
        return {}


def _fault(path: Path) -> str | None:
    """Return why a YAML file can't be read, without its name; None if it can."""
    try:
        _parse(path)
    except DataError as error:
        return error.reason
    return None


def _parse(path: Path) -> dict[str, Any]:
    """Return the values in a YAML file. Raises DataError if it is no mapping or can't be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"is larger than {MOST_BYTES // 2**20} MiB", name=str(path))
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or error}", name=str(path)) from error
    except UnicodeError as error:
        raise DataError("is not text in UTF-8", name=str(path)) from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"is not YAML ({error.problem or error.context}{line})", name=str(path)) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError("is not YAML", name=str(path)) from error
    if not isinstance(config, dict):
        raise DataError("has no names and values", name=str(path))
    return config


def read_yolo(files: Files, path: Path) -> Annotations:
    """Read the labels of all pictures that data.yaml names or, without it, of all pictures below the folder.

    The label file of images/a/1.jpg is labels/a/1.txt, else a/1.txt beside the picture. A picture without one shows
    background, if other pictures of its part have one. Lines with more than four numbers are polygons: their box is
    read.
    """
    result = Annotations("yolo", {})
    sheets = [path] if path.is_file() else _configs(files)
    config = _config(sheets[0]) if sheets else {}
    names = _names(config.get("names")) if config else _listed_names(files)
    for sheet in files.others:
        if sheet.suffix.lower() in YAML and sheet.stem.lower() in DATA and (reason := _fault(sheet)):
            result.found("unreadable", sheet, f"{reason}; it is not used")
    of_parts = _parts(config, sheets[0], files, result) if sheets else {}
    if not of_parts:
        for picture in files.pictures:
            of_parts.setdefault(files.part(picture) or "train", []).append(picture)
    if sheets:
        result.understood.append(f"classes and parts: {sheets[0].name}")
    highest = -1
    used: set[Path] = set()
    for part, pictures in of_parts.items():
        labels = {picture: _label_file(picture) for picture in pictures}
        if not any(labels.values()):
            result.understood.append(f"{part} has no label files: unlabelled, left out")
            continue
        lacking = 0
        for picture, sheet in labels.items():
            one = Annotated(files.key(picture), picture, "yolo", sheet or picture)
            lacking += sheet is None
            if sheet is not None:
                used.add(sheet)
                try:
                    highest = max(highest, _read(sheet, one, names))
                except DataError as error:
                    result.found("unreadable", sheet, f"{error.reason}; its picture is left out")
                    continue
            result.parts.setdefault(part, []).append(one)
        if lacking:
            result.understood.append(
                f"{lacking:,} of {len(pictures):,} pictures of {part} have no label file: background"
            )
    _find_orphans(files, used, {picture.stem for pictures in of_parts.values() for picture in pictures}, result)
    result.classes = tuple(dict.fromkeys(names)) if names else tuple(map(str, range(highest + 1)))
    return result


def _find_orphans(files: Files, used: set[Path], stems: set[str], result: Annotations) -> None:
    """Add a finding for each label file without a picture."""
    for sheet in files.others:
        if sheet.suffix != ".txt" or sheet in used or sheet.name.lower() in NOT_LABELS:
            continue
        if sheet.stem not in stems and _begins_as_labels(sheet):
            result.found("no picture", sheet, f"its picture, {sheet.stem}, is not there; left out")


def _names(names: object) -> list[str]:
    """Return class names from data.yaml, which has a list or numbers with names; none for other values."""
    if isinstance(names, dict):
        numbers = {int(key): str(name) for key, name in names.items() if str(key).isdecimal()}
        names = [numbers.get(number, str(number)) for number in range(max(numbers, default=-1) + 1)]
    return [" ".join(str(name).split()) for name in names] if isinstance(names, list) else []


def _listed_names(files: Files) -> list[str]:
    """Return class names from a list of names; none without one."""
    sheets = [one for one in files.others if one.name in NAMES]
    for sheet in sorted(sheets, key=lambda one: (len(one.parts), NAMES.index(one.name))):
        try:
            lines = sheet.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError):
            continue
        if names := [" ".join(line.split()) for line in lines if line.strip()]:
            return names
    return []


def _parts(config: dict[str, Any], sheet: Path, files: Files, result: Annotations) -> dict[str, list[Path]]:
    """Return the pictures of each part that data.yaml names; none if it names no folder that is there.

    What it names and is not there is added to `result`.
    """
    found: dict[str, list[Path]] = {}
    bases = [sheet.parent]
    if isinstance(base := config.get("path"), str) and base:
        bases.insert(0, sheet.parent / base)  # an absolute path, often of another machine, replaces the folder
    for part, key in (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test")):
        entries = config.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and entry:
                pictures = _pictures_of(entry, bases, files, result)
                if pictures is None:
                    result.understood.append(f"{key} of {sheet.name}, {entry}, is not there")
                found.setdefault(part, []).extend(pictures or [])
    return {part: list(dict.fromkeys(pictures)) for part, pictures in found.items() if pictures}


def _pictures_of(entry: str, bases: Sequence[Path], files: Files, result: Annotations) -> list[Path] | None:
    """Return the pictures of a folder or a list of paths; None if it is not there.

    Roboflow writes ../train/images for train/images.
    """
    entry = entry.replace("\\", "/")
    spelled = [entry, re.sub(r"^(\.\./)+", "", entry)]
    for base in bases:
        for name in spelled:
            place = base / name
            if place.is_dir():
                return [one.path for one in find_below(place) if one.kind == "picture"]
            if place.is_file() and place.suffix == ".txt":
                return _listed_pictures(place, files, result)
    return None


def _listed_pictures(sheet: Path, files: Files, result: Annotations) -> list[Path]:
    """Return the pictures that a list names, one a line; those that are not there are added to `result`."""
    try:
        lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        result.found("unreadable", sheet, f"can't be read: {error.strerror or error}; its pictures are left out")
        return []
    except UnicodeError:
        result.found("unreadable", sheet, "is not text in UTF-8; its pictures are left out")
        return []
    found: list[Path] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        path = files.find(line, sheet) if is_picture_name(line) else None
        if path is None:
            what = "is not there" if is_picture_name(line) else "is no name of a picture"
            result.found("no picture", f"{sheet}, line {number}", f"{line[:100]} {what}; left out")
        else:
            found.append(path)
    return found


def _label_file(picture: Path) -> Path | None:
    """Return the file with the labels of a picture; None if there is none."""
    parts = list(picture.parts)
    places = [picture]
    for place in range(len(parts) - 2, -1, -1):
        if parts[place].lower() == "images":
            places.insert(
                0, Path(*parts[:place], "labels" if parts[place] == "images" else "Labels", *parts[place + 1 :])
            )
            break
    else:
        places.append(picture.parent.parent / "labels" / picture.name)
    for place in places:
        if (sheet := place.with_suffix(".txt")).is_file():
            return sheet
    return None


def _read(sheet: Path, one: Annotated, names: Sequence[str]) -> int:
    """Read the lines of a label file, and return the highest number of a class; -1 without one."""
    try:
        if sheet.stat().st_size > MOST_BYTES:
            raise DataError(f"is larger than {MOST_BYTES // 2**20} MiB", name=str(sheet))
        lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror or error}", name=str(sheet)) from error
    except UnicodeError as error:
        raise DataError("is not text in UTF-8", name=str(sheet)) from error
    highest = -1
    for number, line in enumerate(lines, 1):
        if not (words := line.replace(",", " ").split()):
            continue
        label, values = _number(words[0]), [_number(word) for word in words[1:]]
        whole = label == int(label) if label == label and abs(label) < 2**31 else False
        if whole and label >= 0:
            name = names[int(label)] if label < len(names) else f"number {int(label)}" if names else str(int(label))
            highest = max(highest, int(label))
        else:
            name, values = words[0], [NAN] * 4
        one.objects.append(Drawn(name, _box(values), number, number))
    return highest


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Return centre, width and height; of a polygon, those around it. A fifth number is a score, which is left out."""
    if len(values) in (4, 5):
        return values[0], values[1], values[2], values[3]
    if len(values) < 6 or len(values) % 2:
        return (NAN, NAN, NAN, NAN)
    columns, rows = values[::2], values[1::2]
    left, right, top, bottom = min(columns), max(columns), min(rows), max(rows)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return NAN
