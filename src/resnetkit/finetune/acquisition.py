"""Which unlabelled pictures to label next: uncertain ones that differ from each other (arXiv:1906.03671)."""

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError
from resnetkit.progress import Advance, ignore


def choose_next(
    features: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    *,
    count: int,
    seed: int = 0,
    advance: Advance = ignore,
) -> NDArray[np.int64]:
    """Return the rows of the pictures to label next, int64 (count or fewer,), in the order of their choice.

    This is BADGE (Alg. 1). A picture stands for the gradient that it would have in the last layer if its most probable
    class were its label: the outer product of (probabilities - that class) and its features. The gradient is long when
    the network is uncertain. The first picture is that with the longest one. Each further one is drawn, as in
    k-means++, with a probability in proportion to the squared distance from those that are chosen. So copies of a
    chosen picture are never drawn, and there are fewer rows than `count` if no others are left. Unlike in the paper,
    zero counts as chosen: a picture that is certain has a short gradient, and would be drawn because it is far from the
    long ones.

    `features` are float32 (n, channels), `probabilities` float32 (n, classes). The products are never computed: n times
    (channels + classes) numbers are in memory. `advance` is called with 1 after each choice.
    """
    if count < 1:
        raise UsageError(f"`count` is {count}; it must be at least 1")
    if not len(features):
        return np.zeros(0, np.int64)
    rng = np.random.Generator(np.random.PCG64(seed))
    residual = probabilities.astype(np.float32)
    residual[np.arange(len(residual)), probabilities.argmax(axis=1)] -= 1
    size = np.square(residual, dtype=np.float64).sum(axis=1) * np.square(features, dtype=np.float64).sum(axis=1)
    chosen = [int(size.argmax())]
    advance(1)
    distance = np.minimum(size, _distance(residual, features, size, chosen[-1]))
    while len(chosen) < min(count, len(features)):
        reached = np.cumsum(distance)
        if reached[-1] <= 0:
            break
        chosen.append(int(np.searchsorted(reached, rng.random() * reached[-1], side="right")))
        distance = np.minimum(distance, _distance(residual, features, size, chosen[-1]))
        advance(1)
    return np.array(chosen, np.int64)


def _distance(
    residual: NDArray[np.float32], features: NDArray[np.float32], size: NDArray[np.float64], place: int
) -> NDArray[np.float64]:
    """Return the squared distance of each gradient from that of one picture, float64 (n,); rounding counts as 0."""
    inner = (residual @ residual[place]).astype(np.float64) * (features @ features[place])
    distance = size + size[place] - 2 * inner
    distance[distance < 1e-5 * (size + size[place])] = 0.0
    distance[place] = 0.0
    return distance
