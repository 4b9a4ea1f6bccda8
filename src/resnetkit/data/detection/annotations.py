"""Boxes as annotation files have them, before they are checked: the result of the readers of VOC, COCO and YOLO."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

Form = Literal["voc", "coco", "yolo"]
FORMS: tuple[Form, ...] = get_args(Form)
"""Forms of annotations."""
Fault = Literal[
    "outside", "beyond", "empty", "inverted", "doubled", "unit", "number", "class", "size",
    "no picture", "no annotation", "unreadable", "picture",
]  # fmt: skip
"""What may be wrong with a box, an annotation or a picture: see `faults.RULES`."""


class Drawn(NamedTuple):
    """One object as it stands in a file."""

    label: str
    values: tuple[float, float, float, float]
    """The four numbers of the file, with the meaning that its form gives them: see `Annotated.form`."""
    number: int
    """VOC: number of the object in its file, from 1. COCO: id of the annotation. YOLO: number of the line, from 1."""
    line: int = 0
    """Number of the line in the file, from 1; 0 if it is not known."""
    difficult: bool = False
    crowd: bool = False
    area: float | None = None
    """Area in square pixels; None: that of the box."""


@dataclass
class Annotated:
    """One picture and the objects that a file says are in it."""

    key: str
    """The key by which pictures are sorted and divided: the relative path, with slashes."""
    path: Path
    form: Form
    """voc: `values` are left, top, right, bottom, as pixels counted from 1, right and bottom included. coco: left, top,
    width, height, in pixels. yolo: centre, width and height, as shares of the picture's width and height."""
    source: Path
    """The file with the annotation."""
    objects: list[Drawn] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """Width and height of the picture that the file names, in pixels; None if it names none."""

    def place(self, drawn: Drawn) -> str:
        """Return where an object stands, for people."""
        match self.form:
            case "voc":
                return f"{self.source}, object {drawn.number} (line {drawn.line})"
            case "coco":
                return f"{self.source}, annotation {drawn.number}"
            case "yolo":
                return f"{self.source}, line {drawn.number}"


class Finding(NamedTuple):
    """Something that is wrong with an annotation."""

    fault: Fault
    place: str
    """The file, and the object or line in it."""
    what: str
    """What is wrong, and what was done about it."""

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass
class Annotations:
    """The annotations of a data set."""

    form: Form
    parts: dict[str, list[Annotated]]
    """Part (train, val, test) -> its pictures."""
    classes: tuple[str, ...] | None = None
    """The classes that a file declares, in its order; None: those that occur, sorted."""
    findings: list[Finding] = field(default_factory=list)
    understood: list[str] = field(default_factory=list)
    """How the layout was read, one phrase each."""

    def found(self, fault: Fault, place: object, what: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(fault, str(place), what))
