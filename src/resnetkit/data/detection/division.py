"""Draw validation pictures from pictures with boxes, so that pictures that belong together stay in one part."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.duplicates import alike_numbers
from resnetkit.data.groups import group_by, mark, packed, united, unpacked
from resnetkit.data.looks import look_at
from resnetkit.data.samples import Samples

RULE = (
    "val: of the groups of pictures in the order of the SHA-256 of '<seed>/<relative path>', the first that together "
    "have val_fraction of the pictures and leave each class in train"
)
MOST_LOOKED_AT = 20_000
"""In larger sets alike pictures are not sought, because that takes minutes."""


@dataclass(frozen=True)
class Kept:
    """Which pictures stay together if val is drawn."""

    alike: bool = True
    """Pictures that are the same or alike to the eye."""
    group_by: str | None = None
    """parent, exif-time, or a regular expression for the paths: see `groups.group_by`."""
    drawn: str | None = None
    """The pictures that an earlier division has drawn, as its record says: they are drawn again, without looking."""


@dataclass(frozen=True)
class Drawn:
    """A drawn val."""

    keys: frozenset[str]
    """The keys of its pictures."""
    split: dict[str, Any]
    """What repeats it: a run folder and a model file contain it."""


def draw_val(
    keys: Sequence[str],
    paths: Sequence[Path],
    labels: Sequence[frozenset[int]],
    *,
    fraction: float,
    seed: int,
    kept: Kept,
) -> Drawn:
    """Draw `fraction` of n pictures, or a little less; `labels` are the classes of the objects in each.

    Groups of pictures that belong together are drawn whole, and none that has all pictures of a class.
    """
    record: dict[str, Any] = {"rule": RULE, "seed": seed, "val_fraction": fraction}
    if kept.group_by:
        record["group_by"] = kept.group_by
    if kept.drawn is not None:
        marks = unpacked(kept.drawn)
        return Drawn(frozenset(key for key in keys if mark(key) in marks), record | {"drawn": kept.drawn})
    numbers: list[NDArray[np.int64]] = [np.arange(len(keys))]
    if kept.group_by:
        numbers.append(group_by(kept.group_by, keys, paths, [""] * len(keys)))
    if kept.alike and len(keys) <= MOST_LOOKED_AT:
        pictures = Samples(("",), np.zeros(len(keys), np.int64), paths=tuple(paths))
        numbers.append(alike_numbers(look_at([pictures], workers=2)))
    groups: dict[int, list[int]] = defaultdict(list)
    for place, number in enumerate(united(*numbers).tolist()):
        groups[number].append(place)
    left = Counter(label for one in labels for label in one)
    wanted = round(len(keys) * fraction) if len(keys) > 1 else 0
    chosen: set[str] = set()
    # A hash instead of a random generator: the choice does not depend on other pictures or on NumPy's version.
    for group in sorted(
        groups.values(), key=lambda group: hashlib.sha256(f"{seed}/{keys[group[0]]}".encode()).digest()
    ):
        counts = Counter(label for place in group for label in labels[place])
        fits = len(chosen) + len(group) <= max(wanted, 1)
        if fits and len(group) < len(keys) and all(left[label] > number for label, number in counts.items()):
            left.subtract(counts)
            chosen.update(keys[place] for place in group)
    return Drawn(frozenset(chosen), record | {"drawn": packed(chosen)})
