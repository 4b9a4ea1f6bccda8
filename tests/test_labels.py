"""Likely label errors: equal to cleanlab's, found where they are planted, by heads that did not see the picture."""

from pathlib import Path

import numpy as np
import pytest

from clusters import some_features
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError
from resnetkit.finetune.features import Features
from resnetkit.finetune.labels import confident_errors, counted_as, label_errors
from resnetkit.finetune.out_of_sample import out_of_sample
from resnetkit.finetune.views import PLAIN


def planted(labels, *, classes: int, share: float = 0.05, seed: int = 1):
    """Labels of which a share is another class, and the places of these."""
    rng = np.random.default_rng(seed)
    places = rng.choice(len(labels), round(share * len(labels)), replace=False)
    wrong = labels.copy()
    wrong[places] = (labels[places] + rng.integers(1, classes, len(places))) % classes
    return wrong, places


def as_features(pool, labels, classes: tuple[str, ...], paths: tuple[Path, ...] | None = None) -> Features:
    samples = Samples(classes, labels, paths=paths or tuple(Path(f"{place}.png") for place in range(len(labels))))
    places = np.arange(len(labels))
    return Features(samples, (PLAIN,), places, {}, False, {"plain.pool": places}, {"plain.pool": pool})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 5])
def test_equals_cleanlab(seed: int, classes: int) -> None:
    count = pytest.importorskip("cleanlab.count", reason="cleanlab is not installed")
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed")
    features, labels = some_features(400, classes=classes, apart=0.7, seed=seed)
    labels, _ = planted(labels, classes=classes, share=0.1, seed=seed)
    p = out_of_sample(features, labels, classes=classes).probabilities.astype(np.float64)
    joint = count.compute_confident_joint(labels, p, calibrate=False)
    counted = counted_as(p, labels)
    ours = np.zeros((classes, classes), np.int64)
    np.add.at(ours, (labels[counted >= 0], counted[counted >= 0]), 1)
    # cleanlab adds one to an empty place of the diagonal
    np.testing.assert_array_equal(ours, np.where(np.eye(classes) * (ours == 0) > 0, 0, joint))
    expected = np.flatnonzero(filters.find_label_issues(labels, p, filter_by="prune_by_class", n_jobs=1))
    rows, suggested, scores = confident_errors(p, labels)
    assert 5 < len(rows) < 200
    # cleanlab rounds a whole row of the joint, and leaves out the last picture where it is as unlikely as the next one
    assert len(set(rows) ^ set(expected)) <= classes
    np.testing.assert_allclose(scores, rank.get_self_confidence_for_each_label(labels, p)[rows])
    assert (np.diff(scores) >= 0).all()
    assert (suggested == p[rows].argmax(axis=1)).all()
    assert (suggested != labels[rows]).all()


def test_planted_errors_are_found_and_suggested() -> None:
    features, labels = some_features(800, apart=2.2)
    wrong, places = planted(labels, classes=4)
    found = label_errors(as_features(features, wrong, ("a", "b", "c", "d")))
    rows = {error.index for error in found.errors}
    assert len(rows & set(places)) >= 0.9 * len(places)
    assert len(rows & set(places)) >= 0.8 * len(rows)
    right = [error for error in found.errors if error.index in set(places)]
    assert sum(error.suggested == "abcd"[labels[error.index]] for error in right) >= 0.95 * len(right)
    first = [error.index for error in found.errors[: len(places) // 2]]
    assert len(set(first) & set(places)) >= 0.95 * len(first)
    assert found.errors[0].path == Path(f"{found.errors[0].index}.png")
    assert found.errors[0].label == "abcd"[wrong[found.errors[0].index]]
    assert found.pictures == 800


def test_a_picture_is_judged_by_heads_that_did_not_see_it() -> None:
    """Random labels are learnt by heart from many features; out of sample they are guessed."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(200, 400)).astype(np.float32), rng.integers(0, 2, 200)
    found = out_of_sample(features, labels, classes=2, penalties=(1e-4,))
    assert 0.3 < (found.probabilities.argmax(axis=1) == labels).mean() < 0.7
    assert found.fitted_to == 160


def test_the_same_heads_each_time_and_a_smaller_share_is_a_part_of_a_larger_one() -> None:
    features, labels = some_features(300)
    first, again = (out_of_sample(features, labels, classes=4, share=0.3, seed=5) for _ in range(2))
    assert (first.probabilities == again.probabilities).all()
    assert first.fitted_to == pytest.approx(0.3 * 240, abs=3)
    other = out_of_sample(features, labels, classes=4, share=0.3, seed=6)
    assert (first.probabilities != other.probabilities).any()


def test_small_classes_are_not_judged_and_absent_ones_do_not_count() -> None:
    features, labels = some_features(200, classes=3)
    labels = labels * 2  # classes 1, 3 and 5 are absent
    labels[:3] = 5
    found = label_errors(as_features(features, labels, tuple("abcdef")))
    assert found.too_few == ("f",)
    assert found.pictures == 197
    assert not {error.index for error in found.errors} & {0, 1, 2}
    assert not {error.suggested for error in found.errors} & {"b", "d", "f"}
    assert found.own.shape == (200,)
    certain = [error.score for error in found.errors]
    np.testing.assert_allclose(found.own[[error.index for error in found.errors]], certain, rtol=1e-6)


def test_one_class_or_too_few_pictures_are_refused() -> None:
    features, _ = some_features(20)
    with pytest.raises(DataError, match="two classes or more with 4 pictures"):
        label_errors(as_features(features, np.zeros(20, np.int64), ("a", "b")))
    with pytest.raises(DataError, match="two pictures or more"):
        out_of_sample(features[:1], np.zeros(1, np.int64), classes=1)
