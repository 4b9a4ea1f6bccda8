"""Features of overlapping classes, for tests of heads."""

import numpy as np


def some_features(rows: int = 600, *, classes: int = 4, channels: int = 16, apart: float = 1.6, seed: int = 0):
    """Overlapping classes: features float32 (rows, channels) and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    centres = rng.normal(0, apart, (classes, channels))
    return (centres[labels] + rng.normal(0, 1.5, (rows, channels))).astype(np.float32), labels
