"""Heads: against scikit-learn, by the conditions of an optimum, deterministic, weighted."""

import numpy as np
import pytest

from resnetkit.errors import DataError
from resnetkit.finetune import heads
from resnetkit.finetune.heads import (
    PENALTIES,
    Head,
    choose,
    class_weights,
    fit,
    fit_path,
    folds,
    log_softmax,
    score,
)


def some_features(*, rows: int = 300, channels: int = 20, classes: int = 4, seed: int = 0):
    """Features of overlapping classes, of very different scales, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = rng.normal(0, 1.2, (classes, channels))
    scales = np.geomspace(0.01, 30, channels)
    features = (centres[labels] + rng.normal(0, 1.5, (rows, channels))) * scales + 3 * scales
    return features.astype(np.float32), labels


def objective(head: Head, features, labels, penalty: float) -> float:
    """The function that `fit` minimises, computed another way, in float64."""
    logs = log_softmax(features.astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias)
    deviation = features.astype(np.float64).std(axis=0)
    return -logs[np.arange(len(labels)), labels].mean() + 0.5 * penalty * np.square(head.weight * deviation).sum()


@pytest.mark.parametrize("penalty", [0.3, 0.01, 0.001])
def test_equals_scikit_learn(penalty: float) -> None:
    """scikit-learn's C counts rows, so it is 1 / (penalty · rows); it gets the standardised features."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = some_features()
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    other = linear_model.LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-9, max_iter=10_000)
    other.fit(((features - mean) / deviation).astype(np.float64), labels)
    expected = other.predict_proba((features - mean) / deviation)
    head = fit(features, labels, classes=4, penalty=penalty)
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)
    assert (head.probabilities(features).argmax(1) == expected.argmax(1)).mean() > 0.995


