"""The learning curve: a known law is found again, errors are out of sample, and the interval holds what came true."""

import numpy as np
import pytest

from clusters import some_features
from resnetkit.errors import DataError
from resnetkit.finetune.learning_curve import fit_power_law, learning_curve


def test_a_known_law_is_found_again() -> None:
    sizes = np.array([50.0, 100, 200, 400, 800])
    for a, b, c in ((2.0, 0.5, 0.03), (1.0, 0.3, 0.0), (0.0, 0.1, 0.2)):
        errors = a * sizes**-b + c
        law = fit_power_law(sizes, errors[None], np.ones(5))
        found = law[0, 0] * 3200 ** -law[0, 1] + law[0, 2]
        assert found == pytest.approx(a * 3200**-b + c, abs=1e-3)
    given = fit_power_law(sizes, (2 * sizes**-0.5)[None], np.ones(5), np.array([0.5]))
    np.testing.assert_allclose(given[0], (2, 0.5, 0), atol=1e-6)


def test_errors_that_rise_or_fall_to_nothing_stay_possible() -> None:
    sizes = np.array([50.0, 100, 200, 400])
    rising = fit_power_law(sizes, np.array([[0.1, 0.12, 0.11, 0.13]]), np.ones(4))
    assert rising[0, 0] == 0
    steep = fit_power_law(sizes, np.array([[0.4, 0.1, 0.02, 0.0]]), np.ones(4))
    assert (steep[0] >= 0).all()


def test_the_curve_falls_and_foretells_the_error_with_more_pictures() -> None:
    features, labels = some_features(2400, classes=4, channels=40, apart=0.45, seed=2)
    few = slice(0, 600)
    foretold = learning_curve(features[few], labels[few], classes=tuple("abcd"), draws=2)
    measured = learning_curve(features, labels, classes=tuple("abcd"), draws=1, shares=(0.25, 0.5, 1.0))
    errors = [point.top1_error_percent for point in foretold.measured]
    assert errors[0] > errors[-1] + 3
    assert [point.pictures for point in foretold.extrapolated] == [600, 1200, 2400]
    came_true = measured.measured[-1]
    last = foretold.extrapolated[-1]
    assert last.interval_percent[0] - 1.5 < came_true.top1_error_percent < last.interval_percent[1] + 1.5
    for point in (*foretold.measured, *foretold.extrapolated):
        assert point.interval_percent[0] <= point.top1_error_percent <= point.interval_percent[1]
    saved, low, high = foretold.gain_percent
    assert 0 <= low <= saved <= high
    assert set(foretold.per_class) == set("abcd")
    document = foretold.to_dict()
    assert document["per_class"]["a"]["doubled"]["pictures"] == 2 * foretold.per_class["a"].pictures
    assert document["extrapolated"][0]["pictures"] == 600


def test_pictures_that_tell_nothing_stay_at_chance() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(300, 8)).astype(np.float32), rng.integers(0, 3, 300)
    curve = learning_curve(features, labels, classes=("a", "b", "c"), draws=1)
    assert all(55 < point.top1_error_percent < 78 for point in (*curve.measured, *curve.extrapolated))
    assert curve.gain_percent[0] < 4


def test_no_mistakes_is_not_an_error_of_zero_for_sure() -> None:
    features, labels = some_features(300, classes=2, apart=8)
    curve = learning_curve(features, labels, classes=("a", "b"), draws=1)
    assert curve.measured[-1].top1_error_percent == 0
    assert curve.measured[-1].interval_percent[1] > 0


def test_too_few_pictures_are_refused() -> None:
    features, labels = some_features(30)
    with pytest.raises(DataError, match="30 pictures of 4 classes are too few for a learning curve"):
        learning_curve(features, labels, classes=tuple("abcd"))
