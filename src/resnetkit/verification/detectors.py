"""A detector: what training's evaluation finds in pictures, beside `detect predict` and a server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from resnetkit.data.prefetch import Failure
from resnetkit.detect.evaluate import find
from resnetkit.detect.files import load_detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.run import open_as_trained
from resnetkit.errors import DataError, ResnetkitError
from resnetkit.evaluation.detection.overlap import overlaps
from resnetkit.files import expanded
from resnetkit.infer.unloaded import find_model
from resnetkit.location import LocalFile, locate
from resnetkit.modelfile import Header
from resnetkit.serve.client import Client
from resnetkit.train.recipe import Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder
from resnetkit.verification.pictures import DRAWN, draw_pictures, pictures_in, some_of

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
        scores, edges, other = [0.0], [0.0], 0
        for one, another in zip(expected, found, strict=True):
            pairs = _pairs(one, another)
            for first, second in pairs:
                scores.append(abs(one[first]["score"] - another[second]["score"]))
                edges.append(float(np.abs(np.subtract(one[first]["box"], another[second]["box"])).max()))
            for objects, paired in ((one, {a for a, _ in pairs}), (another, {b for _, b in pairs})):
                alone = [object_ for place, object_ in enumerate(objects) if place not in paired]
                other += sum(abs(a["score"] - thresholds[a["index"]]) > CLOSE_SCORE for a in alone)
        count = sum(map(len, expected))
        if precision == "float32":
            digits = 1e-9  # of the sums of rounded numbers
            agrees = not other and max(scores) <= close[0] + digits and max(edges) <= close[1] + digits
        else:
            agrees = other <= max(1, 2 * (1 - LEAST_SHARE) * count)
        return cls(count, other, max(scores), max(edges), precision, agrees)


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

    @property
    def agrees(self) -> bool:
        """Whether the objects are the same to the digits of an answer."""
        return self.way.agrees

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**vars(self), "way": _plain(self.way), "agrees": self.agrees}


@dataclass(frozen=True)
class DetectorVerification:
    """The receipt."""

    pictures: int
    of: str
    """Where the pictures come from, for people."""
    ways: Mapping[str, Way]
    left_out: Mapping[str, str]
    """Ways that could not be tried, with the reasons."""
    served: ServedDetector | None = None

    @property
    def agrees(self) -> bool:
        """Whether all ways agree."""
        return all(way.agrees for way in self.ways.values()) and (self.served is None or self.served.agrees)

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as plain values for JSON."""
        return {
            "pictures": self.pictures,
            "of": self.of,
            "ways": {name: _plain(way) for name, way in self.ways.items()},
            "left_out": dict(self.left_out),
            "served": self.served and self.served.to_dict(),
            "agrees": self.agrees,
        }


def verify_detector(
    model: str | Path, data: str | Path | None, *, client: Client | None, say: Callable[[str], None]
) -> DetectorVerification:
    """Compare what training's evaluation finds with `detect predict` and, with `client`, a server; see `verify`.

    Raises DataError if no picture can be read or the server can't be asked, ModelFileError for a broken file.
    """
    with TemporaryDirectory(prefix="resnetkit-verify-") as folder:
        loaded = load_detector(model)
        paths, of = _pictures(model, loaded.header, data, Path(folder))
        say(f"{len(paths):,} pictures: {of}")
        predictor = DetectorPredictor(model, may_export=False)  # torch, unless graphs were made for predictions
        thresholds = predictor.thresholds.tolist()
        pixels = [predictor.decode(path) for path in paths]
        paths = [path for path, one in zip(paths, pixels, strict=True) if not isinstance(one, Failure)]
        readable = [one for one in pixels if not isinstance(one, Failure)]
        if not readable:
            raise DataError(f"none of the pictures {of} can be read")
        expected = [predictor.name(find(loaded.net, one)) for one in readable]
        say("comparing detect predict")
        found = [predictor.name(predictor.compute(one)) for one in readable]
        ways = {"detect predict": Way.of(expected, found, thresholds, precision=predictor.choice.precision)}
        left_out: dict[str, str] = {}
        served = None
        if client is not None:
            say(f"asking {client.url}")
            card, same = _card(client, find_model(model).fingerprint)
            answers, errors = _ask(client, card, paths)
            precision = card["choice"]["precision"]
            ways["served"] = Way.of(expected, answers, thresholds, precision=precision)
            if errors:
                left_out["served"] = f"{len(errors):,} of the pictures were not answered; {errors[0]}"
            if card["choice"] == predictor.choice.to_dict():
                exact = Way.of(found, answers, thresholds, close=(SAME_SCORE, SAME_EDGE))
                served = ServedDetector(client.url, card["name"], card["computed_by"], same, exact)
            else:
                left_out["detect predict as the server"] = f"it is computed by {card['computed_by']}"
    return DetectorVerification(len(paths), of, ways, left_out, served)


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


def _card(client: Client, fingerprint: str) -> tuple[Mapping[str, Any], bool]:
    """Return the card of the model with this fingerprint and True; else that of the first detector and False."""
    cards = client.models()
    for card in cards:
        if card.get("fingerprint") == fingerprint:
            return card, True
    for card in cards:
        if card.get("kind") == "detector":
            return card, False
    raise DataError(f"{client.url} serves no detector, but {', '.join(str(card.get('name')) for card in cards)}")


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


def _pictures(model: str | Path, header: Header, data: str | Path | None, folder: Path) -> tuple[list[Path], str]:
    """Return the files to compare on, and where they come from."""
    if data is not None:
        path = expanded(data)
        paths = pictures_in(path) if path.is_dir() else _of_dataset(str(data), header)
        if not paths:
            raise DataError(f"{data} has no picture files to compare on; give a folder of pictures")
        return some_of(paths, MOST_PICTURES), f"of {data}"
    located = locate(model)
    run = RunFolder(located.path.parent) if isinstance(located, LocalFile) else None
    if run and run.recipe.is_file():
        try:
            place = read_recipe(run.recipe, Recipe())[1].get("data")
            val = open_as_trained(str(place), header).val if place else None
            if val is not None:
                return some_of(val.paths, MOST_PICTURES), f"the val part of {place}, which the run did not train on"
        except ResnetkitError:
            pass
    return draw_pictures(folder / "drawn", header.preprocess), DRAWN


def _of_dataset(data: str, header: Header) -> Sequence[Path]:
    return open_as_trained(data, header).part("auto")[1].paths


def _plain(way: Way) -> dict[str, Any]:
    return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in vars(way).items()}
