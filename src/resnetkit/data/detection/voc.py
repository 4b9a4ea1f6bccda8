"""Read PASCAL VOC: one XML file per picture, as the challenge, labelImg, CVAT, Roboflow and others write them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from resnetkit.data.detection.annotations import Annotated, Annotations, Drawn
from resnetkit.data.detection.pictures import Files
from resnetkit.data.detection.xml import LINE, read_xml
from resnetkit.data.reading import PARTS
from resnetkit.errors import DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
LISTS = ("train", "val", "trainval", "test")
"""Names of lists in ImageSets/Main; lists of single classes, such as cat_train.txt, repeat them."""
YEAR = re.compile(r"VOC(20\d\d)")
TRUE = ("1", "true", "yes")
NAN = float("nan")


def is_voc(path: Path) -> bool:
    """Whether an XML file is an annotation, by its first bytes."""
    try:
        with path.open("rb") as file:
            return b"<annotation" in file.read(2048)
    except OSError:
        return False


def read_voc(files: Files) -> Annotations:
    """Read all annotations of PASCAL VOC below a folder.

    The parts are those of the lists in ImageSets/Main, if there are any; else those of the folders (train, valid,
    test); else all pictures are train. If there are several years, train is trainval of all of them, and test that of
    the years that have one, as the protocol 07+12 says.
    """
    result = Annotations("voc", {})
    sheets = [path for path in files.others if path.suffix.lower() == ".xml" and is_voc(path)]
    lists = [path for path in files.others if path.suffix == ".txt" and path.parent.parts[-2:] == ("ImageSets", "Main")]
    lists = [path for path in lists if path.stem in LISTS]
    if lists:
        _by_lists(files, sheets, lists, result)
    else:
        _by_folders(files, sheets, result)
    return result


def _by_folders(files: Files, sheets: Sequence[Path], result: Annotations) -> None:
    pictures: set[Path] = set()
    for sheet in sheets:
        one = _read(files, sheet, result, pictures)
        if one:
            result.parts.setdefault(files.part(sheet) or "train", []).append(one)
    without = [path for path in files.pictures if path not in pictures]
    for path in without:
        result.found("no annotation", path, "has no annotation; left out")


def _by_lists(files: Files, sheets: Sequence[Path], lists: Sequence[Path], result: Annotations) -> None:
    """Read the pictures of lists: a line has the name of a picture without its suffix."""
    homes: dict[Path, dict[str, Path]] = {}
    for path in lists:
        homes.setdefault(path.parent.parent.parent, {})[path.stem] = path
    of_home: dict[Path, dict[str, Path]] = {home: {} for home in homes}
    for sheet in sheets:
        home = next((parent for parent in sheet.parents if parent in homes), None)
        if home is not None:
            of_home[home][sheet.stem] = sheet
    several = len(homes) > 1
    for home, named in homes.items():
        wanted = _wanted(named, several=several)
        result.understood.append(
            f"parts of {home.name}: "
            + ", ".join(f"{part} = {' + '.join(path.stem for path in paths)}" for part, paths in wanted.items())
        )
        taken: set[str] = set()
        for part in reversed(
            PARTS
        ):  # a picture that is in several lists is of the last part, so that train never has it
            for path in wanted.get(part, ()):
                for line, name in _names(path):
                    if name in taken:
                        continue
                    taken.add(name)
                    sheet = of_home[home].get(name)
                    if sheet is None:
                        result.found("no annotation", f"{path}, line {line}", f"{name} has no annotation; left out")
                    elif one := _read(files, sheet, result, None):
                        result.parts.setdefault(part, []).append(one)


def _wanted(named: Mapping[str, Path], *, several: bool) -> dict[str, list[Path]]:
    """Return the lists of each part."""
    if several and "trainval" in named:
        wanted = {"train": [named["trainval"]]}
    elif "train" in named and ("val" in named or "trainval" not in named):
        wanted = {part: [named[part]] for part in ("train", "val") if part in named}
    else:
        wanted = {part: [named[name]] for part, name in (("train", "trainval"), ("val", "val")) if name in named}
    return wanted | ({"test": [named["test"]]} if "test" in named else {})


def _names(path: Path) -> list[tuple[int, str]]:
    """Return the names in a list with the numbers of their lines; a flag behind a name says how sure a class is."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"can't be read: {error}", name=str(path)) from error
    found: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        name = re.sub(r"\s+-?[01]$", "", line.strip()).replace("\\", "/").rpartition("/")[2]
        if name:
            found.append((number, re.sub(r"\.(jpe?g|png|xml)$", "", name, flags=re.IGNORECASE)))
    return found


def _read(files: Files, sheet: Path, result: Annotations, pictures: set[Path] | None) -> Annotated | None:
    """Read an annotation; None, and a finding, if it or its picture can't be found or read."""
    try:
        root = read_xml(sheet)
    except DataError as error:
        result.found("unreadable", sheet, f"{error.reason}; its picture is left out")
        if pictures is not None and (path := files.find(sheet.stem, sheet, stem=True)):
            pictures.add(path)
        return None
    path = files.find(sheet.stem, sheet, stem=True)
    name = (root.findtext("filename") or "").strip()
    if path is None and name:
        path = files.find(name, sheet) or files.find(name, sheet, stem=True)
    if path is None:
        result.found("no picture", sheet, f"its picture, {name or sheet.stem}, is not there; left out")
        return None
    if pictures is not None:
        pictures.add(path)
    objects = [_drawn(element, number) for number, element in enumerate(root.findall("object"), 1)]
    return Annotated(files.key(path), path, "voc", sheet, objects, _size(root))


def _size(root: Element) -> tuple[int, int] | None:
    values = [_number(root.findtext(f"size/{side}")) for side in ("width", "height")]
    return (int(values[0]), int(values[1])) if all(value >= 1 for value in values) else None


def _drawn(element: Element, number: int) -> Drawn:
    """Return an object; its numbers are NaN if they are missing. Parts of objects (heads, hands) are not read."""
    left, top, right, bottom = (_number(element.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    label = " ".join((element.findtext("name") or "").split())
    difficult = (element.findtext("difficult") or "").strip().lower() in TRUE
    line = int(element.get(LINE, "0"))
    return Drawn(label, (left, top, right, bottom) if label else (NAN,) * 4, number, line, difficult)


def _number(text: str | None) -> float:
    try:
        return float((text or "").strip().replace(",", "."))
    except ValueError:
        return NAN
