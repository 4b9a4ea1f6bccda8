"""How to read a folder or a list, as far as a person states it; and the usual names of the parts of a set."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from resnetkit.errors import UsageError
from resnetkit.files import expanded

PARTS = ("train", "val", "test")
LISTS = frozenset({".csv", ".tsv", ".tab", ".txt", ".lst", ".list", ".jsonl", ".ndjson"})
"""Suffixes of lists, in lower case."""
CLASSES_ONLY = "none"
"""Value of `parts`: all folders are classes, whatever their names."""
WORDS = {
    "train": ("train", "training", "trn", "训练", "训练集"),
    "val": ("val", "valid", "validation", "dev", "验证", "验证集"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout", "测试", "测试集"),
}
"""Names of the parts. Pictures for evaluation count as test: nothing is ever chosen by them."""
WHOLE = {"tr": "train", "va": "val", "te": "test"}
"""Names of parts that are no part of a longer name."""
_LETTERS = r"[a-z]+|[\u4e00-\u9fff]+"
_PART = {word: part for part, words in WORDS.items() for word in words}
_WORD = re.compile(rf"({'|'.join(_PART)})(?:sets?|data|images?|imgs?|pics?|split|folder|dir|list)?")


class UnfitError(UsageError):
    """Something stated that does not fit the data: a folder or a column that is not there."""


@dataclass(frozen=True)
class Reading:
    """What a person states of the layout of a folder or a list; whatever is unset is found out."""

    parts: str | None = None
    """Folders of the parts within the data, as train=DIR,val=DIR,test=DIR; or none: all folders are classes, whatever
    their names, and lists beside the given one are not read."""
    images: str | None = None
    """Of a list: the folder that its paths are relative to; unset: the folder of the list."""
    path_column: str | None = None
    """Of a list: the column of the paths, by its name or its number from 1."""
    label_column: str | None = None
    """Of a list: the column of the classes."""
    split_column: str | None = None
    """Of a list: the column of the parts."""

    def given(self) -> dict[str, str]:
        """What is set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def recorded(self) -> dict[str, str]:
        """What is set and does not depend on where the data lies: a model file records it."""
        return {name: value for name, value in self.given().items() if name != "images"}

    def settled(self) -> "Reading":
        """The same reading with an absolute path, for a process that runs in another folder."""
        return replace(self, images=str(expanded(self.images).resolve())) if self.images else self

    def refuse(self, *names: str, why: str) -> None:
        """Raise UnfitError where one of the named fields is set; `why` is the reason."""
        for name in names:
            if name in self.given():
                raise UnfitError(f"`{name}` has no use here: {why}; leave it out")

    @property
    def part_folders(self) -> list[tuple[str, Path]] | None:
        """Each part with its folder, as `parts` names them; None where it names none."""
        if self.parts is None or self.parts == CLASSES_ONLY:
            return None
        pieces = re.split(r"(?:^|,)(train|val|test)=", self.parts)
        found = list(zip(pieces[1::2], pieces[2::2], strict=True))
        if pieces[0] or not found or not all(folder for _, folder in found):
            raise UsageError(f"`parts` is {self.parts!r}; give train=DIR,val=DIR,test=DIR, or some of them, or none")
        return [(part, expanded(folder)) for part, folder in found]


NOTHING = Reading()
"""A reading that states nothing: everything is found out."""


def reading_of(values: Mapping[str, Any]) -> Reading:
    """Make a reading from those of `values` that are its fields and text; others are ignored."""
    return Reading(**{name: values[name] for name in asdict(NOTHING) if isinstance(values.get(name), str)})


def part_of(name: str) -> str | None:
    """The part that a name stands for: train, val or test; None where its words name none or several.

    Letter case does not matter: Training, test_set, seg_train, imagenet-val, PrivateTest, tr, 训练.
    """
    if whole := WHOLE.get(name.strip().lower()):
        return whole
    words = re.findall(_LETTERS, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    parts = {_PART[found[1]] for word in words if (found := _WORD.fullmatch(word))}
    return parts.pop() if len(parts) == 1 else None


def without_part(name: str) -> tuple[str, ...]:
    """The words of a name but those for a part. Lists that belong together have the same: train_list and val_list."""
    words = re.findall(rf"{_LETTERS}|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return tuple(word for word in words if not _WORD.fullmatch(word) and word not in WHOLE)
