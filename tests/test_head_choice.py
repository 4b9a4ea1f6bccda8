"""The first rung's head: discriminants by their densities, and which of discriminants and regressions is chosen."""

from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.samples import Samples
from resnetkit.errors import DataError
from resnetkit.finetune import head_choice, heads
from resnetkit.finetune.discriminants import SHRINKAGES, discriminants
from resnetkit.finetune.features import Features
from resnetkit.finetune.head_choice import fit_head, softer_head
from resnetkit.finetune.views import MIRRORED, PLAIN


def some_rows(count: int, *, seed: int, quiet: float = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes: 30 loud ones that tell nothing, and 2 quiet ones that tell the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    loud = rng.normal(0, 5, (count, 30))
    told = quiet * (np.array([[0, 0], [1, 0], [0, 1]])[labels] + rng.normal(0, 0.3, (count, 2)))
    return np.concatenate([loud, told], axis=1).astype(np.float32), labels


def features_of(rows: np.ndarray, labels: np.ndarray, *, views: int = 1) -> Features:
    """Features as the cache returns them, each view the same."""
    samples = Samples(("a", "b", "c"), labels, paths=tuple(Path(str(number)) for number in range(len(labels))))
    places = np.arange(len(labels))
    names = [f"{view.name}.pool" for view in (PLAIN, MIRRORED)[:views]]
    return Features(
        samples,
        (PLAIN, MIRRORED)[:views],
        places,
        {},
        with_maps=False,
        _places=dict.fromkeys(names, places),
        _rows=dict.fromkeys(names, rows),
    )


def test_logits_are_logarithms_of_gaussian_densities() -> None:
    rows, labels = some_rows(200, seed=0)
    weights = np.random.default_rng(1).uniform(0.5, 2, 200)
    found = discriminants(rows, labels, classes=3, weights=weights)
    x, share = rows.astype(np.float64), weights / weights.sum()
    means = np.stack([np.average(x[labels == label], axis=0, weights=weights[labels == label]) for label in range(3)])
    priors = np.array([share[labels == label].sum() for label in range(3)])
    rest = x - means[labels]
    variance = np.mean(share @ np.square(x - share @ x))
    for shrinkage, head in zip(SHRINKAGES, found, strict=True):
        spread = (share[:, None] * rest).T @ rest + shrinkage * variance * np.eye(32)
        apart = x[:, None] - means
        logs = np.log(priors) - 0.5 * np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(spread), apart)
        expected = np.exp(logs - logs.max(axis=1, keepdims=True))
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(head.probabilities(rows), expected, atol=1e-4)


def test_a_weight_counts_rows_and_a_class_without_rows_is_never_the_best() -> None:
    rows, labels = some_rows(120, seed=0)
    twice = np.concatenate([rows, rows[:40]]), np.concatenate([labels, labels[:40]])
    counted = discriminants(*twice, classes=4, weights=np.ones(160))
    weighted = discriminants(rows, labels, classes=4, weights=np.repeat([2.0, 1.0], [40, 80]))
    for one, other in zip(counted, weighted, strict=True):
        np.testing.assert_allclose(one.logits(rows)[:, :3], other.logits(rows)[:, :3], atol=1e-3)
        assert (one.logits(1e3 * rows).argmax(axis=1) < 3).all()
        assert np.isfinite(one.probabilities(rows)).all()
    with pytest.raises(DataError, match="not finite"):
        discriminants(rows * np.nan, labels, classes=3, weights=np.ones(120))


def test_the_head_is_the_best_on_validation_of_discriminants_and_regressions() -> None:
    train, val = features_of(*some_rows(300, seed=0), views=2), features_of(*some_rows(200, seed=1))
    path = heads.fit_path(*train.stacked(), classes=3, per_feature=False)
    (head, behind), regression = fit_head(train, val), heads.choose(path, val.pool(), val.labels)
    assert head.penalty == 0
    found, before = (heads.score(one, val.pool(), val.labels).error_percent for one in (head, regression))
    assert found < before
    assert behind == round(2 * (before - found))
    softer = softer_head(train, head.penalty, balanced=False)
    assert softer is not None
    assert softer.penalty == 0.1
    quiet = [features_of(*some_rows(count, seed=seed, quiet=0.5)) for count, seed in ((300, 0), (200, 1))]
    head, behind = fit_head(*quiet)
    assert head.penalty > 0
    assert behind == 0


def test_of_very_many_classes_there_are_only_discriminants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand classes and rows of 512 features: a step of a regression takes seconds, and nine are no answer."""
    assert heads.too_large(10_000, 10_000, 512)
    assert not heads.too_large(50_000, 10, 2048)
    monkeypatch.setattr(head_choice.heads, "too_large", lambda *given: True)
    monkeypatch.setattr(head_choice.heads, "fit_path", lambda *given, **more: pytest.fail("it takes too long"))
    train, val = features_of(*some_rows(300, seed=0)), features_of(*some_rows(200, seed=1))
    assert heads.score(fit_head(train, val).head, val.pool(), val.labels).error_percent < 12
    assert heads.score(fit_head(train, None).head, val.pool(), val.labels).error_percent < 12
    assert softer_head(train, 0.0, balanced=True) is None
