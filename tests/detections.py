"""Pictures with objects, and what an imaginary detector finds in them: right, moved, doubled, misnamed, invented."""

from pathlib import Path

import numpy as np

from resnetkit.data.detection.samples import Detections, DetectionSamples, Objects

SIDE = 200
"""Width and height of the pictures, in pixels."""
CLASSES = ("cat", "dog", "owl")


def scene(seed: int, *, pictures: int = 12, hard: bool = True) -> tuple[DetectionSamples, list[Detections]]:
    """Return pictures of SIDE pixels with whole-numbered boxes, and detections; with `hard`, difficult objects too.

    One picture has no objects, and one no detections. No two scores are equal.
    """
    random = np.random.default_rng(seed)
    truth: list[Objects] = []
    found: list[Detections] = []
    scores = random.permutation(pictures * 60) / (pictures * 60)
    for picture in range(pictures):
        count = 0 if picture == 3 else int(random.integers(1, 8))
        corner = random.integers(0, 120, (count, 2))
        boxes = np.concatenate([corner, corner + random.integers(12, 80, (count, 2))], axis=1)
        labels = random.integers(0, len(CLASSES), count)
        difficult = (random.random(count) < 0.2) & hard
        truth.append(Objects(boxes.astype(np.float32), labels, difficult, np.zeros(count, bool)))
        times = random.integers(0, 4, count) if picture != 5 else np.zeros(count, int)
        near = np.repeat(boxes, times, axis=0) + random.integers(-9, 10, (int(times.sum()), 4))
        invented = random.integers(0, 120, (int(random.integers(0, 5)) if picture != 5 else 0, 2))
        invented = np.concatenate([invented, invented + random.integers(10, 80, invented.shape)], axis=1)
        all_boxes = np.clip(np.concatenate([near, invented]), 0, SIDE)
        all_boxes[:, 2:] = np.maximum(all_boxes[:, 2:], all_boxes[:, :2] + 1)
        named = np.concatenate([np.repeat(labels, times), random.integers(0, len(CLASSES), len(invented))])
        named = np.where(random.random(len(named)) < 0.15, random.integers(0, len(CLASSES), len(named)), named)
        mine = -np.sort(-scores[picture * 60 : picture * 60 + len(named)])
        found.append(Detections(all_boxes.astype(np.float32), named.astype(np.int64), mine.astype(np.float32)))
    paths = tuple(Path(f"{number}.jpg") for number in range(pictures))
    return DetectionSamples(CLASSES, paths, ((SIDE, SIDE),) * pictures, tuple(truth)), found
