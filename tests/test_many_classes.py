"""Thousands of classes: nothing is as large as pictures times classes, or classes times classes, and results stay."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data import check, shortcuts
from resnetkit.data.check import pairs_of
from resnetkit.data.division import Labelled, divided
from resnetkit.data.reading import NOTHING
from resnetkit.errors import DataError
from resnetkit.evaluation.average_precision import resampled_means
from resnetkit.finetune import heads, label_heads
from resnetkit.finetune.labels import counted_as

PICTURES, CLASSES = 600, 900
ALL = 4 * PICTURES * CLASSES
"""Bytes of a float32 for each picture and class."""


@contextmanager
def at_most(share: float) -> Iterator[None]:
    """Fail if more than this share of ALL is allocated at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < share * ALL, f"{peak / ALL:.2f} of a float32 for each picture and class"


def some_labels() -> np.ndarray:
    return (np.random.default_rng(0).random((PICTURES, CLASSES)) < 0.005).astype(np.int8)


def test_heads_for_several_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same head in blocks, without an array of all logits."""
    features, labels = np.random.default_rng(1).normal(size=(PICTURES, 2)).astype(np.float32), some_labels()
    monkeypatch.setattr(heads, "MOST_STEPS", 2)
    (whole,) = label_heads.fit_path(features, labels, penalties=[0.1], balanced=True)
    monkeypatch.setattr(label_heads, "LOGITS_AT_ONCE", 2**13)
    with at_most(0.5):
        (head,) = label_heads.fit_path(features, labels, penalties=[0.1], balanced=True)
    np.testing.assert_allclose(head.weight, whole.weight, atol=2e-4)
    np.testing.assert_allclose(head.bias, whole.bias, atol=2e-4)


def test_many_labels_take_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32), some_labels()[:60, :40]
    monkeypatch.setattr(heads, "MOST_WORK", 5 * 60 * 40 * (2 + label_heads.AS_CHANNELS))
    (head,) = label_heads.fit_path(features, labels, penalties=[1e-5])
    assert head.steps == 5


@pytest.mark.parametrize("fit", [heads.fit_path, label_heads.fit_path])
def test_a_path_ends_when_the_time_is_over(fit: Callable[..., list[heads.Head]]) -> None:
    features = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    several = fit is label_heads.fit_path
    labels = some_labels()[:40, :3] if several else np.arange(40) % 3
    asked = iter([False, True])
    found = fit(features, labels, stop=lambda: next(asked), **({} if several else {"classes": 3}))
    assert [head.penalty for head in found] == list(heads.PENALTIES[:2])


def test_the_confident_joint_is_not_made() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, CLASSES, PICTURES)
    p = rng.dirichlet(np.ones(CLASSES), PICTURES).astype(np.float32)
    few = counted_as(p[:, :50], labels % 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "LOGITS_AT_ONCE", 2**14)
        assert (counted_as(p[:, :50], labels % 50) == few).all()
        with at_most(0.5):
            counted_as(p, labels)


def test_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, PICTURES)
    table = rng.normal(size=(PICTURES, 3)) + (labels % 7)[:, None]
    whole = [told(table, labels, table[:200], CLASSES) for told in (shortcuts.bayes, shortcuts.ridge)]
    monkeypatch.setattr(shortcuts, "SCORES_AT_ONCE", 2**14)
    with at_most(0.5):
        parts = [told(table, labels, table[:200], CLASSES) for told in (shortcuts.bayes, shortcuts.ridge)]
    for one, other in zip(whole, parts, strict=True):
        assert (one == other).all()
    assert (shortcuts.bayes(table, labels % 7, table, 7) == labels % 7).mean() > 0.5


def test_pairs_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the product of the labels, of any number of pictures at a time."""
    labels = some_labels()
    first, second, counts = pairs_of(labels)
    both = np.triu(labels.T.astype(np.float32) @ labels, 1)
    assert (both[first, second] == counts).all()
    assert counts.sum() == both.sum() > 500
    monkeypatch.setattr(check, "PAIRS_AT_ONCE", 7 * CLASSES)
    with at_most(0.5):
        again = pairs_of(labels)
    for one, other in zip(again, (first, second, counts), strict=True):
        assert (one == other).all()
    assert [len(one) for one in pairs_of(labels[:0])] == [0, 0, 0]


def test_intervals_of_the_mean_average_precision() -> None:
    labels = some_labels()[:, :400] > 0
    scores = np.random.default_rng(4).random(labels.shape).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnetkit.evaluation.average_precision.AT_ONCE", 2**13)
        patch.setattr("resnetkit.evaluation.average_precision.LEAST_RESAMPLES", 10)
        patch.setattr("resnetkit.evaluation.average_precision.MOST_DRAWS", 1)
        with at_most(0.5):
            (means,) = resampled_means([scores], labels)
    assert len(means) == 10


def test_few_of_many_other_classes_are_named() -> None:
    def pictures(part: str, names: range) -> list[Labelled]:
        return [Labelled(f"{part}/{name}", Path(part, str(name)), f"c{name:04}", part) for name in names]

    parts = {"train": pictures("train", range(100)), "val": pictures("val", range(CLASSES))}
    with pytest.raises(DataError, match=f'"c0100", .* "c0104" and {CLASSES - 105} more\\)') as found:
        divided("x", parts, val_fraction=0.2, seed=0, reading=NOTHING)
    assert len(str(found.value)) < 300
