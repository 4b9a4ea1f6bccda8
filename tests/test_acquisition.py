"""Which pictures to label next: by the distances of whole gradients, uncertain and different ones first."""

import numpy as np
import pytest

from clusters import some_features
from resnetkit.errors import UsageError
from resnetkit.finetune.acquisition import choose_next
from resnetkit.finetune.heads import fit


def gradients(features, probabilities):
    """The gradients of the last layer, whole: float64 (n, classes · channels)."""
    residual = probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    return (residual[:, :, None] * features[:, None, :]).reshape(len(features), -1).astype(np.float64)


def test_equals_k_means_plus_plus_on_whole_gradients() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 5)).astype(np.float32)
    probabilities = rng.dirichlet(np.ones(3), 60).astype(np.float32)
    chosen = choose_next(features, probabilities, count=12, seed=4)
    whole, drawn = gradients(features, probabilities), np.random.Generator(np.random.PCG64(4))
    zero = np.square(whole).sum(axis=1)
    expected = [int(zero.argmax())]
    while len(expected) < 12:
        distance = np.square(whole[:, None] - whole[expected]).sum(axis=2).min(axis=1)
        distance = np.minimum(distance, zero)
        expected.append(int(np.searchsorted(np.cumsum(distance), drawn.random() * distance.sum(), side="right")))
    assert chosen.tolist() == expected


def test_copies_are_not_chosen_twice() -> None:
    rng = np.random.default_rng(1)
    features = np.repeat(rng.normal(size=(6, 5)), 10, axis=0).astype(np.float32)
    probabilities = np.repeat(rng.dirichlet(np.ones(3), 6), 10, axis=0).astype(np.float32)
    chosen = choose_next(features, probabilities, count=20)
    assert len(chosen) == 6
    assert sorted(chosen // 10) == list(range(6))


def test_uncertain_pictures_come_before_certain_ones() -> None:
    features = np.random.default_rng(2).normal(size=(200, 6)).astype(np.float32)
    probabilities = np.tile(np.array([0.999, 0.001], np.float32), (200, 1))
    probabilities[::10] = (0.55, 0.45)
    chosen = choose_next(features, probabilities, count=15)
    assert (chosen % 10 == 0).all()


def test_labels_of_the_chosen_help_more_than_those_of_drawn_ones() -> None:
    features, labels = some_features(3000, classes=5, channels=24, apart=1.1, seed=3)
    pool, test = np.arange(2000), np.arange(2000, 3000)
    gains = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        first = rng.permutation(pool)[:40]
        rest = np.setdiff1d(pool, first)
        head = fit(features[first], labels[first], classes=5, penalty=0.03)
        chosen = rest[choose_next(features[rest], head.probabilities(features[rest]).astype(np.float32), count=60)]
        errors = []
        for more in (rng.permutation(rest)[:60], chosen):
            rows = np.concatenate([first, more])
            again = fit(features[rows], labels[rows], classes=5, penalty=0.03)
            errors.append((again.logits(features[test]).argmax(axis=1) != labels[test]).mean())
        gains.append(errors[0] - errors[1])
    assert np.mean(gains) > 0


def test_odd_inputs() -> None:
    assert choose_next(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32), count=5).tolist() == []
    one = np.ones((1, 3), np.float32)
    assert choose_next(one, np.ones((1, 1), np.float32), count=5).tolist() == [0]
    with pytest.raises(UsageError, match="`count` is 0"):
        choose_next(one, np.ones((1, 1), np.float32), count=0)
