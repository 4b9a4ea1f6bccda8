"""A detector that is served: boxes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resnetkit.data.detection.samples import Detections
from resnetkit.data.prefetch import Failure
from resnetkit.display import printable
from resnetkit.errors import UsageError
from resnetkit.infer.choice import Choice
from resnetkit.infer.signature import Signature
from resnetkit.serve.card import card_of
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.opened import Pixels

if TYPE_CHECKING:
    from resnetkit.detect.predict import DetectorPredictor
    from resnetkit.infer.explain import Explanation


@dataclass(frozen=True)
class Found:
    """What was found in one picture."""

    width: int
    """Of the upright picture, in pixels; so is the height."""
    height: int
    detections: Detections
    """All, also those below the thresholds."""


class OpenedDetector:
    """A model that finds objects; see `Opened`. What it finds in a picture is a `Found`."""

    batch_size = 1  # pictures have many sizes, and two at a time are not faster on a CPU

    def __init__(self, finder: "DetectorPredictor") -> None:
        self.finder = finder
        self.streams = max(1, finder.choice.streams)

    @property
    def choice(self) -> Choice:
        """How it is computed."""
        return self.finder.choice

    @property
    def signature(self) -> Signature:
        """The names, types and shapes of its inputs and outputs."""
        return Signature.of(self.finder.header)

    def warm_up(self) -> None:
        """Compute once in each stream, and count the parameters for the card."""
        size = self.finder.header.preprocess.size
        with ThreadPoolExecutor(self.streams) as pool:
            list(pool.map(self.finder.compute, [np.zeros((size, size, 3), np.uint8)] * self.streams))
        _ = self.finder.parameters

    def decode(self, picture: bytes) -> Pixels | Failure:
        """Return an upright picture, uint8 (h, w, 3), or why it can't be read."""
        return self.finder.decode(picture)

    def compute(self, pictures: Sequence[Pixels]) -> Sequence[Found]:
        """Return what is found in each picture."""
        writable = (one if one.flags.writeable else one.copy() for one in pictures)  # for torch: a tensor of a request
        return [Found(one.shape[1], one.shape[0], self.finder.compute(one)) for one in writable]

    def answer(self, found: Found, threshold: float | None) -> dict[str, Any]:
        """Return the answer for a picture, {"width", "height", "detections": [{"label", "index", "score", "box"}]}."""
        detections = self.finder.name(found.detections, threshold=threshold)
        return {"width": found.width, "height": found.height, "detections": detections}

    def explain(self, picture: bytes, *, label: str | int | None) -> "Explanation":
        """Raise UsageError: the boxes say where the objects are."""
        raise UsageError("a detector gives no explanations: its boxes say where the objects are")

    def note(self, found: Sequence[Found], metrics: Metrics, name: str) -> None:
        """Count the detections that reach the thresholds of the model file, whatever the request's."""
        for one in found:
            labels = self.finder.kept(one.detections).labels
            metrics.detections_per_picture.labels(name).observe(len(labels))
            for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
                metrics.detections.labels(name, printable(self.finder.classes[label])).inc(int(count))

    def note_drift(self, metrics: Metrics, name: str) -> None:
        """Do nothing: the model file has no values of its validation to compare with."""

    def card(self, name: str) -> dict[str, Any]:
        """Return the card of the model: classes, thresholds, network, sizes of pictures, measures, licence."""
        finder = self.finder
        header, spec = finder.header, finder.header.detector.get("spec", {})
        shared = card_of(name, header, choice=finder.choice, fingerprint=finder.fingerprint)
        return shared | {
            "multilabel": False,
            "thresholds": finder.thresholds.tolist(),
            "can_reject": False,
            "can_explain": False,
            "parameters": finder.parameters,
            "head": spec.get("head"),
            "least_score": spec.get("score_threshold"),
            "most_detections": spec.get("most_detections"),
            "pictures": f"resized to {header.preprocess.size} × {spec.get('longest')} pixels at most; colour",
            "calibration": None,
        }
