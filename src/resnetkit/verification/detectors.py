"""A detector: what training's evaluation finds in pictures, beside `detect predict` and a server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeAlias

import numpy as np

from resnetkit.data.prefetch import Failure
from resnetkit.detect.evaluate import find
from resnetkit.detect.files import load_detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.run import open_as_trained
from resnetkit.errors import DataError, ResnetkitError
from resnetkit.evaluation.detection.overlap import overlaps
from resnetkit.infer.choice import Choice
from resnetkit.infer.unloaded import find_model
from resnetkit.modelfile import Header
from resnetkit.serve.client import Client
from resnetkit.verification.agreement import Receipt, find_card, rounded
from resnetkit.verification.pictures import pictures_for

MOST_PICTURES = 50
"""Most pictures that are compared: a detector takes much longer than a classifier."""
CLOSE_SCORE, CLOSE_EDGE = 1e-3, 0.1
"""Largest differences of a score, and of an edge in pixels, by rounding in float32; many times what is usual."""
SAME_SCORE, SAME_EDGE = 1e-6, 0.01
"""The digits of an answer, by which a server and `detect predict` of the same backend may differ at most."""
LEAST_OVERLAP = 0.5
"""Intersection over union of two boxes of a class that are the same object."""
LEAST_SHARE = 0.9
"""Share of the objects that must be the same in bfloat16 or 8-bit integers, whose accuracy tuning has checked."""
Objects: TypeAlias = Sequence[Mapping[str, Any]]
"""The detections of a picture, as `DetectorPredictor.name` gives them."""


@dataclass(frozen=True)
class Way:
    """How the objects that one way finds differ from those of training's evaluation."""

    objects: int
    """Number that training's evaluation finds."""
    other_objects: int
    """Number that only one of the two finds, without those whose score is within CLOSE_SCORE of their threshold."""
    largest_score_difference: float
    largest_edge_difference: float
    """Of the boxes of an object, in pixels."""
    precision: str
    agrees: bool

    @classmethod
    def of(
        cls,
        expected: Sequence[Objects],
        found: Sequence[Objects],
        thresholds: Sequence[float],
        *,
        precision: str = "float32",
        close: tuple[float, float] = (CLOSE_SCORE, CLOSE_EDGE),
    ) -> "Way":
        """Compare the objects in pictures; `close` are the largest differences of a score and an edge in float32."""
        scores, edges, alone = [0.0], [0.0], [0, 0]
        for one, another in zip(expected, found, strict=True):
            pairs = _pairs(one, another)
            for first, second in pairs:
                scores.append(abs(one[first]["score"] - another[second]["score"]))
                edges.append(float(np.abs(np.subtract(one[first]["box"], another[second]["box"])).max()))
            for side, objects, paired in ((0, one, {a for a, _ in pairs}), (1, another, {b for _, b in pairs})):
                rest = [object_ for place, object_ in enumerate(objects) if place not in paired]
                alone[side] += sum(_is_clear(object_, thresholds) for object_ in rest)
        count, other = sum(map(len, expected)), sum(alone)
        if precision == "float32":
            digits = 1e-9  # of the sums of rounded numbers
            agrees = not other and max(scores) <= close[0] + digits and max(edges) <= close[1] + digits
        else:
            agrees = other <= 1 or max(alone) <= (1 - LEAST_SHARE) * count + 1e-9
        return cls(count, other, max(scores), max(edges), precision, agrees)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return rounded(vars(self))


@dataclass(frozen=True)
class ServedDetector:
    """How the answers of a server differ from `detect predict`."""

    url: str
    model: str
    """Its name on the server."""
    computed_by: str
    same_file: bool
    """Whether the server has the same model file."""
    way: Way
    verb: ClassVar[str] = "detect predict"

    @property
    def differences(self) -> str:
        """What differs, for people."""
        way = self.way
        return (
            f"the largest differences are {way.largest_score_difference:.1e} (score) and "
            f"{way.largest_edge_difference:.1e} pixels (edge), and {way.other_objects:,} objects are others"
        )

    @property
    def agrees(self) -> bool:
        """Whether the objects are the same to the digits of an answer."""
        return self.way.agrees

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**vars(self), "way": self.way.to_dict(), "agrees": self.agrees}


class DetectorVerification(Receipt[Way, ServedDetector]):
    """The receipt of a detector."""


