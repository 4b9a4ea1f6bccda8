"""Shortcuts: how well labels can be told from facts that should not matter, such as sizes, cameras and backgrounds.

A network learns whatever separates the classes. If one class has other files, another camera or another background
than the rest, the error on such data says little about other pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

MARGIN_PERCENT = 10.0
"""Smallest gain over chance, in percentage points, that is a warning."""
DEVIATIONS = 3.0
"""The gain must be above the margin by so many standard errors, so that small sets give no false alarm."""
FOLDS = 5
MOST_PICTURES = 20_000
"""Of larger sets, so many pictures are drawn, by a fixed seed."""
MOST_LABELS = 20
"""Of pictures with several labels, so many labels are told from the facts, the most frequent ones."""
BINS = 8
"""Number of quantile bins of a numeric fact."""
SCORES_AT_ONCE = 2**22
"""Scores of classes that are computed together; with many classes, that is few pictures."""
GRID = 8
"""Height and width of the colour thumbnail, in pixels."""

Table = NDArray[np.float64]
"""Facts of n pictures: float64 (n, facts)."""


@dataclass(frozen=True)
class Shortcut:
    """A fact that tells the label better than chance does."""

    source: str
    """The fact."""
    accuracy_percent: float
    """Share of right labels of a small classifier that sees only this fact, by cross-validation."""
    chance_percent: float
    """Share of the most frequent class, which is right for a classifier that sees nothing."""


class Facts:
    """Facts of n pictures, some 210 bytes each, without the picture's content."""

    def __init__(self, pictures: int) -> None:
        """Make room for so many pictures."""
        self.known = np.zeros(pictures, bool)
        """bool (n,): whether the picture could be read."""
        self.numbers = np.zeros((pictures, 3), np.float32)
        """float32 (n, 3): size of the file in bytes (0 in memory), width and height in pixels."""
        self.kinds = np.zeros((pictures, 2), np.int32)
        """int32 (n, 2): numbers of the file's format and of its camera; see `number_of`."""
        self.colours = np.zeros((pictures, GRID, GRID, 3), np.uint8)
        """uint8 (n, GRID, GRID, 3): mean colours of the picture's GRID × GRID cells."""
        self.edges = np.zeros((pictures, 4, 3), np.uint8)
        """uint8 (n, 4, 3): mean colours of the outermost pixels at the top, bottom, left and right."""
        self._names: dict[str, int] = {}

    def number_of(self, name: str) -> int:
        """Return the number that stands for the name of a format or camera."""
        return self._names.setdefault(name, len(self._names))

    def taken(self, order: NDArray[np.int64]) -> "Facts":
        """Return the facts of the pictures at these indices, int64 (m,), in this order."""
        facts = Facts(0)
        facts.known, facts.numbers, facts.kinds = self.known[order], self.numbers[order], self.kinds[order]
        facts.colours, facts.edges, facts._names = self.colours[order], self.edges[order], self._names
        return facts


def find_shortcuts(
    facts: Facts, labels: NDArray[np.int64], groups: NDArray[np.int64], *, names: Sequence[str] = ()
) -> tuple[Shortcut, ...]:
    """Return the facts that tell the labels, int64 (n,), better than chance by more than MARGIN_PERCENT.

    If pictures have several labels, int64 (n, classes) with these `names`, each of the MOST_LABELS most frequent ones
    is told by itself, and named in `Shortcut.source`.
    `groups`, int64 (n,), are equal for pictures that must not be on both sides of the cross-validation, such as copies.
    Facts alone and together are classified by naive Bayes on quantile bins, colours by ridge regression.
    """
    if labels.ndim == 2:
        frequent = np.argsort(-labels.sum(axis=0), kind="stable")[:MOST_LABELS]
        told = [
            replace(one, source=f"{one.source}, whether {names[label]!r}")
            for label in frequent.tolist()
            for one in find_shortcuts(facts, labels[:, label], groups)
        ]
        return tuple(sorted(told, key=lambda one: -one.accuracy_percent))
    chosen = np.flatnonzero(facts.known)
    if len(chosen) > MOST_PICTURES:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:MOST_PICTURES])
    counts = np.bincount(labels[chosen]) if len(chosen) else np.zeros(1, int)
    if (counts > 0).sum() < 2:
        return ()
    chance = float(counts.max() / counts.sum())
    folds, independent = _folds(groups[chosen]), len(np.unique(groups[chosen]))
    _, known = np.unique(labels[chosen], return_inverse=True)
    found = []
    for source, (classify, table) in _tables(facts, chosen).items():
        right = _cross_validated(classify, table, known.reshape(-1), folds)
        error = sqrt(max(right * (1 - right), chance * (1 - chance)) / independent)
        if right - DEVIATIONS * error > chance + MARGIN_PERCENT / 100:
            found.append(Shortcut(source, round(100 * right, 1), round(100 * chance, 1)))
    return tuple(sorted(found, key=lambda one: -one.accuracy_percent))


Classify = Callable[[Table, NDArray[np.int64], Table, int], NDArray[np.int64]]
"""Takes facts and labels of training pictures, facts of others, and the number of classes; returns labels."""


