"""What a report shows of a detector's measures: curves of precision over recall, and the pictures with most errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnetkit.data.detection.samples import Detections, DetectionSamples, Objects
from resnetkit.evaluation.detection.matching import LEAST_OVERLAP, Matches, verdicts

POINTS = 101
"""Number of recalls of a curve: 0, 0.01, ... 1."""


@dataclass(frozen=True)
class Errors:
    """A picture, what was found in it, and the number of its errors."""

    picture: int
    """Index in the samples."""
    missed: int
    """Objects that no detection found."""
    wrong: int
    """Detections that found no object."""
    found: Detections
    """The detections that reach the thresholds of their classes."""


def precision_curve(matches: Matches) -> list[float]:
    """Return the largest precision at each of POINTS recalls or a larger one; 0 at recalls that are not reached.

    Empty for a class without objects.
    """
    if not matches.objects:
        return []
    best = np.maximum.accumulate(matches.precisions[::-1])[::-1]
    needed = -(-np.arange(POINTS) * matches.objects // (POINTS - 1))
    places = np.searchsorted(np.cumsum(matches.right), needed)
    return [float(best[place]) if place < len(best) else 0.0 for place in places]


def worst_pictures(
    found: Sequence[Detections], samples: DetectionSamples, thresholds: Mapping[str, float], *, most: int
) -> list[Errors]:
    """Return at most `most` pictures with the most missed objects and wrong detections, the worst first.

    Detections count from the threshold of their class on, a probability; from 0.5 on if it has none.
    """
    limits = np.array([thresholds.get(name, 0.5) for name in samples.classes])
    rows: list[Errors] = []
    for picture, (objects, all_found) in enumerate(zip(samples.objects, found, strict=True)):
        kept = all_found.subset(all_found.scores >= limits[all_found.labels])
        missed, wrong = _errors(objects, kept)
        if missed or wrong:
            rows.append(Errors(picture, missed, wrong, kept))
    return sorted(rows, key=lambda one: -(one.missed + one.wrong))[:most]


def _errors(objects: Objects, found: Detections) -> tuple[int, int]:
    """Return the numbers of missed objects and of wrong detections in one picture."""
    given = verdicts(objects, found.subset(np.argsort(-found.scores, kind="stable")), LEAST_OVERLAP)
    return int(objects.trained.sum()) - int((given == 1).sum()), int((given == 0).sum())


def as_plain(errors: Errors, samples: DetectionSamples) -> dict[str, Any]:
    """Return a picture with its errors as plain values, for the state of a run."""
    objects, found = samples.objects[errors.picture], errors.found
    return {
        "path": str(samples.paths[errors.picture]),
        "missed": errors.missed,
        "wrong": errors.wrong,
        "objects": [objects.boxes.tolist(), objects.labels.tolist()],
        "found": [found.boxes.tolist(), found.labels.tolist(), found.scores.tolist()],
    }
