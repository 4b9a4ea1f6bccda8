"""Heads from the classes' means and the spread within them: linear discriminants, without an iteration.

What tells classes apart that ImageNet has none of often varies little in the features. Regression with a penalty on the
weights hardly uses it; discriminants measure it by the spread within the classes. They also cost one pass over the
features, so that they are the only heads for data with very many classes. Sources: Fisher 1936; a covariance that is
shrunk, Friedman 1989.
"""

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import DataError
from resnetkit.finetune.heads import Head, Values, chunks

SHRINKAGES = (0.01, 0.1, 1.0, 10.0)
"""What is added to the variances within the classes, in times of the features' mean variance; one head for each."""
VALUES_AT_ONCE = 2**21
"""Features in float64 that are summed together: 16 MB."""


def discriminants(
    features: Values, labels: NDArray[np.int64], *, classes: int, weights: NDArray[np.floating]
) -> list[Head]:
    """Return a head for each of SHRINKAGES: the logarithms of Gaussian densities with one covariance.

    `features` is float32 (n, channels), `labels` int64 (n,) from 0 to classes - 1. `weights`, (n,), counts a row so
    many times, as for `heads.fit`. A class without rows is never the best one. The heads' `penalty` is 0.

    Raises DataError for features that are not finite.
    """
    if not np.isfinite(features).all():
        raise DataError("the features have values that are not finite")
    mass = np.bincount(labels, weights, minlength=classes)
    total = float(mass.sum())
    blocks = chunks(len(labels), features.shape[1], logits=VALUES_AT_ONCE)
    mean = np.asarray(weights @ features / total, np.float32)
    means = np.zeros((classes, features.shape[1]))
    for rows in blocks:
        np.add.at(means, labels[rows], weights[rows, None] * (features[rows] - mean))
    means /= np.where(mass > 0, mass, 1)[:, None]
    within, variance = np.zeros((features.shape[1],) * 2), 0.0
    for rows in blocks:
        centred = (features[rows] - mean).astype(np.float64)
        variance += float(weights[rows] @ np.square(centred).mean(axis=1)) / total
        centred -= means[labels[rows]]
        within += (weights[rows, None] * centred).T @ centred / total
    priors = np.log(np.where(mass > 0, mass, 1e-30) / total)
    heads: list[Head] = []
    for shrinkage in SHRINKAGES:
        spread = within + max(shrinkage * variance, 1e-12) * np.eye(len(within))
        weight = np.linalg.solve(spread, means.T).T
        bias = priors - 0.5 * (weight * means).sum(axis=1) - weight @ mean
        heads.append(Head(weight.astype(np.float32), bias.astype(np.float32), penalty=0.0))
    return heads
