"""Divide the pictures of a data set into folds: each picture validates once and trains in all other folds."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.groups import AlikeNumbers, united
from resnetkit.data.samples import Dataset, Samples, joined
from resnetkit.errors import DataError, UsageError

FOLD_RULE = (
    "fold: groups of pictures that belong together, the largest first, then in the order of the SHA-256 of "
    "'<seed>/<folder>/<file>', each into the fold with the fewest pictures of its class, of those the one with the "
    "fewest pictures"
)


def fold_datasets(dataset: Dataset, folds: int, *, seed: int, alike_of: AlikeNumbers | None = None) -> list[Dataset]:
    """Return one data set per fold: the fold is its val, and the rest of train and val together its train.

    `test` stays as it is. Pictures of one of `Dataset.groups` come into the same fold, and so do those that `alike_of`
    finds to be the same or alike, so that no model is measured on a picture that it has nearly seen. Classes are in
    each fold in the same proportion, as far as their numbers and these groups allow it. The result depends on the seed,
    the pictures and the names of their files, not on where they are.

    Raises UsageError for fewer than two folds, for more folds than pictures, and for more than groups; DataError if
    there are no training pictures.
    """
    if folds < 2:
        raise UsageError(f"`folds` is {folds}; it must be at least 2")
    parts = [part for part in (dataset.train, dataset.val) if part is not None and len(part)]
    if not parts:
        raise DataError(f"{dataset.name} has no training pictures; folds are made of them")
    pool = joined(parts)
    if folds > len(pool):
        raise UsageError(f"`folds` is {folds}, but {dataset.name} has {len(pool):,} training pictures")
    groups = _together(pool, dataset, folds, alike_of)
    fold_of = assign_folds(pool.strata, _keys(pool), folds, seed=seed, groups=groups.tolist())
    split: dict[str, Any] = {"rule": FOLD_RULE, "seed": seed, "folds": folds}
    if "read_as" in dataset.split:
        # The model's data are not opened with these groups again: the division is that of the folds.
        split["read_as"] = {name: value for name, value in dataset.split["read_as"].items() if name != "group_by"}
    if dataset.groups:
        split["group_by"] = dataset.split["read_as"]["group_by"]
    if dataset.several:
        split["labels"] = "several"
    return [
        replace(
            dataset,
            train=pool.subset(np.flatnonzero(fold_of != fold)),
            val=pool.subset(np.flatnonzero(fold_of == fold)),
            split={**split, "fold": fold + 1},
        )
        for fold in range(folds)
    ]


def _together(pool: Samples, dataset: Dataset, folds: int, alike_of: AlikeNumbers | None) -> NDArray[np.int64]:
    """Return a number for each picture, int64 (n,): equal for pictures that come into the same fold.

    Raises UsageError if there are fewer groups than folds.
    """
    numbers = [np.arange(len(pool))]
    if dataset.groups:
        numbers.append(np.array([dataset.groups[path] for path in pool.paths or ()]))
        if (groups := len(np.unique(numbers[-1]))) < folds:
            raise UsageError(f"`folds` is {folds}, but `group_by` makes {groups:,} groups; give fewer folds")
    if alike_of is not None and pool.paths is not None:
        numbers.append(alike_of(pool.paths))
    groups = united(*numbers)
    if (left := len(np.unique(groups))) < folds:
        raise UsageError(
            f"`folds` is {folds}, but the pictures are only {left:,} groups of alike ones; give fewer folds, or "
            "`group_alike` false"
        )
    return groups


def assign_folds(
    labels: NDArray[np.int64],
    keys: Sequence[str],
    folds: int,
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.int64]:
    """Return the fold, from 0, of each picture: int64 (n,).

    `keys` are the names that decide the order. Pictures of the same group, such as one patient's, come into the same
    fold; without `groups`, each picture is its own. Larger groups are placed first.
    """
    of_group: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups if groups is not None else range(len(labels))):
        of_group.setdefault(group, []).append(place)

    def order(places: list[int]) -> tuple[int, bytes]:
        first = min(keys[place] for place in places)
        return -len(places), hashlib.sha256(f"{seed}/{first}".encode("utf-8", "surrogateescape")).digest()

    fold_of = np.zeros(len(labels), np.int64)
    counts = np.zeros((folds, int(labels.max()) + 1 if len(labels) else 0), np.int64)
    for places in sorted(of_group.values(), key=order):
        own = np.bincount(labels[places], minlength=counts.shape[1])
        most = int(own.argmax())
        fold = int(np.lexsort((counts.sum(1), counts[:, most]))[0])
        counts[fold] += own
        fold_of[places] = fold
    return fold_of


def _keys(pool: Samples) -> list[str]:
    """Return names that do not change when the data set moves; the number, for pictures in memory."""
    if pool.paths is None:
        return [str(index) for index in range(len(pool))]
    return [f"{path.parent.name}/{path.name}" for path in pool.paths]