def verify_detector(
    model: str | Path, data: str | Path | None, *, client: Client | None, say: Callable[[str], None]
) -> DetectorVerification:
    """Compare what training's evaluation finds with `detect predict` and, with `client`, a server; see `verify`.

    Raises DataError if no picture can be read or the server can't be asked, ModelFileError for a broken file.
    """
    with TemporaryDirectory(prefix="resnetkit-verify-") as folder:
        loaded = load_detector(model)
        header = loaded.header
        paths, of = pictures_for(
            model,
            data,
            Path(folder),
            header.preprocess,
            listed=lambda name: _listed(name, header),
            held_out=lambda name: _held_out(name, header),
            most=MOST_PICTURES,
        )
        say(f"{len(paths):,} pictures: {of}")
        predictor = DetectorPredictor(model, may_export=False)  # torch, unless graphs were made for predictions
        thresholds = predictor.thresholds.tolist()
        say("comparing detect predict")
        read: list[Path] = []
        expected: list[Objects] = []
        found: list[Objects] = []
        for path in paths:  # one at a time, since photographs are large
            pixels = predictor.decode(path)
            if isinstance(pixels, Failure):
                continue
            read.append(path)
            expected.append(predictor.name(find(loaded.net, pixels)))
            found.append(predictor.name(predictor.compute(pixels)))
        if not read:
            raise DataError(f"none of the pictures {of} can be read")
        ways = {"detect predict": Way.of(expected, found, thresholds, precision=predictor.choice.precision)}
        left_out: dict[str, str] = {}
        served = None
        if client is not None:
            say(f"asking {client.url}")
            card, same = find_card(client, find_model(model).fingerprint, "detector")
            answers, errors = _ask(client, card, read)
            ways["served"] = Way.of(expected, answers, thresholds, precision=card["choice"]["precision"])
            if errors:
                ways["served"] = replace(ways["served"], agrees=False)
                left_out["served"] = f"{len(errors):,} of the pictures were not answered; {errors[0]}"
            try:
                served = _beside_predict(model, client.url, card, same, answers, read)
            except ResnetkitError as error:
                left_out["detect predict as the server"] = str(error)
    return DetectorVerification(len(read), of, ways, left_out, served)


def _beside_predict(
    model: str | Path,
    url: str,
    card: Mapping[str, Any],
    same: bool,
    answers: Sequence[Objects],
    paths: Sequence[Path],
) -> ServedDetector:
    """Compare the answers of a server with `detect predict` by the server's backend, precision, threads and streams.

    Raises UsageError or ExportError if the server's backend can't be used here.
    """
    choice = Choice.from_dict(card["choice"])
    predictor = DetectorPredictor(
        model,
        backend=choice.backend,
        precision=choice.precision,
        threads=choice.threads,
        streams=choice.streams,
        goal="throughput",
    )
    found = [predictor(path).get("detections", ()) for path in paths]
    way = Way.of(found, answers, predictor.thresholds.tolist(), close=(SAME_SCORE, SAME_EDGE))
    return ServedDetector(url, card["name"], str(predictor.choice), same, way)


def _is_clear(found: Mapping[str, Any], thresholds: Sequence[float]) -> bool:
    """Return whether an object's score is not just at the threshold of its class.

    The classes of another model may be more than the thresholds.
    """
    place = found["index"]
    return place >= len(thresholds) or abs(found["score"] - thresholds[place]) > CLOSE_SCORE


def _pairs(one: Objects, another: Objects) -> list[tuple[int, int]]:
    """Return the places of the same objects in two lists: for each of `one`, the best box of its class that is left."""
    if not one or not another:
        return []
    boxes = [np.array([object_["box"] for object_ in objects], np.float64) for objects in (one, another)]
    shares = overlaps(boxes[0], boxes[1])
    shares[np.array([a["index"] for a in one])[:, None] != np.array([b["index"] for b in another])[None]] = 0
    pairs: list[tuple[int, int]] = []
    for first in range(len(one)):
        second = int(shares[first].argmax())
        if shares[first, second] >= LEAST_OVERLAP:
            pairs.append((first, second))
            shares[:, second] = 0
    return pairs


def _ask(client: Client, card: Mapping[str, Any], paths: Sequence[Path]) -> tuple[list[Objects], list[str]]:
    """Return the objects in each picture, none in one that was not answered, and why such were not."""
    found: list[Objects] = []
    errors: list[str] = []
    for path in paths:
        answer = client.find(path.read_bytes(), model=card["name"])
        if "detections" not in answer:
            errors.append(f"{path}: {answer.get('error')}")
        found.append(answer.get("detections", ()))
    return found, errors


def _held_out(data: str, header: Header) -> tuple[Sequence[Path], str] | None:
    val = open_as_trained(data, header).val
    return None if val is None else (val.paths, f"the val part of {data}")


def _listed(data: str, header: Header) -> Sequence[Path]:
    return open_as_trained(data, header).part("auto")[1].paths
