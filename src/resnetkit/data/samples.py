"""Labelled pictures, in memory or on disk: the result of every reader of data, and the input of the loader."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.decoding.heif import HEIF_SUFFIXES, can_read_heif, is_heif
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.imagenet import are_imagenet, wnid_places
from resnetkit.display import MOST_ROWS, count, cut, line, table
from resnetkit.errors import DataError

NO_LABEL = "no label"
"""Stands for the labels of a picture that has none."""


@dataclass(frozen=True)
class Samples:
    """n labelled pictures, with one label each, or with several or none (multi-label).

    Exactly one of `images` and `paths` is given; otherwise, ValueError is raised.

    Raises DataError if the numbers of pictures and labels differ, or a label is out of range.
    """

    classes: tuple[str, ...]
    """Class names; a label is an index into this tuple."""
    labels: NDArray[np.int64]
    """int64 (n,), values 0 to len(classes) - 1. If pictures may have several labels or none: int64 (n, len(classes)),
    1 where the picture has the label, else 0."""
    images: NDArray[np.uint8] | None = None
    """Pictures in memory: uint8 (n, height, width, channels), 0 to 255."""
    paths: tuple[Path, ...] | None = None
    """Pictures on disk: n files."""

    def __post_init__(self) -> None:
        if (self.images is None) == (self.paths is None):
            raise ValueError("give either images or paths")
        pictures = len(self.images) if self.images is not None else len(self.paths or ())
        if pictures != len(self.labels):
            raise DataError(f"{pictures} pictures but {len(self.labels)} labels; every picture needs one")
        if self.several:
            if self.labels.shape[1] != len(self.classes) or not np.isin(self.labels, (0, 1)).all():
                raise DataError(f"labels are {self.labels.shape}; expected 0 and 1, (pictures, {len(self.classes)})")
        elif len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(
                f"labels go from {self.labels.min()} to {self.labels.max()}, but there are {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        where = "on disk" if self.images is None else f"in memory, {'×'.join(map(str, self.images.shape[1:]))}"
        return line(type(self), f"{count(len(self), 'picture')} of {count(len(self.classes), 'class')}", where)

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def per_class(self) -> NDArray[np.int64]:
        """int64 (classes,): the number of pictures with each label."""
        if self.several:
            return self.labels.sum(axis=0)
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def strata(self) -> NDArray[np.int64]:
        """int64 (n,): the label of each picture; with several, a number for each set of labels that occurs."""
        if not self.several:
            return self.labels
        return np.unique(self.labels, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def label(self, index: int) -> str:
        """Return the label of a picture; several are joined by commas, and no label is "no label"."""
        if not self.several:
            return self.classes[self.labels[index]]
        return ", ".join(self.classes[i] for i in np.flatnonzero(self.labels[index])) or NO_LABEL

    def place(self, index: int) -> str:
        """Return the name of a picture for people: its path, or its index if it is in memory."""
        return str(index) if self.paths is None else str(self.paths[index])

    def path(self, index: int) -> Path | None:
        """Return the file of a picture; None for pictures in memory."""
        return None if self.paths is None else self.paths[index]

    def source(self, index: int) -> Path | Image.Image:
        """Return a picture in a form that `open_picture` accepts: its file, or its pixels as a Pillow image."""
        if self.images is None:
            return (self.paths or ())[index]
        pixels = self.images[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[-1] == 1 else pixels)

    def subset(self, indices: NDArray[np.int64]) -> "Samples":
        """Return the samples at `indices`, int64 (m,), in this order."""
        return replace(
            self,
            labels=self.labels[indices],
            images=None if self.images is None else self.images[indices],
            paths=None if self.paths is None else tuple(self.paths[i] for i in indices),
        )

    def as_classes(self, classes: tuple[str, ...]) -> "Samples":
        """Return the same samples, with labels that are indices into `classes`.

        Classes are matched by name, in any order. If all names are numbers ("07" is 7) and no name is in `classes`, the
        numbers are indices into `classes`. In this case every index must occur once; only for ImageNet's classes, some
        may be missing: see `numbers_imagenet`. WordNet numbers such as n01440764 stand for ImageNet's classes.

        Raises DataError for a class that is not in `classes`.
        """
        if self.classes == classes:
            return self
        place = {name: index for index, name in enumerate(classes)}
        numbered = all(name.isascii() and name.isdigit() for name in self.classes)
        if numbered and not place.keys() & set(self.classes):
            place = {name: int(name) for name in self.classes}
            whole = sorted(place.values()) == list(range(len(classes)))
            if not whole and not numbers_imagenet(self.classes, classes):
                raise DataError(
                    f"labels are numbers ({_some(self.classes)}), and {_how_many(place, len(classes))}, so they "
                    "may not be the numbers of the model's classes; write the class names, one per line, into "
                    "classes.txt next to the list, or rename the folders to them. The model's classes are "
                    f"{_some(classes)}"
                )
        if not place.keys() & set(self.classes) and are_imagenet(classes):
            place = dict(wnid_places())
        unknown = [name for name in self.classes if name not in place]
        if len(unknown) == len(self.classes):
            raise DataError(
                f"the model has other classes ({_some(classes)}) than these pictures ({_some(unknown)}). Give "
                "a model with these classes, or train one: resnetkit train DATA --init MODEL"
            )
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(self.classes)} classes are not the model's: {_some(unknown)}; the model has "
                f"{_some(classes)}. Rename the classes that mean the same, or train a model with these classes: "
                "resnetkit train DATA --init MODEL"
            )
        places = np.array([place[name] for name in self.classes], np.int64)
        if not self.several:
            return replace(self, classes=classes, labels=places[self.labels])
        labels = np.zeros((len(self), len(classes)), np.int64)
        labels[:, places] = self.labels
        return replace(self, classes=classes, labels=labels)

    def with_several(self) -> "Samples":
        """Return the same samples as ones that may have several labels, of which each has one."""
        if self.several:
            return self
        labels = np.zeros((len(self), len(self.classes)), np.int64)
        labels[np.arange(len(self)), self.labels] = 1
        return replace(self, labels=labels)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change if any class name, label, pixel, file name or file size changes."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        if self.images is not None:
            digest.update(np.ascontiguousarray(self.images).data)
        for path in self.paths or ():
            digest.update(os.fsencode(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\0"))
        return digest.hexdigest()[:16]


def numbers_imagenet(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether `classes` are ImageNet's 1,000, and `names` are different numbers from 0 to 999, not necessarily all."""
    numbers = all(name.isascii() and name.isdigit() for name in names) and not {*names} & {*classes}
    return numbers and are_imagenet(classes) and len({*map(int, names)}) == len(names) and max(map(int, names)) < 1000


