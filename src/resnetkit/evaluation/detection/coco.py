"""COCO's average precision, computed by faster-coco-eval, which the extra `detect` installs."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections, DetectionSamples
from resnetkit.errors import UsageError

NOTHING_FOUND = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 0.0, 0.0], "score": 0.0}
"""A detection that overlaps nothing: the library can't load an empty list."""
NOT_INSTALLED = "COCO's average precision needs faster-coco-eval: pip install 'resnetkit[detect]'"


@dataclass(frozen=True)
class CocoPrecision:
    """COCO's measures, 0 to 1; NaN where there are no objects, such as small ones."""

    ap: float
    """Mean over the overlaps 0.5, 0.55, ... 0.95 and all classes."""
    ap50: float
    """At an overlap of 0.5: the mean of the precisions at 101 recalls."""
    ap75: float
    ap_small: float
    """Of objects of less than 32² square pixels."""
    ap_medium: float
    ap_large: float
    """Of objects of more than 96² square pixels."""
    per_class: Mapping[str, float]
    """Class -> `ap` of this class."""


def coco_precision(samples: DetectionSamples, detections: Sequence[Detections]) -> CocoPrecision:
    """Return COCO's measures of detections, one for each picture of `samples`, of which 100 in each picture count.

    Difficult objects are given to COCO's rule as crowds: detections of them are not errors.

    Raises UsageError without faster-coco-eval, and ValueError if there are more or fewer detections than pictures.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UsageError(NOT_INSTALLED) from error
    if len(detections) != len(samples):
        raise ValueError(f"{len(detections)} detections of {len(samples)} pictures")
    results = as_coco_results(detections) or [NOTHING_FOUND]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(as_coco(samples))
        measured = COCOeval_faster(truth, truth.loadRes(results), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    precision: Any = measured.eval["precision"]  # (overlaps, recalls, classes, sizes, most detections), -1: no objects
    of_classes = np.moveaxis(precision[:, :, :, 0, -1], 2, 0)
    ap, ap50, ap75, small, medium, large = (_known(np.array(value)) for value in measured.stats[:6])
    per_class = {name: _known(values) for name, values in zip(samples.classes, of_classes, strict=True)}
    return CocoPrecision(ap, ap50, ap75, small, medium, large, per_class)


def _known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not -1, which stands for no objects; NaN without one."""
    return float(values[values > -1].mean()) if (values > -1).any() else float("nan")


def as_coco(samples: DetectionSamples) -> dict[str, Any]:
    """Return pictures and objects in the form of COCO's annotations; the ids of pictures and classes are from 1."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(samples.objects, 1):
        ignored = ~objects.trained
        columns = (objects.boxes.tolist(), objects.labels.tolist(), objects.areas.tolist(), ignored.tolist())
        for (left, top, right, bottom), label, area, crowd in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return {
        "info": {},
        "images": [
            {"id": image, "width": width, "height": height} for image, (width, height) in enumerate(samples.sizes, 1)
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(samples.classes, 1)],
        "annotations": annotations,
    }


def as_coco_results(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Return detections in the form of COCO's results, with the ids of `as_coco`."""
    return [
        {
            "image_id": image,
            "category_id": label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for image, found in enumerate(detections, 1)
        for (left, top, right, bottom), label, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True
        )
    ]
