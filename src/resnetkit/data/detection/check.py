"""Check pictures with boxes: count them, name every wrong annotation with its place, and find leaks between parts."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.detection.annotations import Finding, Form
from resnetkit.data.detection.dataset import Boxed, described, notes_on_classes, read_detection
from resnetkit.data.detection.sources import Sources
from resnetkit.data.duplicates import groups_of
from resnetkit.data.looks import Look, Looks, look_of_file
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.samples import Dataset, Samples
from resnetkit.display import count, cut, line
from resnetkit.progress import Advance, ignore

ACCEPTED = ("no annotation",)
"""Faults that may be meant so: a picture that nobody has labelled yet."""
PICTURES_AHEAD = 16
MOST_EXAMPLES = 24
"""Largest number of pictures that show the classes."""


@dataclass(frozen=True)
class BoxFindings:
    """The result of `check_boxes`."""

    name: str
    form: Form
    boxes: Mapping[str, Mapping[str, int]]
    """Part (train, val, test) -> class -> number of boxes."""
    pictures: Mapping[str, int]
    """Part -> number of pictures, with those without boxes."""
    background: Mapping[str, int]
    """Part -> number of pictures without boxes."""
    findings: tuple[Finding, ...]
    """Everything that is wrong with annotations and pictures, each with its place."""
    leaks: tuple[tuple[str, ...], ...]
    """Groups of pictures that are the same or alike in several parts, each picture as "part: path"."""
    copies: tuple[tuple[str, ...], ...]
    """Groups of pictures with equal content in one part."""
    notes: tuple[str, ...]
    """How the layout was read, and facts that need no mending."""
    examples: tuple[Boxed, ...] = ()
    """Some pictures with their objects that show all classes, if there are not too many."""

    def __repr__(self) -> str:
        parts = (f"{name} {number:,}" for name, number in self.pictures.items())
        return line(type(self), repr(cut(self.name, 60)), self.form, *parts, "sound" if self.sound else "to fix")

    @property
    def to_fix(self) -> tuple[Finding, ...]:
        """The findings that are mistakes; pictures that were never annotated are none."""
        return tuple(finding for finding in self.findings if finding.fault not in ACCEPTED)

    @property
    def sound(self) -> bool:
        """Whether there is nothing to fix."""
        return not (self.to_fix or self.leaks)

    @property
    def summary(self) -> list[str]:
        """One phrase for each kind of fault, with what is done about it."""
        return described(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, for JSON."""
        return {
            "data": self.name,
            "form": self.form,
            "parts": {
                part: {"pictures": self.pictures[part], "background": self.background[part], "boxes": dict(boxes)}
                for part, boxes in self.boxes.items()
            },
            "findings": [finding._asdict() for finding in self.findings],
            "leaks": self.leaks,
            "copies": self.copies,
            "notes": self.notes,
            "sound": self.sound,
        }


def check_boxes(
    data: str | Path,
    *,
    annotations: str | None = None,
    sources: Sources | None = None,
    workers: int = 4,
    advance: Advance = ignore,
) -> BoxFindings:
    """Read all annotations of a data set, decode all its pictures, and return everything that is wrong.

    `annotations` is voc, coco or yolo if there are several forms; `sources` is what `find_sources` found, if it was
    asked already. `workers` threads decode; 0 decodes in the calling thread. `advance` is called with 1 after each
    picture. Memory contains the annotations, and some 1,100 bytes for each picture.

    Raises DataError and UsageError as `open_detection` does, but not for wrong annotations or pictures.
    """
    opened = read_detection(data, annotations=annotations, sources=sources)
    pictures = [(part, one) for part, of in opened.parts.items() for one in of]
    looks = Looks(len(pictures))
    findings = list(opened.findings)
    looking = prefetch(
        _look, [one.path for _, one in pictures], workers=workers, ahead=PICTURES_AHEAD * max(workers, 1)
    )
    with closing(looking):
        for index, look in enumerate(looking):
            if isinstance(look, Failure):
                findings.append(Finding("picture", str(look.path), f"{look.reason}; left out"))
            else:
                looks.put(index, look)
            advance(1)
    leaks, copies = _duplicates(opened.name, opened.parts, looks)
    return BoxFindings(
        opened.name,
        opened.form,
        {part: _per_class(opened.classes, of) for part, of in opened.parts.items()},
        {part: len(of) for part, of in opened.parts.items()},
        {part: sum(not len(one.objects) for one in of) for part, of in opened.parts.items()},
        tuple(findings),
        leaks,
        copies,
        (*opened.understood, *notes_on_classes(opened.classes, opened.parts)),
        _examples(pictures, unreadable={finding.place for finding in findings if finding.fault == "picture"}),
    )


def _examples(pictures: Sequence[tuple[str, Boxed]], *, unreadable: Container[str]) -> tuple[Boxed, ...]:
    """Return pictures of which each shows a class that those before it do not, then others with boxes."""
    shown: set[int] = set()
    first: list[Boxed] = []
    others: list[Boxed] = []
    for _, one in pictures:
        labels = {*one.objects.labels.tolist()}
        if not labels or str(one.path) in unreadable:
            continue
        (others if labels <= shown else first).append(one)
        shown |= labels
    return tuple((first + others)[:MOST_EXAMPLES])


def _per_class(classes: Sequence[str], pictures: Sequence[Boxed]) -> dict[str, int]:
    counts = Counter(label for one in pictures for label in one.objects.labels.tolist())
    return {name: counts[label] for label, name in enumerate(classes)}


def _look(path: Path) -> Look:
    """Return the look of a picture after the whole of it was decoded. Raises DataError if that fails."""
    open_picture(path)
    return look_of_file(path.read_bytes())


def _duplicates(
    name: str, parts: Mapping[str, Sequence[Boxed]], looks: Looks
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Return the groups of pictures in several parts, and those of equal pictures in one part."""
    samples = {
        part: Samples(("",), np.zeros(len(of), np.int64), paths=tuple(one.path for one in of))
        for part, of in parts.items()
    }
    dataset = Dataset(name, ("",), samples.get("train"), samples.get("val"), samples.get("test"))
    leaks: list[tuple[str, ...]] = []
    copies: list[tuple[str, ...]] = []
    for group in groups_of(dataset, looks):
        named = tuple(f"{place.part}: {dataset.parts[place.part].place(place.index)}" for place in group.places)
        if len({place.part for place in group.places}) > 1:
            leaks.append(named)
        elif group.kind == "same":
            copies.append(named)
    # Equal pictures of several parts are among the alike ones, if these are more.
    leaks = [one for one in leaks if not any({*one} < {*other} for other in leaks)]
    return tuple(dict.fromkeys(leaks)), tuple(copies)


def lines(findings: BoxFindings, *, most: int) -> list[str]:
    """Return what is wrong, one line each: of each fault the first `most` places, and the number of the others."""
    of_fault: dict[str, list[Finding]] = {}
    for finding in findings.findings:
        of_fault.setdefault(finding.fault, []).append(finding)
    said: list[str] = []
    for fault, found in of_fault.items():
        said += [f"{fault}: {finding}" for finding in found[:most]]
        if more := len(found) - most:
            said += [f"{fault}: {more:,} more; `json` names them"] if more > 0 else []
    for kind, groups in (
        ("copies", findings.copies),
        ("leak, the same or alike pictures in several parts", findings.leaks),
    ):
        said += [f"{kind}: {', '.join(group)}" for group in groups[:most]]
        if (more := len(groups) - most) > 0:
            said.append(f"{kind}: {count(more, 'group')} more")
    return said
