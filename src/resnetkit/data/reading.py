"""How the user says a folder or list is laid out and corrected, and the usual names of the parts of a data set."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from resnetkit.errors import UsageError
from resnetkit.files import expanded

PARTS = ("train", "val", "test")
"""The parts of a data set."""
LISTS = frozenset({".csv", ".tsv", ".tab", ".txt", ".lst", ".list", ".jsonl", ".ndjson"})
"""Suffixes of lists, in lower case."""
CLASSES_ONLY = "none"
"""Value of `parts` for: all folders are classes, even if they have the names of parts."""
BY_PARENT, BY_EXIF_TIME = "parent", "exif-time"
"""Values of `group_by` with a meaning of their own; others are a column or a regular expression."""
WORDS = {
    "train": ("train", "training", "trn", "训练", "训练集"),
    "val": ("val", "valid", "validation", "dev", "验证", "验证集"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "测试", "测试集"),
}
"""Part -> words that stand for it. Pictures for evaluation are test: nothing is chosen by them."""
WHOLE = {"tr": "train", "va": "val", "te": "test"}
"""Names that stand for a part only if they are the whole name: name -> part."""
_LETTERS = r"[a-z]+|[\u4e00-\u9fff]+"
_PART = {word: part for part, words in WORDS.items() for word in words}
_WORD = re.compile(rf"({'|'.join(_PART)})(?:sets?|data|images?|imgs?|pics?|split|folder|dir|list)?")


PATHS = frozenset({"images", "corrections"})
"""Fields of Reading that are paths, apart from those relative to DATA."""


class UnfitError(UsageError):
    """A field of Reading does not fit the data: it names a missing folder or column, or has no use for these data."""


@dataclass(frozen=True)
class Reading:
    """The layout of a folder or a list, as the user gives it. A field that is None is detected."""

    parts: str | None = None
    """Folders of the parts, relative to DATA: train=DIR,val=DIR,test=DIR; or none: all folders are classes, and of
    several lists only the given one is read."""
    images: str | None = None
    """For a list: the folder that its paths are relative to; unset: the folder of the list."""
    path_column: str | None = None
    """For a list: name of the column with the paths, or its number from 1."""
    label_column: str | None = None
    """For a list: column with the classes."""
    split_column: str | None = None
    """For a list: column with the parts."""
    group_by: str | None = None
    """Pictures that a drawn val must not share with train, such as those of one patient: parent (the same folder),
    exif-time (taken within a minute of each other), a column of the list, or a regular expression whose groups are
    found in the paths."""
    labels: Literal["one", "several"] | None = None
    """For a list: whether a picture has one label, or may have several or none (multi-label). With several, a picture
    may be in several rows, and has the labels of all of them."""
    corrections: str | None = None
    """CSV file with the columns path,action,label: relabel gives a picture another class, drop leaves it out, keep says
    that its label is right. The division into parts stays the same."""

    def given(self) -> dict[str, str]:
        """Return the fields that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def recorded(self) -> dict[str, str]:
        """Return the fields that are set, without paths, which depend on the machine. A model file stores them."""
        return {name: value for name, value in self.given().items() if name not in PATHS}

    def settled(self) -> "Reading":
        """Return the same reading with absolute paths, for a process that runs in another folder."""
        return replace(
            self, **{name: str(expanded(self.given()[name]).resolve()) for name in PATHS & self.given().keys()}
        )

    def refuse(self, *names: str, why: str) -> None:
        """Raise UnfitError if one of the fields `names` is set; `why` is the reason for the message."""
        for name in names:
            if name in self.given():
                raise UnfitError(f"`{name}` has no use here: {why}; leave it out")

    @property
    def part_folders(self) -> list[tuple[str, Path]] | None:
        """The parts in `parts` with their folders; None if it contains none. Raises UsageError for another form."""
        if self.parts is None or self.parts == CLASSES_ONLY:
            return None
        pieces = re.split(r"(?:^|,)(train|val|test)=", self.parts)
        found = list(zip(pieces[1::2], pieces[2::2], strict=True))
        if pieces[0] or not found or not all(folder for _, folder in found):
            raise UsageError(f"`parts` is {self.parts!r}; give train=DIR,val=DIR,test=DIR, or some of them, or none")
        return [(part, expanded(folder)) for part, folder in found]


NOTHING = Reading()
"""A reading without any field: everything is detected."""


def reading_of(values: Mapping[str, Any]) -> Reading:
    """Make a reading from the strings in `values` that are fields of Reading; other values are ignored."""
    return Reading(**{name: values[name] for name in asdict(NOTHING) if isinstance(values.get(name), str)})


def part_of(name: str) -> str | None:
    """Return the part that a name stands for: train, val or test; None if its words stand for no part or for several.

    Letter case does not matter. Examples: Training, test_set, seg_train, imagenet-val, PrivateTest, tr, 训练.
    """
    if whole := WHOLE.get(name.strip().lower()):
        return whole
    words = re.findall(_LETTERS, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    parts = {_PART[found[1]] for word in words if (found := _WORD.fullmatch(word))}
    return parts.pop() if len(parts) == 1 else None


def without_part(name: str) -> tuple[str, ...]:
    """Return the words of a name without words for a part: they are equal for the lists train_list and val_list."""
    words = re.findall(rf"{_LETTERS}|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return tuple(word for word in words if not _WORD.fullmatch(word) and word not in WHOLE)
