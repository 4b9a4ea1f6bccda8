"""Open pictures with boxes, in the form of VOC, COCO or YOLO, as a DetectionDataset."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.data.detection.annotations import FORMS, Annotations, Finding, Form
from resnetkit.data.detection.coco import read_coco
from resnetkit.data.detection.division import Kept, draw_val
from resnetkit.data.detection.faults import RULES, settle
from resnetkit.data.detection.pictures import upright_size
from resnetkit.data.detection.samples import DetectionDataset, DetectionSamples, Objects
from resnetkit.data.detection.sources import EXPECTED, Sources, find_sources, instead
from resnetkit.data.detection.voc import read_voc
from resnetkit.data.detection.yolo import read_yolo
from resnetkit.data.reading import PARTS
from resnetkit.display import count, shell
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.progress import Advance, ignore

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


def open_detection(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    annotations: str | None = None,
    usual: str | None = None,
    kept: Kept | None = None,
    advance: Advance = ignore,
) -> DetectionDataset:
    """Open pictures with boxes: a folder with PASCAL VOC, COCO or YOLO annotations, or a JSON or YAML file of them.

    The form is found by what is in the folder; `annotations` (voc, coco, yolo) chooses one if there are several, and
    `usual` one that is taken if it is among them and none was chosen. Boxes that are wrong are mended or left out by
    the rule of `faults.RULES`, and one note for each fault says how many.
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
    opened = read_detection(data, annotations=annotations, usual=usual, advance=advance)
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


def read_detection(
    data: str | Path,
    *,
    annotations: str | None = None,
    usual: str | None = None,
    sources: Sources | None = None,
    advance: Advance = ignore,
) -> Opened:
    """Read annotations and the sizes of their pictures, and apply the rule for wrong boxes; val is not drawn.

    `sources` is what `find_sources` found in `data`, if it was asked already. Raises DataError and UsageError as
    `open_detection` does, but not for wrong annotations: `findings` has them all.
    """
    if annotations is not None and annotations not in FORMS:
        raise UsageError(f"`annotations` is {annotations!r}; give {', '.join(FORMS)}")
    if not expanded(data).exists():
        raise DataError(f"{data}: no such data; give a folder of pictures with annotations")
    sources = sources or find_sources(data)
    forms = sources.forms if sources else ()
    if sources is None or not forms or (annotations and annotations not in forms):
        if forms:
            has = " and ".join(forms)
            raise DataError(f"{data} has no annotations of the form {annotations}, but {has}; leave `annotations` out")
        raise DataError(f"{data} has no annotations of boxes; {instead(data)}")
    if len(forms) > 1 and not annotations:
        annotations = usual if usual in forms else None
    if len(forms) > 1 and not annotations:
        name = forms[0]
        raise DataError(
            f"{data} has annotations of several forms, {' and '.join(forms)}; choose one with `annotations`, or write "
            f"one of them: resnetkit data convert {shell(data)} DIR --annotations {name} --to {name}"
        )
    form = next(one for one in forms if annotations in (None, one))
    path, files = sources.path, sources.files
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
    return Opened(name, read.form, classes, parts, tuple(findings), tuple(read.understood), tuple(skipped))


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
