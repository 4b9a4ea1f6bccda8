"""Make a Dataset from the labelled pictures of a folder or a list: number the classes, and draw a missing val."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.groups import AlikeNumbers, group_by, mark, packed, united, unpacked
from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError

SPLIT_RULE = "val: of every class the val_fraction with the smallest SHA-256 of '<seed>/<relative path>', at least one"
SEVERAL_RULE = (
    "val: groups of pictures in the order of the SHA-256 of '<seed>/<relative path>', for one label after another, the "
    "rarest first, until it has val_fraction of its pictures, at least one"
)
"""The rule if pictures may have several labels: iterative stratification (Sechidis et al. 2011), with two parts."""
TOGETHER = "; pictures that belong together stay in one part: those in `moved` changed theirs"
"""The end of the rule if groups of pictures are kept together."""
MOST_NAMED = 5
"""Largest number of classes in an error."""


@dataclass(frozen=True)
class Labelled:
    """A picture and its class, or its labels."""

    key: str
    """The key by which pictures are sorted and divided: the relative path, with slashes, in composed Unicode (NFC)."""
    path: Path
    label: str
    """Its class; empty if it may have several labels."""
    source: str
    """The source of its label, for errors: a class folder, or a line of a list."""
    group: str = ""
    """Its value in the column `group_by` of a list; empty without this column."""
    labels: frozenset[str] | None = None
    """Its labels, if pictures may have several or none; None if it has one, `label`."""

    @property
    def all_labels(self) -> frozenset[str]:
        """The labels that it has."""
        return frozenset({self.label}) if self.labels is None else self.labels


@dataclass(frozen=True)
class Keeping:
    """How a drawn val keeps pictures together, besides the groups of `Reading.group_by`."""

    alike: AlikeNumbers | None = None
    """Finds alike pictures; None: they are not sought."""
    moved: str | None = None
    """The record of an earlier division of the same pictures, which is repeated without looking at them."""
    for_folds: bool = False
    """The pictures of train and val will be divided into folds: `Dataset.groups` says which belong together, and it
    does not matter which of them are val."""


NOT_KEPT = Keeping()
"""Alike pictures are not sought."""


def divided(
    name: str,
    parts: Mapping[str, Sequence[Labelled]],
    *,
    val_fraction: float,
    seed: int,
    reading: Reading,
    skipped: Sequence[tuple[Path, str]] = (),
    understood: Sequence[str] = (),
    missing: int = 0,
    keeping: Keeping = NOT_KEPT,
) -> Dataset:
    """Number the classes of `parts` (part -> pictures) in sorted order, and return them as a Dataset with this name.

    If there is no val, `val_fraction` of each training class becomes val, chosen by `seed`; pictures that belong
    together by `reading` or `keeping` stay in one part. If pictures may have several labels, each label has this share
    in val, as far as possible, and labels without a training picture are left out. `skipped`, `understood` and
    `missing` are fields of the result.

    Raises:
        DataError: val or test has a class that train does not have, or all pictures of a class are HEIC and HEIC can't
            be read.
        UsageError: `val_fraction` is not at least 0 and less than 1.
    """
    if not 0 <= val_fraction < 1:
        raise UsageError(f"`val_fraction` is {val_fraction}; it must be at least 0 and less than 1")
    parts = {part: sorted(pictures, key=lambda picture: picture.key) for part, pictures in parts.items() if pictures}
    split: dict[str, Any] = {"rule": "as given"}
    if "train" in parts and "val" not in parts and val_fraction:
        several = parts["train"][0].labels is not None
        choose = _choose_val_of_several if several else _choose_val
        first = choose(parts["train"], val_fraction, seed)
        chosen = first
        if not keeping.for_folds:
            chosen = _kept_together(parts["train"], first, val_fraction, seed, reading=reading, keeping=keeping)
        parts["val"] = [picture for picture in parts["train"] if picture.key in chosen]
        parts["train"] = [picture for picture in parts["train"] if picture.key not in chosen]
        rule = SEVERAL_RULE if several else SPLIT_RULE
        split = {"rule": rule, "seed": seed, "val_fraction": val_fraction}
        if chosen != first:
            split |= {"rule": rule + TOGETHER, "moved": packed(chosen ^ first)}
    elif reading.group_by and "val" in parts and not keeping.for_folds:
        reading.refuse("group_by", why="val is given, not drawn")
    if kept := reading.recorded():
        split["read_as"] = kept
    # A set without train is for evaluation: its classes are those of all its parts.
    known = parts.get("train") or [picture for pictures in parts.values() for picture in pictures]
    classes = tuple(sorted({label for picture in known for label in picture.all_labels}))
    index = {label: i for i, label in enumerate(classes)}
    groups = _groups(parts, reading.group_by) if reading.group_by and keeping.for_folds else {}
    said = list(understood)
    if any(picture.labels is not None for picture in known):
        split["labels"] = "several"
        labels, left_out = _several_numbers(parts, index)
        said += left_out
    else:
        _refuse_other_classes(name, parts, index)
        labels = {part: np.array([index[one.label] for one in pictures], np.int64) for part, pictures in parts.items()}
    samples = {
        part: Samples(classes, labels[part], paths=tuple(picture.path for picture in pictures))
        for part, pictures in parts.items()
        if pictures
    }
    dataset = Dataset(
        name,
        classes,
        samples.get("train"),
        samples.get("val"),
        samples.get("test"),
        split,
        tuple(skipped),
        tuple(said),
        missing,
        groups=groups,
    )
    dataset.refuse_unreadable_classes()
    return dataset


def _refuse_other_classes(name: str, parts: Mapping[str, Sequence[Labelled]], classes: Collection[str]) -> None:
    """Raise DataError if a part has a class that is not in `classes`, those of train."""
    for part, pictures in parts.items():
        labels = sorted({picture.label for picture in pictures})
        if only := [label for label in labels if label not in classes]:
            more = f" and {len(only) - MOST_NAMED:,} more" if len(only) > MOST_NAMED else ""
            named = ", ".join(f'"{label}"' for label in only[:MOST_NAMED]) + more
            example = next(picture for picture in pictures if picture.label == only[0])
            in_lower = {label.lower(): label for label in classes}
            if all(label.lower() in in_lower for label in only):
                pairs = ", ".join(
                    f'"{in_lower[label.lower()]}" in train, "{label}" in {part}' for label in only[:MOST_NAMED]
                )
                raise DataError(
                    f"{name} has the same class names in another case: {pairs}{more}. Write them "
                    f"alike, first {example.source}"
                )
            raise DataError(
                f"{name} has {len(classes)} classes in train but {len(labels)} in {part} (only in {part}: {named}). "
                f"Move or remove {example.source}, or add the class to train"
            )


def _groups(parts: Mapping[str, Sequence[Labelled]], rule: str) -> dict[Path, int]:
    """Return the number of the group of each picture of train and val."""
    pictures = [picture for part in ("train", "val") for picture in parts.get(part, ())]
    keys, paths, columns = zip(*((one.key, one.path, one.group) for one in pictures), strict=True)
    return dict(zip(paths, group_by(rule, keys, paths, columns).tolist(), strict=True))


def _several_numbers(
    parts: Mapping[str, Sequence[Labelled]], index: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Return the labels of each part, 0 or 1 of shape (n, classes), and a phrase on labels that are not in `index`."""
    numbers: dict[str, NDArray[np.int64]] = {}
    others: Counter[str] = Counter()
    for part, pictures in parts.items():
        numbers[part] = np.zeros((len(pictures), len(index)), np.int64)
        for row, picture in zip(numbers[part], pictures, strict=True):
            row[[index[label] for label in picture.all_labels if label in index]] = 1
            others.update(picture.all_labels - index.keys())
    if not others:
        return numbers, []
    named = ", ".join(f"{label!r} ({count})" for label, count in sorted(others.items())[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return numbers, [f"labels that no training picture has are left out: {named}{more}"]


def _choose_val_of_several(pictures: Sequence[Labelled], fraction: float, seed: int) -> set[str]:
    """Return the keys of the pictures that become val, where pictures may have several labels."""
    return _choose_stratified(pictures, np.arange(len(pictures)), fraction, seed)


def _choose_stratified(
    pictures: Sequence[Labelled], numbers: NDArray[np.int64], fraction: float, seed: int
) -> set[str]:
    """Return the keys of whole groups that become val, so that each label has its share of val: see SEVERAL_RULE.

    Pictures without a label count as one more label. A group is not taken if that takes the last picture of a label
    from train, or brings the labels, taken together, further from their shares.
    """
    groups: dict[int, list[Labelled]] = defaultdict(list)
    for number, picture in zip(numbers.tolist(), pictures, strict=True):
        groups[number].append(picture)
    ordered = sorted(groups.values(), key=lambda group: hashlib.sha256(f"{seed}/{group[0].key}".encode()).digest())
    counted = [(group, Counter(label for one in group for label in one.all_labels or {""})) for group in ordered]
    totals: Counter[str] = Counter()
    with_label: dict[str, list[int]] = defaultdict(list)
    for place, (_, counts) in enumerate(counted):
        totals.update(counts)
        for label in counts:
            with_label[label].append(place)
    wanted = {label: min(max(round(total * fraction), 1), total - 1) for label, total in totals.items()}
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for strict in (True, False):  # then labels without a picture in val get one, as far as train keeps one
        for label in sorted(totals, key=lambda label: (totals[label], label)):
            for place in with_label[label]:
                if taken[label] >= (wanted[label] if strict else min(wanted[label], 1)):
                    break
                counts = counted[place][1]
                whole = any(taken[one] + number >= totals[one] for one, number in counts.items())
                nearer = sum(
                    abs(wanted[one] - taken[one] - number) - abs(wanted[one] - taken[one])
                    for one, number in counts.items()
                )
                if place not in chosen and not whole and (nearer < 0 or not strict):
                    chosen.add(place)
                    taken.update(counts)
    return {picture.key for place in chosen for picture in counted[place][0]}


def _choose_val(pictures: Sequence[Labelled], fraction: float, seed: int) -> set[str]:
    """Return the keys of the pictures that become val. If a class has only one picture, it stays in train."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture.key)
    chosen: set[str] = set()
    for keys in by_class.values():
        count = min(max(round(len(keys) * fraction), 1), len(keys) - 1)
        # With a hash instead of a random generator, the choice does not depend on other pictures or on NumPy's version.
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        chosen.update(keys[:count])
    return chosen


def _kept_together(
    pictures: Sequence[Labelled],
    chosen: Set[str],
    fraction: float,
    seed: int,
    *,
    reading: Reading,
    keeping: Keeping,
) -> set[str]:
    """Return the keys that become val if pictures that belong together stay in one part.

    `chosen` are the keys that become val if every picture is alone. They are the result if no group has two pictures.
    """
    if keeping.moved is not None:
        moved = unpacked(keeping.moved)
        return {picture.key for picture in pictures if (picture.key in chosen) != (mark(picture.key) in moved)}
    numbers: list[NDArray[np.int64]] = []
    keys, paths = [picture.key for picture in pictures], [picture.path for picture in pictures]
    if reading.group_by:
        numbers.append(group_by(reading.group_by, keys, paths, [picture.group for picture in pictures]))
    if keeping.alike:
        alike = _choose_groups(pictures, united(*numbers, keeping.alike(paths)), fraction, seed)
        # If nearly all pictures are alike, as those of a fixed camera, a whole group would leave no val.
        if 2 * len(_classes_of(pictures, alike)) >= len(_classes_of(pictures, chosen)):
            return alike
    return _choose_groups(pictures, united(*numbers), fraction, seed) if numbers else set(chosen)


def _classes_of(pictures: Sequence[Labelled], chosen: Set[str]) -> set[str]:
    return {label for picture in pictures if picture.key in chosen for label in picture.all_labels}


def _choose_groups(pictures: Sequence[Labelled], numbers: NDArray[np.int64], fraction: float, seed: int) -> set[str]:
    """Return the keys of whole groups that become val, so that the shares of the classes are as near as possible.

    Groups come in the order of the hash of their first key. A group is taken if that brings the classes nearer to the
    number that `_choose_val` would take. A class with all its pictures in one group stays in train.
    """
    if pictures and pictures[0].labels is not None:
        return _choose_stratified(pictures, numbers, fraction, seed)
    groups: dict[int, list[Labelled]] = defaultdict(list)
    for number, picture in zip(numbers.tolist(), pictures, strict=True):
        groups[number].append(picture)
    totals = Counter(picture.label for picture in pictures)
    wanted = {label: min(max(round(total * fraction), 1), total - 1) for label, total in totals.items()}
    taken: Counter[str] = Counter()
    chosen: set[str] = set()

    def take(group: Sequence[Labelled], counts: Mapping[str, int]) -> None:
        taken.update(counts)
        chosen.update(picture.key for picture in group)

    ordered = sorted(groups.values(), key=lambda group: hashlib.sha256(f"{seed}/{group[0].key}".encode()).digest())
    counted = [(group, Counter(picture.label for picture in group)) for group in ordered]
    for group, counts in counted:
        whole = any(taken[label] + number >= totals[label] for label, number in counts.items())
        nearer = sum(
            abs(wanted[label] - taken[label] - number) - abs(wanted[label] - taken[label])
            for label, number in counts.items()
        )
        if not whole and nearer < 0:
            take(group, counts)
    of_label: dict[str, list[tuple[list[Labelled], Counter[str]]]] = defaultdict(list)
    for group, counts in counted:
        for label in counts:
            of_label[label].append((group, counts))
    for label in sorted(totals):
        if taken[label] or not wanted[label]:
            continue
        free = [
            (group, counts)
            for group, counts in of_label[label]
            if all(taken[one] + number < totals[one] for one, number in counts.items())
        ]
        if free:
            take(*min(free, key=lambda one: len(one[0])))
    return chosen
