"""The head of the first rung, the best of many; and the one with which the second rung begins."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.finetune import heads, label_heads
from resnetkit.finetune.discriminants import discriminants
from resnetkit.finetune.features import Features

SOFTER, USUAL_PENALTY = 9.0, 0.01
"""The penalty with which the second rung begins, in times of the first rung's; and that of a first rung without one."""
FOLDS = 5
"""Without validation pictures, the head's penalty is chosen on folds of the training pictures."""


class Chosen(NamedTuple):
    """The head of the first rung."""

    head: heads.Head
    behind: int = 0
    """How many more validation pictures the best regression gets wrong; 0 if it is the head, or there is none."""


def fit_head(
    train: Features,
    val: Features | None,
    *,
    balanced: bool = False,
    stop: Callable[[], bool] | None = None,
) -> Chosen:
    """Return the head that is best on validation, of the regressions of a path of penalties and of discriminants.

    Discriminants are made of all views, and of the first one alone. Without validation, it is the regression with the
    lowest loss on folds of the training pictures. With `balanced`, every class counts the same in the fit. `stop` ends
    the path early, which is not asked without validation. For `heads.too_large` data, there are only discriminants.
    """
    features, labels = train.stacked()
    classes = len(train.samples.classes)
    if train.samples.several:
        return Chosen(label_heads.fit_head(features, labels, val, views=len(train.views), balanced=balanced, stop=stop))
    shares = heads.class_weights(labels, classes=classes) if balanced else np.ones(len(labels))
    large = heads.too_large(len(labels), classes, features.shape[1])
    if val is not None:
        plain = train.pool(), train.labels, shares[: len(train)]
        views = [plain, (features, labels, shares)][: len(train.views)]
        found = [head for x, y, w in views for head in discriminants(x, y, classes=classes, weights=w)]
        if large:
            return Chosen(heads.choose(found, val.pool(), val.labels))
        path = heads.fit_path(features, labels, classes=classes, weights=shares, per_feature=False, stop=stop)
        regression = heads.choose(path, val.pool(), val.labels)
        best = heads.choose([*found, regression], val.pool(), val.labels)
        errors = [heads.score(head, val.pool(), val.labels).error_percent for head in (best, regression)]
        return Chosen(best, round((errors[1] - errors[0]) / 100 * len(val)))

    def fitted(weights: NDArray[np.float64], most: int | None = None) -> list[heads.Head]:
        if large:
            return discriminants(features, labels, classes=classes, weights=weights)[:most]
        penalties = heads.PENALTIES[:most]
        return heads.fit_path(
            features, labels, classes=classes, penalties=penalties, weights=weights, per_feature=False
        )

    fold = np.tile(heads.folds(train.labels, count=min(FOLDS, len(train))), len(train.views))
    losses: list[list[float]] = []
    for number in range(int(fold.max()) + 1):
        out = fold == number
        losses.append([heads.score(head, features[out], labels[out]).loss for head in fitted(shares * ~out)])
    return Chosen(fitted(shares, int(np.sum(losses, axis=0).argmin()) + 1)[-1])


def softer_head(train: Features, penalty: float, *, balanced: bool) -> heads.Head | None:
    """Return the head of a stronger penalty than the first rung's `penalty`, for training to begin with.

    The head that is best on validation often makes no mistake on the views that it was fitted to, nor do these have any
    loss, so they would teach the stage before it nothing. None if the first rung's head does: one for several labels
    makes mistakes on its pictures, too, and for `heads.too_large` data there is no other.
    """
    features, labels = train.stacked()
    classes = len(train.samples.classes)
    if train.samples.several or heads.too_large(len(labels), classes, features.shape[1]):
        return None
    shares = heads.class_weights(labels, classes=classes) if balanced else np.ones(len(labels))
    least = SOFTER * (penalty or USUAL_PENALTY)
    penalties = [one for one in heads.PENALTIES if one >= least] or heads.PENALTIES[:1]
    return heads.fit_path(features, labels, classes=classes, penalties=penalties, weights=shares, per_feature=False)[-1]
