"""From labelled pictures of a folder or a list to a Dataset: number the classes, draw val where there is none."""

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
    """The path by which pictures are sorted and divided: relative, with slashes, in composed Unicode (NFC)."""
    path: Path
    label: str
    source: str
    """Where its label comes from: a class folder, or a line of a list."""


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
    """Divide the pictures, number the classes, and check that no part has a class that train lacks.

    Raises DataError for such a class, and for a class of HEIC pictures alone where they can't be read; UsageError for a
    `val_fraction` out of range.
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
    # Without train the set is for evaluation, and its own classes are all there is to go by.
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
    """Return the keys of the pictures that become val. A class of one picture keeps it for training."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_class[picture.label].append(picture.key)
    chosen: set[str] = set()
    for keys in by_class.values():
        count = min(max(round(len(keys) * fraction), 1), len(keys) - 1)
        # A hash, not a generator: the choice does not depend on the other pictures' order or on NumPy's version.
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        chosen.update(keys[:count])
    return chosen
