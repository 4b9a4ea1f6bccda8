"""Batches whose pictures are mixed with each other: mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How the pictures of a batch are mixed: each one with its neighbour, which is the one before it."""

    share: float
    """Share of the picture itself, 0 to 1; the rest is the neighbour's. Labels are mixed in the same way."""
    box: tuple[int, int, int, int] | None = None
    """CutMix: left, top, right and bottom of the part that is the neighbour's; None for mixup."""

    def images(self, images: Tensor) -> Tensor:
        """Return the mixed pictures: floats (n, channels, height, width), a new tensor with the same memory format."""
        neighbours = images.roll(1, 0)
        if self.box is None:
            return torch.empty_like(images).copy_(images.lerp(neighbours, 1 - self.share))
        left, top, right, bottom = self.box
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = neighbours[..., top:bottom, left:right]
        return mixed

    @staticmethod
    def neighbours(labels: Tensor) -> Tensor:
        """Return the labels of the neighbours."""
        return labels.roll(1, 0)


@dataclass(frozen=True)
class Mixing:
    """How a run mixes its batches."""

    mixup: float = 0.0
    """Mixup: parameter of the Beta distribution of the shares; 0 is off."""
    cutmix: float = 0.0
    """CutMix: the same. With both, each batch gets one of them, at random."""

    def draw(self, side: int, rng: np.random.Generator) -> Mix | None:
        """Draw the mix of a batch of pictures of `side` x `side` pixels; None if both are off."""
        if not (self.mixup or self.cutmix):
            return None
        cuts = rng.random() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        share = float(rng.beta(alpha, alpha))
        if not cuts:
            return Mix(share)
        x, y = (int(place) for place in rng.integers(0, side, 2))
        half = int(side * np.sqrt(1 - share) / 2)
        box = max(x - half, 0), max(y - half, 0), min(x + half, side), min(y + half, side)
        return Mix(1 - (box[2] - box[0]) * (box[3] - box[1]) / side**2, box)