def _tables(facts: Facts, chosen: NDArray[np.int64]) -> Mapping[str, tuple[Classify, Table]]:
    """Return the facts by name, each with its classifier; facts that are equal for all pictures are left out."""
    size, width, height = facts.numbers[chosen].astype(np.float64).T
    kind, camera = facts.kinds[chosen].T
    pixels = np.maximum(width * height, 1)
    file = np.stack([size, size / pixels], axis=1)
    picture = np.stack([width, height, width / np.maximum(height, 1)], axis=1)
    colours = facts.colours[chosen].astype(np.float64)
    ring = np.ones((GRID, GRID), bool)
    ring[1:-1, 1:-1] = False
    tables: dict[str, tuple[Classify, Table]] = {
        "file size": (bayes, file),
        "picture size": (bayes, picture),
        "format": (kinds, kind[:, None].astype(np.float64)),
        "EXIF camera": (kinds, camera[:, None].astype(np.float64)),
        "border colour": (ridge, facts.edges[chosen].reshape(len(chosen), -1).astype(np.float64)),
        "background": (ridge, colours[:, ring].reshape(len(chosen), -1)),
    }
    varied = {name: both for name, both in tables.items() if (both[1] != both[1][:1]).any()}
    metadata = [name for name in varied if varied[name][0] is not ridge]
    if len(metadata) > 1:
        varied["file and camera together"] = (bayes, np.concatenate([varied[name][1] for name in metadata], axis=1))
    return varied


def _folds(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the fold of each picture, int64 (n,): one for all pictures of a group."""
    names, numbers = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % FOLDS)[numbers.reshape(-1)]


def _cross_validated(classify: Classify, table: Table, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> float:
    """Return the share of pictures whose label is told right from the other folds."""
    right = 0
    classes = int(labels.max()) + 1
    for fold in range(FOLDS):
        held = folds == fold
        if held.any() and not held.all():
            told = classify(table[~held], labels[~held], table[held], classes)
            right += int((told == labels[held]).sum())
    return right / len(labels)


def bayes(table: Table, labels: NDArray[np.int64], others: Table, classes: int) -> NDArray[np.int64]:
    """Naive Bayes on BINS quantile bins of each fact, with one picture added to each count (Laplace)."""
    found: list[tuple[Table, NDArray[np.int64]]] = []
    for column, other in zip(table.T, others.T, strict=True):
        edges = np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1]))
        # A value that many pictures share is a bin of its own, on both sides of which other bins begin.
        edges = np.unique(np.concatenate([edges, np.nextafter(edges, np.inf)]))
        binned = np.searchsorted(edges, column, side="right")
        shares = _shares(binned, labels, classes=classes, values=len(edges) + 1)
        found.append((shares, np.searchsorted(edges, other, side="right")))
    return _most_likely(found, labels, classes)


def kinds(table: Table, labels: NDArray[np.int64], others: Table, classes: int) -> NDArray[np.int64]:
    """Naive Bayes on facts without an order, which are whole numbers."""
    found: list[tuple[Table, NDArray[np.int64]]] = []
    for column, other in zip(table.T.astype(np.int64), others.T.astype(np.int64), strict=True):
        values = int(max(column.max(), other.max())) + 1
        found.append((_shares(column, labels, classes=classes, values=values), other))
    return _most_likely(found, labels, classes)


def ridge(table: Table, labels: NDArray[np.int64], others: Table, classes: int) -> NDArray[np.int64]:
    """Ridge regression of each class on standardised facts and their squares."""
    mean, deviation = table.mean(axis=0), table.std(axis=0) + 1e-6

    def features(values: Table) -> Table:
        scaled = np.clip((values - mean) / deviation, -5, 5)
        return np.concatenate([scaled, scaled**2, np.ones((len(values), 1))], axis=1)

    mine = features(table)
    of_class = np.zeros((classes, mine.shape[1]))
    np.add.at(of_class, labels, mine)
    products = mine.T @ mine + 0.05 * len(labels) * np.eye(mine.shape[1])
    weights, theirs = np.linalg.solve(products, of_class.T), features(others)
    return _best(len(others), classes, lambda rows: theirs[rows] @ weights)


def _shares(column: NDArray[np.int64], labels: NDArray[np.int64], *, classes: int, values: int) -> Table:
    """Return the logarithm of the share of each value in each class: float64 (values, classes)."""
    counts = np.zeros((values, classes))
    np.add.at(counts, (column, labels), 1)
    return np.log((counts + 1) / (counts.sum(axis=0) + values))


def _most_likely(
    found: Sequence[tuple[Table, NDArray[np.int64]]], labels: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return the class with the highest score, int64 (m,). `found` has, for each fact, its `_shares` and m values."""
    priors = np.log(np.bincount(labels, minlength=classes) + 1e-3)

    def scores(rows: slice) -> Table:
        result = np.repeat(priors[None], len(found[0][1][rows]), axis=0)
        for shares, values in found:
            result += shares[values[rows]]
        return result

    return _best(len(found[0][1]), classes, scores)


def _best(pictures: int, classes: int, scores: Callable[[slice], Table]) -> NDArray[np.int64]:
    """Return the place of the highest of the scores, int64 (pictures,), which are computed for some rows at a time."""
    size = max(1, SCORES_AT_ONCE // classes)
    parts = [scores(slice(first, first + size)).argmax(axis=1) for first in range(0, pictures, size)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def describe(shortcuts: Sequence[Shortcut]) -> list[str]:
    """Return a sentence for each shortcut, for people."""
    return [
        f"the {one.source} alone tells the label of {one.accuracy_percent:g} % of the pictures, and chance of "
        f"{one.chance_percent:g} %: a network may learn that instead of the content"
        for one in shortcuts
    ]
