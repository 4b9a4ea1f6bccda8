"""Look for annotations of boxes, in the form of VOC, COCO or YOLO, without reading them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resnetkit.data.detection.annotations import Form
from resnetkit.data.detection.coco import is_coco
from resnetkit.data.detection.pictures import Files
from resnetkit.data.detection.voc import is_voc
from resnetkit.data.detection.yolo import is_yolo
from resnetkit.data.folders.folder import load_folder
from resnetkit.data.reading import LISTS
from resnetkit.display import shell
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded

NAMES: dict[Form, str] = {"voc": "PASCAL VOC", "coco": "COCO", "yolo": "YOLO"}
"""What people call the forms."""
EXPECTED = (
    "expected PASCAL VOC (XML files), COCO (a JSON file with images and annotations) or YOLO (data.yaml, or images/ "
    "and labels/ with a text file per picture)"
)
SHEETS = (".json", ".yaml", ".yml")
"""Suffixes of files that stand for a whole data set."""


@dataclass(frozen=True)
class Sources:
    """The files of a data set, and the forms of the annotations among them."""

    path: Path
    files: Files
    forms: tuple[Form, ...]


def find_sources(data: str | Path) -> Sources | None:
    """Look for annotations below a folder, or in an annotation file; None for what can contain none.

    Raises DataError if the folder can't be read.
    """
    path = expanded(data)
    try:
        if not path.exists() or not (path.is_dir() or path.suffix.lower() in SHEETS):
            return None
    except OSError:  # no permission, or a name that a file can't have
        return None
    files = Files(_root(path))
    return Sources(path, files, tuple(_forms(files, path)))


def forms_of(data: str | Path) -> tuple[Form, ...]:
    """Return the forms of the annotations below a folder, or of an annotation file; none if there are none.

    Raises DataError if the folder can't be read.
    """
    sources = find_sources(data)
    return sources.forms if sources else ()


def _root(path: Path) -> Path:
    """Return the folder that contains pictures and annotations: for a file, its folder or the one above."""
    if path.is_dir():
        return path
    folder = path.parent
    return folder.parent if folder.name.lower() in ("annotations", "labels") else folder


def _forms(files: Files, path: Path) -> list[Form]:
    others = [path] if path.is_file() else files.others
    found: list[Form] = []
    if any(one.suffix.lower() == ".xml" and is_voc(one) for one in others):
        found.append("voc")
    if any(one.suffix.lower() == ".json" and is_coco(one) for one in others):
        found.append("coco")
    if is_yolo(files, path):
        found.append("yolo")
    return found


def instead(data: str | Path) -> str:
    """Return what to do with data that lack the annotations: train a classifier on class folders or on a list."""
    path = expanded(data)
    labelled = path.is_file() and path.suffix.lower() in LISTS
    if path.is_dir():
        with suppress(DataError, UsageError):
            labelled = len(load_folder(path, val_fraction=0).classes) > 1
    if labelled:
        what = "class folders" if path.is_dir() else "a list of pictures with their classes"
        return f"it is {what}, for a classifier: resnetkit train {shell(data)}"
    return EXPECTED
