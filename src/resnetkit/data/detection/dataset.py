"""Open pictures with boxes, in the form of VOC, COCO or YOLO, as a DetectionDataset."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.data.detection.annotations import FORMS, Annotations, Finding, Form
from resnetkit.data.detection.coco import is_coco, read_coco
from resnetkit.data.detection.division import Kept, draw_val
from resnetkit.data.detection.faults import RULES, settle
from resnetkit.data.detection.pictures import Files, upright_size
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.data.detection.voc import is_voc, read_voc
from resnetkit.data.detection.yolo import is_yolo, read_yolo
from resnetkit.data.reading import PARTS
from resnetkit.display import count
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.progress import Advance, ignore

EXPECTED = (
    "expected PASCAL VOC (XML files), COCO (a JSON file with images and annotations) or YOLO (data.yaml, or images/ "
    "and labels/ with a text file per picture)"
)
SHEETS = (".json", ".yaml", ".yml")
"""Suffixes of files that stand for a whole data set."""
MOST_WRONG = 0.5
"""If more than this share of the pictures is left out, the data are refused."""
SERIOUS = ("unit", "number", "class", "unreadable", "picture", "no picture", "no annotation")
"""Faults for which whole pictures are left out."""


@dataclass(frozen=True)
class Boxed:
    """A picture and its objects after the rule for wrong boxes."""

    key: str
    path: Path
    size: tuple[int, int]
    objects: Objects


@dataclass(frozen=True)
class Opened:
    """A data set before val is drawn, with everything that was found."""

    name: str
    form: Form
    classes: tuple[str, ...]
    parts: Mapping[str, Sequence[Boxed]]
    findings: tuple[Finding, ...]
    understood: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...]
    orphans: int
    """Number of annotations without a picture."""


def form_of(data: str | Path) -> Form | None:
    """Return the form of the annotations below a folder, or of an annotation file; None if there are none.

    Raises DataError if there are several forms, or the folder can't be read.
    """
    path = expanded(data)
    try:
        if not path.is_dir() and path.suffix.lower() not in SHEETS:
            return None
        if not path.exists():
            return None
    except OSError:  # no permission, or a name that a file can't have
        return None
    files = Files(_root(path))
    forms = _forms(files, path)
    if len(forms) > 1:
        raise DataError(
            f"{data} has annotations of several forms, {' and '.join(forms)}; choose one with `annotations`"
        )
    return forms[0] if forms else None


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


def open_detection(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    annotations: str | None = None,
    kept: Kept | None = None,
    advance: Advance = ignore,
) -> DetectionDataset:
    """Open pictures with boxes: a folder with PASCAL VOC, COCO or YOLO annotations, or a JSON or YAML file of them.

    The form is found by what is in the folder; `annotations` (voc, coco, yolo) chooses one if there are several. Boxes
    that are wrong are mended or left out by the rule of `faults.RULES`, and one note for each fault says how many.
    Boxes of the result are finite, within their picture, and at least one pixel wide and high. Pictures without boxes
    are kept: they show only background. The parts are those of lists, files and folders. If there is no val, the
    `val_fraction` (0 to 1) of the training pictures become val, the same ones each time; `kept` says which pictures
    stay together: by default those that are alike. `advance` is called with 1 after each picture whose size was read.

    Raises:
        DataError: there are no annotations, they are of several forms, or more than half of the pictures must be left
            out; the message names the first fault.
        UsageError: an argument has a wrong value.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"`val_fraction` is {val_fraction}; it must be at least 0 and less than 1")
    opened = read_detection(data, annotations=annotations, advance=advance)
    refuse_if_mostly_wrong(opened)
    parts = {part: list(pictures) for part, pictures in opened.parts.items()}
    split: dict[str, Any] = {"rule": "as given"}
    notes = [*opened.understood, *described(opened.findings)]
    if "train" in parts and "val" not in parts and val_fraction:
        pictures = parts["train"]
        drawn = draw_val(
            [one.key for one in pictures],
            [one.path for one in pictures],
            [frozenset(one.objects.labels.tolist()) for one in pictures],
            fraction=val_fraction,
            seed=seed,
            kept=kept or Kept(),
        )
        split = drawn.split
        parts["val"] = [one for one in pictures if one.key in drawn.keys]
        parts["train"] = [one for one in pictures if one.key not in drawn.keys]
        if not parts["val"]:
            del parts["val"]
        else:
            notes.append(
                f"val is drawn: {len(parts['val']):,} of the {len(pictures):,} training pictures, the same ones each "
                f"time (seed {seed})"
            )
    notes += notes_on_classes(opened.classes, parts)
    samples = {part: _samples(opened.classes, pictures) for part, pictures in parts.items() if pictures}
    return DetectionDataset(
        opened.name,
        opened.classes,
        samples.get("train"),
        samples.get("val"),
        samples.get("test"),
        split,
        opened.skipped,
        tuple(notes),
    )


