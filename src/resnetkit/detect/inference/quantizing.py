"""The first graph of a detector in 8-bit integers, kept only if the average precision stays."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.detection.samples import Detections, DetectionSamples
from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.detect.evaluate import as_classes, decoded, find_all
from resnetkit.detect.inference.finders import GraphFinder
from resnetkit.detect.run import open_as_trained
from resnetkit.errors import DataError
from resnetkit.evaluation.detection.measures import DetectionEvaluation, measure
from resnetkit.infer.backends.several_outputs import open_graph
from resnetkit.infer.choice import Choice, usable_threads
from resnetkit.infer.quantizing.quantize import Quantized, quantize
from resnetkit.modelfile import Header

CALIBRATION = 100
"""Most pictures that calibrate."""
MOST_JUDGED, FEW_JUDGED = 300, 100
"""Most pictures that judge, and most of them for a quick result."""
SEED = 0


@dataclass(frozen=True)
class DetectionVerdict:
    """The average precision of a detector computed in another precision, compared with float32."""

    images: int
    ap50_percent: float
    ap50_loss: float
    """AP50 in float32 minus AP50, in percentage points."""
    ap_percent: float | None
    """COCO's AP; None without faster-coco-eval."""
    ap_loss: float | None
    passes: bool
    """Whether neither loss is more than what is allowed."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Such as `AP50 87.10 % (-0.12), AP 55.02 % (+0.05) on 87 pictures`."""
        coco = "" if self.ap_percent is None else f", AP {self.ap_percent:.2f} % ({-(self.ap_loss or 0) + 0.0:+.2f})"
        return f"AP50 {self.ap50_percent:.2f} % ({-self.ap50_loss + 0.0:+.2f}){coco} on {self.images} pictures"


@dataclass(frozen=True)
class PrecisionCheck:
    """A check that a detector in another precision has nearly the same average precision as in float32."""

    samples: DetectionSamples
    """Pictures that did not train the detector, with labels of its classes."""
    reference: DetectionEvaluation
    """The measures in float32."""
    max_ap_loss: float

    def judge(self, found: Sequence[Detections]) -> DetectionVerdict:
        """Compare what was found in the pictures in another precision."""
        now, before = measured(found, self.samples), self.reference
        loss = before.ap50_percent - now.ap50_percent
        coco = None if now.ap_percent is None or before.ap_percent is None else before.ap_percent - now.ap_percent
        passes = loss <= self.max_ap_loss + 1e-9 and (coco is None or coco <= self.max_ap_loss + 1e-9)
        return DetectionVerdict(len(self.samples), now.ap50_percent, loss, now.ap_percent, coco, passes)


@dataclass(frozen=True)
class JudgingPictures:
    """Pictures that judge the average precision, and others that calibrate."""

    judged: DetectionSamples
    calibration: tuple[Path, ...]
    about: str


def read_judging(
    header: Header, data: str, calibrate: str | None = None, *, most: int = MOST_JUDGED
) -> JudgingPictures:
    """Choose pictures of `data`, which has boxes: of its val part, or else its test part, up to `most` judge.

    Up to CALIBRATION of its train part calibrate, or of `calibrate`. Raises DataError if there are no such pictures.
    """
    dataset = open_as_trained(data, header)
    judging = dataset.val or dataset.test
    if judging is None or not any(map(len, judging.objects)):
        raise DataError(f"{data} has no val and no test pictures with boxes, which judge the average precision")
    other = dataset.train if calibrate is None else open_as_trained(calibrate, header).train
    if other is None or not len(other):
        raise DataError(f"{calibrate or data} has no training pictures, which calibrate 8-bit integers")
    judged = as_classes(_some(judging, most), header.classes)
    calibration = _some(other, CALIBRATION).paths
    part = "val" if dataset.val else "test"
    return JudgingPictures(
        judged, calibration, f"judged by {len(judged)} {part} pictures; calibrated with {len(calibration)} others"
    )


def _some(samples: DetectionSamples, most: int) -> DetectionSamples:
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(samples))[:most])
    return replace(
        samples,
        paths=tuple(samples.paths[place] for place in chosen),
        sizes=tuple(samples.sizes[place] for place in chosen),
        objects=tuple(samples.objects[place] for place in chosen),
    )


def measured(found: Sequence[Detections], samples: DetectionSamples) -> DetectionEvaluation:
    """Measure, with COCO's AP if faster-coco-eval is installed."""
    return measure(found, samples, coco=find_spec("faster_coco_eval") is not None)


def find_in(finder: Callable[[NDArray[np.uint8]], Detections], samples: DetectionSamples) -> list[Detections]:
    """Return what is found in each picture; nothing in one that can't be read."""
    found, _ = find_all(finder, samples, workers=usable_threads(), strict=False, advance=lambda done: None)
    return found


def calibration_inputs(finder: GraphFinder, paths: Sequence[Path]) -> list[NDArray[np.float32]]:
    """Return the inputs of the first graph for pictures, float32 (3, h, w). Raises DataError if none can be read."""
    reading = prefetch(decoded, paths, workers=usable_threads(), ahead=8)
    inputs = [finder.batch(pixels).tensors[0].numpy() for pixels in reading if not isinstance(pixels, Failure)]
    if not inputs:
        raise DataError(f"none of the {len(paths)} pictures for the calibration can be read; see resnetkit data check")
    return inputs


def quantize_detector(
    file: Path,
    target: Path,
    finder: GraphFinder,
    pictures: JudgingPictures,
    check: PrecisionCheck,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Quantized[DetectionVerdict]:
    """Write the first graph of a detector, at `file`, to `target` in 8-bit integers, and judge it.

    `finder` computes the detector in float32; its second graph stays in float. Layers that cost too much average
    precision are left in float: see `quantize`. The graph stays at `target` even if its verdict does not pass.
    Raises UsageError without NNCF, ExportError if NNCF fails.
    """
    choice = Choice("openvino", "int8")

    def judge(graph: Path) -> DetectionVerdict:
        integers = GraphFinder(finder.header, open_graph(choice, graph), finder.regions)
        return check.judge(find_in(integers, check.samples))

    return quantize(file, target, calibration_inputs(finder, pictures.calibration), judge, say=say)
