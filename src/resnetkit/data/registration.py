"""Move and scale one thumbnail onto another, and measure how well they agree. Batches of pairs, in NumPy."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.float32]
"""A batch of n grey pictures: float32 (n, side, side)."""

COARSE = 1.5
"""Standard deviation, in pixels, of the blur before the first estimate."""
STEPS = ((2.5, 5), (1.2, 4))
"""Blur in pixels, and number of Gauss-Newton steps with it."""
FINE, BROAD = 1.0, 3.0
"""Standard deviations of the two blurs whose difference is the structure of a picture."""
MOST_SCALE, MOST_SHIFT = 0.15, 0.1
"""Largest change of a side, and largest shift as a share of the side, that count as the same view."""
COULD = 0.94
"""Least share of a blurred picture's variance that a small shift and scale of the other one must explain."""
STILL_COULD = 0.8
"""Least correlation after the coarse steps with which a pair is measured finely."""
EPSILON = np.float32(1e-6)


def could_match(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which of n pairs, uint8 (n, side, side) each, may agree after a small shift and scale: bool (n,).

    It is a linear estimate on blurred pictures, far cheaper than `correlations`.
    """
    if not len(first):
        return np.zeros(0, bool)
    one, other = (_reduced(pictures.astype(np.float32)) for pictures in (first, second))
    n, side, _ = one.shape
    basis = np.stack([one, *_changes(one)], axis=1).reshape(n, 5, side * side)
    basis -= basis.mean(axis=2, keepdims=True)
    target = other.reshape(n, -1)
    target = target - target.mean(axis=1, keepdims=True)
    products = basis @ basis.transpose(0, 2, 1)
    products += _ridge(products, 1e-4)
    projections = (basis @ target[:, :, None])[:, :, 0]
    weights = np.linalg.solve(products, projections[:, :, None])[:, :, 0]
    explained = (weights * projections).sum(axis=1) / ((target * target).sum(axis=1) + EPSILON)
    return (explained >= COULD) & (weights[:, 0] > 0)


def correlations(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the correlation (-1 to 1) of the structure of n pairs, uint8 (n, side, side) each, once they are aligned.

    The second picture is moved and scaled, each side by itself, by Gauss-Newton steps on the squared difference of the
    normalised pictures (Lucas and Kanade 1981). -1 stands for pairs that don't agree within a small shift and scale.
    """
    result = np.full(len(first), -1, np.float32)
    if not len(first):
        return result
    one, other = first.astype(np.float32), second.astype(np.float32)
    motion = np.zeros((len(first), 4), np.float32)
    rows = np.arange(len(first))
    for blur, steps in STEPS:
        if not len(rows):
            return result
        target, source = _blurred(one[rows], blur), _blurred(other[rows], blur)
        for _ in range(steps):
            motion[rows] = _improved(target, source, motion[rows])
        rows = rows[_agreement(target, source, motion[rows]) >= STILL_COULD]
    side = one.shape[1]
    small = np.array([MOST_SCALE, MOST_SHIFT * side] * 2, np.float32)
    rows = rows[(np.abs(motion[rows]) <= small).all(axis=1)]
    if len(rows):
        result[rows] = _agreement(_structure(one[rows]), _structure(other[rows]), motion[rows])
    return result


def _improved(target: Grey, source: Grey, motion: Grey) -> Grey:
    """Return the motion after one Gauss-Newton step; motion is (n, 4): scale and shift of rows, then of columns."""
    moved, mask = _moved(source, motion)
    target, moved = _normalised(target, mask), _normalised(moved, mask)
    n = len(target)
    changes = np.stack(_changes(moved), axis=1) * mask[:, None]
    size = mask.sum(axis=(1, 2))
    changes -= (changes.sum(axis=(2, 3)) / size[:, None])[:, :, None, None]
    changes = (changes * mask[:, None]).reshape(n, 4, -1)
    products = changes @ changes.transpose(0, 2, 1)
    products += _ridge(products, 1e-3)
    difference = ((target - moved) * mask).reshape(n, -1, 1)
    step = np.linalg.solve(products, changes @ difference)[:, :, 0]
    most = np.array([0.1, 2, 0.1, 2], np.float32)
    return np.clip(motion + np.clip(step, -most, most), -2.5 * most, 2.5 * most)


def _agreement(target: Grey, source: Grey, motion: Grey) -> Grey:
    """Return the correlation of n pairs, float32 (n,), where the moved source covers the target."""
    moved, mask = _moved(source, motion)
    target, moved = _normalised(target, mask), _normalised(moved, mask)
    return (target * moved).sum(axis=(1, 2)) / np.maximum(mask.sum(axis=(1, 2)), 1)


def _normalised(pictures: Grey, mask: Grey) -> Grey:
    """Return pictures with mean 0 and variance 1 within the mask, and 0 outside it."""
    size = np.maximum(mask.sum(axis=(1, 2), keepdims=True), 1)
    centred = (pictures - (pictures * mask).sum(axis=(1, 2), keepdims=True) / size) * mask
    return centred / np.sqrt((centred * centred).sum(axis=(1, 2), keepdims=True) / size + EPSILON)


def _changes(pictures: Grey) -> list[Grey]:
    """Return what a small change of scale and of shift, of rows and of columns, changes in each pixel."""
    side = pictures.shape[1]
    place = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
    down, across = np.gradient(pictures, axis=1), np.gradient(pictures, axis=2)
    return [down * place[:, None], down, across * place, across]


def _moved(pictures: Grey, motion: Grey) -> tuple[Grey, Grey]:
    """Return moved and scaled pictures, and the mask of the pixels that come from within them (0 or 1)."""
    rows, rows_within = _sampling(pictures.shape[1], motion[:, 0], motion[:, 1])
    columns, columns_within = _sampling(pictures.shape[2], motion[:, 2], motion[:, 3])
    mask = (rows_within[:, :, None] & columns_within[:, None, :]).astype(np.float32)
    return _product(rows, pictures, columns.transpose(0, 2, 1)), mask


def _sampling(side: int, scale: Grey, shift: Grey) -> tuple[Grey, NDArray[np.bool_]]:
    """Return weights of linear interpolation, (n, side, side), and which pixels come from within, bool (n, side)."""
    place = np.arange(side, dtype=np.float32)
    centre = np.float32((side - 1) / 2)
    source = centre + (1 + scale[:, None]) * (place - centre) + shift[:, None]
    weights = np.maximum(0, 1 - np.abs(source[:, :, None] - place))
    return weights.astype(np.float32), (source > -0.01) & (source < side - 0.99)


def _structure(pictures: Grey) -> Grey:
    """Return pictures without their smooth parts, such as light that falls off, and without noise."""
    return _blurred(pictures, FINE) - _blurred(pictures, BROAD)


def _blurred(pictures: Grey, deviation: float) -> Grey:
    weights = _gaussian(pictures.shape[1], deviation)
    return _product(weights, pictures, weights.T)


def _reduced(pictures: Grey) -> Grey:
    """Return blurred pictures of half the side."""
    weights = _reducing(pictures.shape[1])
    return _product(weights, pictures, weights.T)


@cache
def _reducing(side: int) -> Grey:
    """Return the weights of a blur by COARSE followed by the means of two pixels, float32 (side / 2, side)."""
    return _gaussian(side, COARSE).reshape(side // 2, 2, side).mean(axis=1)


@cache
def _gaussian(side: int, deviation: float) -> Grey:
    """Return the weights of a Gaussian blur along a side, float32 (side, side); each row adds up to 1."""
    place = np.arange(side)
    weights = np.exp(-0.5 * ((place[:, None] - place) / deviation) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _product(left: Grey, pictures: Grey, right: Grey) -> Grey:
    """Return a product of three matrices, for each picture."""
    return (left @ pictures @ right).astype(np.float32, copy=False)


def _ridge(products: Grey, share: float) -> Grey:
    """Return a multiple of the unit matrix, (n, k, k), that keeps a singular system solvable."""
    size = products.shape[1]
    mean = np.trace(products, axis1=1, axis2=2)[:, None, None] / size
    return (np.eye(size, dtype=np.float32) * (share * mean + EPSILON)).astype(np.float32)
