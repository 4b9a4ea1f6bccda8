"""What a detector is worth on pictures with known objects: average precisions, kinds of errors, thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnetkit.data.detection.samples import Detections, DetectionSamples
from resnetkit.display import count, line
from resnetkit.evaluation.detection.average_precision import average_precision, average_precision_11_points
from resnetkit.evaluation.detection.coco import CocoPrecision, coco_precision
from resnetkit.evaluation.detection.error_kinds import ErrorKind, Errors, error_kinds
from resnetkit.evaluation.detection.matching import Matches, match
from resnetkit.evaluation.detection.thresholds import Threshold, best_threshold


@dataclass(frozen=True)
class DetectionEvaluation:
    """The measures of a detector on some pictures. A class without objects has no average precision: NaN."""

    classes: tuple[str, ...]
    images: int
    matches: tuple[Matches, ...]
    """For each class, which detections found an object, at an overlap of 0.5: the curve of precision over recall."""
    errors: Mapping[ErrorKind, Errors]
    coco: CocoPrecision | None = None
    """COCO's measures; None if they were not asked for."""

    def __repr__(self) -> str:
        ap50 = f"AP50 {self.ap50_percent:.2f} %"
        ap = f"AP {self.ap_percent:.2f} %" if self.ap_percent is not None else ""
        return line(type(self), count(self.images, "picture"), ap50, ap)

    @property
    def ap50_percent(self) -> float:
        """The mean of `average_precision` (VOC's rule from 2010 on, overlap 0.5) over the classes with objects."""
        return _mean_percent([average_precision(one) for one in self.matches])

    @property
    def voc07_percent(self) -> float:
        """The mean of `average_precision_11_points` over the classes with objects."""
        return _mean_percent([average_precision_11_points(one) for one in self.matches])

    @property
    def ap_percent(self) -> float | None:
        """COCO's average precision, over the overlaps 0.5 to 0.95; None if it was not asked for."""
        return None if self.coco is None else 100 * self.coco.ap

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """Class -> the score from which its detections have the largest F1; classes without right ones are left out."""
        found = {name: best_threshold(one) for name, one in zip(self.classes, self.matches, strict=True)}
        return {name: threshold for name, threshold in found.items() if threshold is not None}

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """Class -> its objects, detections, average precisions and best threshold, for JSON."""
        thresholds = self.thresholds
        rows: dict[str, dict[str, Any]] = {}
        for name, one in zip(self.classes, self.matches, strict=True):
            row: dict[str, Any] = {
                "objects": one.objects,
                "detections": len(one.scores),
                "ap50_percent": 100 * average_precision(one),
                "voc07_percent": 100 * average_precision_11_points(one),
            }
            if self.coco is not None:
                row["ap_percent"] = 100 * self.coco.per_class[name]
            if name in thresholds:
                at = thresholds[name]
                row |= {
                    "threshold": at.score,
                    "precision_percent": 100 * at.precision,
                    "recall_percent": 100 * at.recall,
                    "f1_percent": 100 * at.f1,
                }
            rows[name] = row
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the measures as plain values, for JSON."""
        values: dict[str, Any] = {"images": self.images, "ap50_percent": self.ap50_percent}
        values["voc07_percent"] = self.voc07_percent
        if self.coco is not None:
            of_coco = {name: value for name, value in vars(self.coco).items() if name != "per_class"}
            values["ap_percent"] = self.ap_percent
            values["coco"] = {f"{name}_percent": 100 * value for name, value in of_coco.items()}
        values["errors"] = {
            kind: {"count": one.count, "gain_percent": 100 * one.gain} for kind, one in self.errors.items()
        }
        return values | {"per_class": self.per_class}


def measure(found: Sequence[Detections], samples: DetectionSamples, *, coco: bool = False) -> DetectionEvaluation:
    """Return the measures of detections, one for each picture of `samples`; with `coco`, those of COCO, too.

    For COCO's measures, give all detections with a low score, too: a threshold lowers every average precision.

    Raises UsageError if `coco` is asked for without faster-coco-eval, and ValueError if the numbers differ.
    """
    if len(found) != len(samples):
        raise ValueError(f"{len(found)} detections of {len(samples)} pictures")
    return DetectionEvaluation(
        samples.classes,
        len(samples),
        match(samples.objects, found, len(samples.classes)),
        error_kinds(samples.objects, found, len(samples.classes)),
        coco_precision(samples, found) if coco else None,
    )


def _mean_percent(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN, in percent; NaN without one."""
    known = [value for value in values if not np.isnan(value)]
    return 100 * float(np.mean(known)) if known else float("nan")
