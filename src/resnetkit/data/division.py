"""Make a Dataset from the labelled pictures of a folder or a list: number the classes, and draw a missing val."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.data.reading import Reading
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError

SPLIT_RULE = "val: of every class the val_fraction with the smallest SHA-256 of '<seed>/<relative path>', at least one"


@dataclass(frozen=True)
class Labelled:
    """A picture and its class."""

    key: str
    """The key by which pictures are sorted and divided: the relative path, with slashes, in composed Unicode (NFC)."""
    path: Path
    label: str
    source: str
    """The source of its label, for errors: a class folder, or a line of a list."""


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
) -> Dataset:
    """Number the classes of `parts` (part -> pictures) in sorted order, and return them as a Dataset with this name.

    If there is no val, `val_fraction` of each training class becomes val, chosen by `seed`. `skipped`, `understood` and
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
        chosen = _choose_val(parts["train"], val_fraction, seed)
        parts["val"] = [picture for picture in parts["train"] if picture.key in chosen]
        parts["train"] = [picture for picture in parts["train"] if picture.key not in chosen]
        split = {"rule": SPLIT_RULE, "seed": seed, "val_fraction": val_fraction}
    if kept := reading.recorded():
        split["read_as"] = kept
    # A set without train is for evaluation: its classes are those of all its parts.
    known = parts.get("train") or [picture for pictures in parts.values() for picture in pictures]
    classes = tuple(sorted({picture.label for picture in known}))
    index = {label: i for i, label in enumerate(classes)}
    for part, pictures in parts.items():
        labels = sorted({picture.label for picture in pictures})
        if only := [label for label in labels if label not in index]:
            named = ", ".join(f'"{label}"' for label in only)
            example = next(picture for picture in pictures if picture.label == only[0])
            in_lower = {label.lower(): label for label in classes}
            if all(label.lower() in in_lower for label in only):
                pairs = ", ".join(f'"{in_lower[label.lower()]}" in train, "{label}" in {part}' for label in only)
                raise DataError(
                    f"{name} has the same class names in another case: {pairs}. Write them "
                    f"alike, first {example.source}"
                )
            raise DataError(
                f"{name} has {len(classes)} classes in train but {len(labels)} in {part} (only in {part}: {named}). "
                f"Move or remove {example.source}, or add the class to train"
            )
    samples = {
        part: Samples(
            classes,
            np.array([index[picture.label] for picture in pictures], np.int64),
            paths=tuple(picture.path for picture in pictures),
        )
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
        tuple(understood),
        missing,
    )
    dataset.refuse_unreadable_classes()
    return dataset


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