@pytest.mark.parametrize("penalty", [0.3, 0.01])
def test_one_scale_for_all_features_equals_scikit_learn(penalty: float) -> None:
    """Features that are all divided by the same number."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = some_features()
    scale = np.sqrt(np.square(features.std(axis=0)).mean())
    other = linear_model.LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-9, max_iter=10_000)
    other.fit(((features - features.mean(axis=0)) / scale).astype(np.float64), labels)
    expected = other.predict_proba((features - features.mean(axis=0)) / scale)
    (head,) = fit_path(features, labels, classes=4, penalties=[penalty], per_feature=False)
    np.testing.assert_allclose(head.probabilities(features), expected, atol=2e-3)


def test_no_change_makes_an_optimum_better() -> None:
    features, labels = some_features(classes=3)
    head = fit(features, labels, classes=3, penalty=0.02)
    best = objective(head, features, labels, 0.02)
    rng = np.random.default_rng(1)
    scale = np.abs(head.weight).mean(axis=0)
    for size in (0.3, 0.03):
        for _ in range(20):
            weight = head.weight + size * scale * rng.normal(size=head.weight.shape)
            bias = head.bias + size * rng.normal(size=3)
            other = Head(weight.astype(np.float32), bias.astype(np.float32), 0.02)
            assert objective(other, features, labels, 0.02) > best - 1e-6


def test_a_path_ends_where_a_single_fit_does_and_repeats_to_the_bit() -> None:
    features, labels = some_features()
    path = fit_path(features, labels, classes=4)
    again = fit_path(features.copy(), labels, classes=4)
    assert [head.penalty for head in path] == list(PENALTIES)
    assert all((a.weight == b.weight).all() and (a.bias == b.bias).all() for a, b in zip(path, again, strict=True))
    alone = fit(features, labels, classes=4, penalty=0.03)
    np.testing.assert_allclose(
        path[PENALTIES.index(0.03)].probabilities(features), alone.probabilities(features), atol=2e-3
    )
    assert 0 < path[3].steps < alone.steps  # it began near the answer


def test_whole_weights_are_repeated_rows() -> None:
    features, labels = some_features(rows=80)
    times = np.random.default_rng(3).integers(0, 4, 80)
    weighted = fit(features, labels, classes=4, penalty=0.05, weights=times)
    repeated = fit(features.repeat(times, axis=0), labels.repeat(times), classes=4, penalty=0.05)
    np.testing.assert_allclose(weighted.probabilities(features), repeated.probabilities(features), atol=2e-3)


def test_soft_targets_of_one_class_are_labels() -> None:
    features, labels = some_features(rows=60)
    hard = fit(features, labels, classes=4, penalty=0.05)
    soft = fit(features, labels, classes=4, penalty=0.05, targets=np.eye(4, dtype=np.float32)[labels])
    np.testing.assert_allclose(hard.weight, soft.weight, rtol=1e-3, atol=1e-4)


def test_class_weights_make_a_rare_class_count() -> None:
    features, labels = some_features(rows=400, classes=2)
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:12]])
    few, few_labels = features[kept], labels[kept]
    weights = class_weights(few_labels, classes=2)
    assert weights.mean() == pytest.approx(1)
    assert weights[few_labels == 0].sum() == pytest.approx(weights[few_labels == 1].sum())
    plain = fit(few, few_labels, classes=2, penalty=0.1)
    balanced = fit(few, few_labels, classes=2, penalty=0.1, weights=weights)
    rare = labels == 1
    found = [(head.probabilities(features)[rare].argmax(1) == 1).mean() for head in (plain, balanced)]
    assert found[1] > found[0]


def test_rows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = some_features(rows=250)
    whole = fit(features, labels, classes=4, penalty=0.05)
    monkeypatch.setattr("resnetkit.finetune.heads.ROWS_AT_ONCE", 100)
    parts = fit(features, labels, classes=4, penalty=0.05)
    np.testing.assert_allclose(whole.probabilities(features), parts.probabilities(features), atol=1e-3)
    assert score(whole, features, labels).error_percent == score(parts, features, labels).error_percent


def test_constant_and_missing() -> None:
    """A constant feature, a class without rows, and a class that is the only one."""
    features, labels = some_features(rows=50, classes=2)
    features[:, 3] = 7.0
    head = fit(features, labels, classes=3, penalty=0.01)
    assert np.isfinite(head.weight).all()
    assert head.probabilities(features)[:, 2].max() < 0.2
    only = fit(features, np.zeros(50, np.int64), classes=2, penalty=0.01)
    assert (only.probabilities(features).argmax(1) == 0).all()
    with pytest.raises(DataError, match="no features"):
        fit(features, labels, classes=2, penalty=0.1, weights=np.zeros(50))
    with pytest.raises(DataError, match="not finite"):
        fit(np.full((2, 2), np.nan, np.float32), np.array([0, 1]), classes=2, penalty=0.1)


def test_choose_prefers_the_error_and_then_the_loss() -> None:
    features, labels = some_features(rows=600, seed=5)
    heads = fit_path(features[:60], labels[:60], classes=4)
    chosen = choose(heads, features[60:], labels[60:])
    scores = [score(head, features[60:], labels[60:]) for head in heads]
    least = min(one.error_percent for one in scores)
    assert score(chosen, features[60:], labels[60:]).error_percent == least
    assert score(chosen, features[60:], labels[60:]).loss == min(s.loss for s in scores if s.error_percent == least)


def test_folds_divide_each_class_evenly() -> None:
    labels = np.repeat([0, 1, 2], [50, 7, 1])
    found = folds(labels, count=5, seed=1)
    assert sorted(np.bincount(found[:50]).tolist()) == [10] * 5
    assert set(np.bincount(found[50:57], minlength=5).tolist()) == {1, 2}
    assert (found == folds(labels, count=5, seed=1)).all()
    assert (found != folds(labels, count=5, seed=2)).any()


def test_many_classes_take_small_blocks_and_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = some_features()
    whole = fit(features, labels, classes=4, penalty=0.01)
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", 40)  # ten rows
    monkeypatch.setattr(heads, "MANY_WEIGHTS", 10)
    pieces = fit(features, labels, classes=4, penalty=0.01)
    assert objective(pieces, features, labels, 0.01) == pytest.approx(
        objective(whole, features, labels, 0.01), rel=1e-5
    )
    assert score(pieces, features, labels).loss == pytest.approx(score(whole, features, labels).loss, rel=1e-3)
    monkeypatch.setattr(heads, "MOST_WORK", 8 * 300 * 20 * 4)
    assert fit(features, labels, classes=4, penalty=0.01).steps == 8
    monkeypatch.setattr(heads, "MOST_WORK", 1)
    assert fit(features, labels, classes=4, penalty=0.01).steps == heads.LEAST_STEPS