def read_detection(data: str | Path, *, annotations: str | None = None, advance: Advance = ignore) -> Opened:
    """Read annotations and the sizes of their pictures, and apply the rule for wrong boxes; val is not drawn.

    Raises DataError and UsageError as `open_detection` does, but not for wrong annotations: `findings` has them all.
    """
    path = expanded(data)
    if annotations is not None and annotations not in FORMS:
        raise UsageError(f"`annotations` is {annotations!r}; give {', '.join(FORMS)}")
    if not path.exists():
        raise DataError(f"{data}: no such data; give a folder of pictures with annotations")
    files = Files(_root(path))
    forms = _forms(files, path)
    form: Form | None = next((one for one in forms if one == annotations), None) if annotations else None
    if form is None:
        if not forms or annotations:
            wanted = f" of the form {annotations}" if annotations else ""
            raise DataError(f"{data} has no annotations of boxes{wanted}; {EXPECTED}")
        if len(forms) > 1:
            raise DataError(
                f"{data} has annotations of several forms, {' and '.join(forms)}; choose one with `annotations`"
            )
        form = forms[0]
    readers: dict[Form, Callable[[], Annotations]] = {
        "voc": lambda: read_voc(files),
        "coco": lambda: read_coco(files, path),
        "yolo": lambda: read_yolo(files, path),
    }
    read = readers[form]()
    read.understood.insert(0, f"annotations: {form.upper()}")
    if not read.parts and not read.findings:
        raise DataError(f"{data} has annotations, but no pictures; {EXPECTED}")
    classes = read.classes
    if classes is None:
        labels = {drawn.label for part in read.parts.values() for one in part for drawn in one.objects}
        classes = tuple(sorted(labels - {""}))
    return _settled(str(data), read, classes, advance)


def _settled(name: str, read: Annotations, classes: tuple[str, ...], advance: Advance) -> Opened:
    place = {label: index for index, label in enumerate(classes)}
    findings = list(read.findings)
    skipped: list[tuple[Path, str]] = []
    parts: dict[str, list[Boxed]] = {}
    for part in PARTS:
        for one in sorted(read.parts.get(part, []), key=lambda one: one.key):
            advance(1)
            try:
                size, orientation = upright_size(one.path)
            except DataError as error:
                findings.append(Finding("picture", str(one.path), f"{error.reason}; left out"))
                skipped.append((one.path, error.reason))
                continue
            settled = settle(one, place, size, orientation)
            findings += settled.findings
            if settled.objects is None:
                skipped.append((one.path, settled.findings[0].what))
                continue
            parts.setdefault(part, []).append(Boxed(one.key, one.path, size, settled.objects))
    orphans = sum(finding.fault == "no picture" for finding in findings)
    return Opened(name, read.form, classes, parts, tuple(findings), tuple(read.understood), tuple(skipped), orphans)


def refuse_if_mostly_wrong(opened: Opened) -> None:
    """Raise DataError if there are no pictures, or more than half of them are left out."""
    there = sum(map(len, opened.parts.values()))
    wrong = [finding for finding in opened.findings if finding.fault in SERIOUS]
    # A picture that has no annotation was never labelled, which may be meant so.
    lost = len(opened.skipped) + sum(finding.fault in ("no picture", "unreadable") for finding in opened.findings)
    if there and lost <= MOST_WRONG * (there + lost):
        return
    if not wrong:
        raise DataError(f"{opened.name} has annotations, but no pictures; {EXPECTED}")
    raise DataError(
        f"{opened.name}: {lost:,} of {there + lost:,} annotations can't be used, first {wrong[0]}. "
        f"resnetkit data check names them all"
        if lost
        else f"{opened.name}: no picture has an annotation, first {wrong[0]}"
    )


def described(findings: Sequence[Finding]) -> list[str]:
    """Return one phrase for each fault that was found: how often, what was done, and the first place."""
    counts = Counter(finding.fault for finding in findings)
    first: dict[str, Finding] = {}
    for finding in findings:
        first.setdefault(finding.fault, finding)
    return [f"{counts[fault]:,} {RULES[fault]}; first {first[fault].place}" for fault in RULES if counts[fault]]


def notes_on_classes(classes: Sequence[str], parts: Mapping[str, Sequence[Boxed]]) -> list[str]:
    """Return notes on pictures without boxes, and on classes that train or another part does not show."""
    notes: list[str] = []
    empty = sum(not len(one.objects) for pictures in parts.values() for one in pictures)
    if empty:
        notes.append(f"{count(empty, 'picture')} without boxes: background")
    present = {
        part: {label for one in pictures for label in one.objects.labels.tolist()} for part, pictures in parts.items()
    }
    if "train" in present:
        lacking = [classes[label] for label in sorted(set(range(len(classes))) - present["train"])]
        if lacking:
            named = ", ".join(map(repr, lacking[:3])) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
            notes.append(f"train has no box of {named}")
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike["".join(character for character in name.lower() if character.isalnum()) or name].append(name)
    same = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    return [*notes, *(f"the classes {names} differ only in case, spaces and dashes" for names in same)]


def _samples(classes: tuple[str, ...], pictures: Sequence[Boxed]) -> DetectionSamples:
    return DetectionSamples(
        classes,
        tuple(one.path for one in pictures),
        tuple(one.size for one in pictures),
        tuple(one.objects for one in pictures),
    )