def _how_many(place: Mapping[str, int], count: int) -> str:
    """Return how the numbers in `place` differ from 0 to `count` - 1, for an error."""
    numbers = {*place.values()}
    if over := [number for number in numbers if number >= count]:
        return f"go up to {max(over)}, where the model has {count} classes"
    return f"only {len(numbers)} of {count} occur"


@dataclass(frozen=True)
class Dataset:
    """A data set, divided into parts. A part that it does not have is None."""

    name: str
    """The name that the user gave: cifar10, cifar100, or the path of a folder or CSV file."""
    classes: tuple[str, ...]
    train: Samples | None
    val: Samples | None
    """Validation pictures. They are used to choose recipes, checkpoints and the end of training."""
    test: Samples | None
    """Test pictures. They are never used to choose anything."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """How train and val were divided, with all values to repeat it. The run folder and the model file contain it."""
    skipped: tuple[tuple[Path, str], ...] = ()
    """Files that were left out, each with the reason."""
    understood: tuple[str, ...] = ()
    """How an unusual layout or list was read, one phrase each."""
    missing: int = 0
    """Number of skipped files that are in a list but do not exist."""
    groups: Mapping[Path, int] = field(default_factory=dict)
    """For folds: the number of the group of each picture of train and val, if `group_by` makes groups."""

    def __repr__(self) -> str:
        parts = (f"{name} {len(samples):,}" for name, samples in self.parts.items())
        left_out = f"{len(self.skipped):,} left out" if self.skipped else ""
        return line(type(self), repr(cut(self.name, 60)), count(len(self.classes), "class"), *parts, left_out)

    def _repr_html_(self) -> str:
        counts = [part.per_class.tolist() for part in self.parts.values()]
        rows = [(name, *(f"{n:,}" for n in row)) for name, *row in zip(self.classes, *counts, strict=True)]
        more = f"<p>and {len(rows) - MOST_ROWS:,} more classes</p>" if len(rows) > MOST_ROWS else ""
        return f"<p>{escape(repr(self))}</p>{table(('class', *self.parts), rows[:MOST_ROWS])}{more}"

    @property
    def parts(self) -> dict[str, Samples]:
        """The parts that are not None, by name, in the order train, val, test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: samples for name, samples in parts.items() if samples is not None}

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels, or none."""
        return any(part.several for part in self.parts.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts that limit the meaning of an error measured on the data set, one phrase each.

        They are: how the layout was read (`understood`), missing files, classes with nearly equal names, that val was
        drawn from train, classes with one picture, classes without pictures in val or test, and the HEIC pictures of
        each class if they can't be read.
        """
        notes = list(self.understood)
        if self.missing:
            notes.append(f"{self.missing:,} of {self.missing + sum(map(len, self.parts.values())):,} files are missing")
        for names in self._alike():
            only = "case" if len({name.lower() for name in names}) == 1 else "case, spaces and dashes"
            notes.append(f"the classes {' and '.join(map(repr, names))} differ only in {only}")
        if self.val is not None and {"val_fraction", "train_split"} & self.split.keys():
            notes.append(
                f"val is drawn: {len(self.val):,} of the {len(self.val) + len(self.train or ()):,} training pictures, "
                f"the same ones each time (seed {self.split.get('seed')})"
            )
        counts = {part: samples.per_class for part, samples in self.parts.items()}
        totals = np.sum(list(counts.values()), axis=0)
        if self.several:
            without = sum(int((part.labels.sum(axis=1) == 0).sum()) for part in self.parts.values())
            notes += [f"{count(without, 'picture')} without a label"] if without else []
        if alone := [name for name, total in zip(self.classes, totals, strict=True) if total == 1]:
            notes.append(
                f"only one picture of {_some(alone)}, which can be used for training or for the error, but not for both"
            )
        for part in ("val", "test"):
            if part not in counts:
                continue
            there, lacking = (
                [self.classes[i] for i in np.flatnonzero(found)] for found in (counts[part], counts[part] == 0)
            )
            if lacking:
                only = f", only of {there[0]!r}" if len(there) == 1 else ""
                notes.append(
                    f"{part} has no picture of {_some(lacking)}{only}; its error does not include the missing classes"
                )
        if not can_read_heif() and (lost := self._heif_of_classes()):
            few = ", ".join(f"{count:,} of {total:,} of {name!r}" for name, (count, total) in list(lost.items())[:3])
            more = f" and some of {len(lost) - 3} more classes" if len(lost) > 3 else ""
            notes.append(f"HEIC pictures can't be read here, {few}{more}: pip install 'resnetkit[heic]'")
        return tuple(notes)

    def _alike(self) -> list[list[str]]:
        """Return the groups of class names that differ only in letter case, spaces, dashes and underscores."""
        groups: dict[str, list[str]] = {}
        for name in self.classes:
            groups.setdefault(re.sub(r"[\s_-]+", "", name.lower()) or name, []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def refuse_unreadable_classes(self) -> None:
        """Raise DataError if all pictures of a class are HEIC and pillow-heif, which reads them, is not installed."""
        if can_read_heif() or not self.parts or self.several:
            return
        if not (found := self._heif_of_classes()):
            return
        all_of = joined(list(self.parts.values()))
        paths: dict[str, list[Path]] = {}
        for path, label in zip(all_of.paths or (), all_of.labels.tolist(), strict=True):
            paths.setdefault(self.classes[label], []).append(path)
        for name, (heif, total) in found.items():
            if heif == total and all(map(_begins_as_heif, paths[name])):
                raise DataError(
                    f"{self.name}: all {total:,} pictures of {name!r} are HEIC, which needs pillow-heif; "
                    "pip install 'resnetkit[heic]'"
                )

    def _heif_of_classes(self) -> dict[str, list[int]]:
        """Return [HEIC files, pictures] for each class with HEIC files; these are recognised by their suffix."""
        all_of = joined(list(self.parts.values()))
        is_heif = np.array([path.suffix.lower() in HEIF_SUFFIXES for path in all_of.paths or ()], bool)
        if not is_heif.any():
            return {}
        counts = all_of.subset(np.flatnonzero(is_heif)).per_class.tolist()
        totals = all_of.per_class.tolist()
        return {name: both for name, *both in zip(self.classes, counts, totals, strict=True) if both[0]}

    def part(self, name: str) -> tuple[str, Samples]:
        """Return the name and the samples of a part: train, val, test, or all (the three together).

        "auto" is test, if there is one; else val, if it was not drawn from train; else all. To choose pictures that
        did not train a given model, use `choose_part` in resnetkit.data.parts.

        Raises DataError for a part that the data set does not have.
        """
        parts = self.parts
        if name == "auto":
            own_val = "val" in parts and not {"val_fraction", "train_split"} & self.split.keys()
            name = "test" if "test" in parts else "val" if own_val else "all"
        if name == "all":
            return name, joined(list(parts.values()))
        if name not in parts:
            raise DataError(f"{self.name} has no {name} pictures; it has {', '.join(parts)}")
        return name, parts[name]


def _begins_as_heif(path: Path) -> bool:
    """Whether a file is HEIC, by its first bytes; phones also write JPEG files with the suffix .heic."""
    try:
        with path.open("rb", buffering=0) as file:
            return is_heif(file.read(256))
    except OSError:
        return False


def _some(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def joined(parts: Sequence[Samples]) -> Samples:
    """Return the parts of a data set as one, in their order."""
    images = [part.images for part in parts if part.images is not None]
    return replace(
        parts[0],
        labels=np.concatenate([part.labels for part in parts]),
        images=np.concatenate(images) if images else None,
        paths=None if images else tuple(path for part in parts for path in part.paths or ()),
    )


def write_pictures(samples: Samples, folder: Path, *, count: int) -> tuple[list[Path], dict[Path, str]]:
    """Write at most `count` samples to `folder` as PNG, from each class in turn. The names are like 0003-frog.png.

    Returns the files that were written, and the pictures that can't be read, each with the reason. An unreadable
    picture is replaced by the next one. Raises DataError if `folder` can't be written or no picture can be read.
    """
    written: list[Path] = []
    unreadable: dict[Path, str] = {}
    for i in _in_turn(samples.strata):
        if len(written) == count:
            break
        source = samples.source(i)
        try:
            picture = source if isinstance(source, Image.Image) else open_picture(source)
        except DataError as error:
            unreadable[Path(samples.place(i))] = error.reason
            continue
        name = cut(samples.label(i).replace("/", "-"), 100)
        written.append(folder / f"{i:04d}-{name}.png")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(written[-1])
        except OSError as error:
            raise DataError(f"{written[-1]} can't be written: {error.strerror or error}") from error
    if not written:
        raise DataError(f"not one of the {len(samples)} pictures can be read; see resnetkit data check")
    return written, unreadable


def _in_turn(labels: NDArray[np.int64]) -> list[int]:
    """Return the indices of the first sample of each class, then of the second, and so on."""
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    turn = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return by_class[np.argsort(turn, kind="stable")].tolist()
