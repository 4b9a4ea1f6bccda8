"""A classifier: training's evaluation, predictions, exported files, tuned graphs and a server compared on pictures."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.parts import choose_part, open_as_trained
from resnetkit.data.samples import Samples
from resnetkit.errors import ExportError, ResnetkitError
from resnetkit.evaluation.evaluate import evaluate_labels, evaluate_net
from resnetkit.infer.answers import Answer
from resnetkit.infer.choice import Choice, Goal, installed
from resnetkit.infer.exports.export import export
from resnetkit.infer.exports.formats import FILE_FORMATS, Format
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.tuning.record import find_tuned
from resnetkit.infer.unloaded import find_model
from resnetkit.modelfile import Model, load
from resnetkit.serve.client import Client
from resnetkit.verification.agreement import Receipt, find_card, rounded
from resnetkit.verification.pictures import pictures_for

EXACT = 1e-3
"""Largest difference of a probability that rounding in float32 makes; many times what is usual."""
SAME = 1e-6
"""Largest difference of a probability between a server and `predict` by the same backend."""
TUNED_SHARE = 0.02
"""Share of pictures whose best class may differ in bfloat16 or 8-bit integers, whose accuracy tuning has checked."""


@dataclass(frozen=True)
class Way:
    """How one way to predict differs from training's evaluation."""

    largest_difference: float
    """The largest difference of a probability of a class in a picture."""
    other_best_class: int
    """Number of pictures with another best class; two classes whose probabilities differ by less than EXACT are equal.
    Of a multi-label model: with other labels, without those whose probability is within EXACT of the threshold."""
    precision: str
    agrees: bool

    @classmethod
    def of(
        cls,
        expected: NDArray[np.float32],
        found: NDArray[np.float32],
        precision: str,
        thresholds: NDArray[np.float32] | None = None,
    ) -> "Way":
        """Compare probabilities (n, classes); `thresholds` (classes,) are those of a multi-label model."""
        if found.shape != expected.shape or not np.isfinite(found).all():
            return cls(1.0, len(expected), precision, agrees=False)
        largest = float(np.abs(found - expected).max())
        if thresholds is None:
            chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
            other = int((expected.max(axis=1) - chosen > EXACT).sum())
        else:
            differ = ((expected >= thresholds) != (found >= thresholds)) & (np.abs(expected - thresholds) > EXACT)
            other = int(differ.any(axis=1).sum())
        if precision == "float32":
            return cls(largest, other, precision, agrees=largest <= EXACT and not other)
        return cls(largest, other, precision, agrees=other <= max(1, TUNED_SHARE * len(expected)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return rounded(vars(self))


@dataclass(frozen=True)
class Served:
    """How the answers of a server differ from `predict` with the same backend, precision, threads and streams."""

    url: str
    model: str
    """Its name on the server."""
    computed_by: str
    """Backend, precision, threads and streams of both."""
    same_file: bool
    """Whether the server has the same model file."""
    largest_difference: float
    """The largest difference of a probability of a class in a picture."""
    other_rejections: int
    """Number of pictures that only one of them rejects."""
    verb: ClassVar[str] = "predict"

    @property
    def differences(self) -> str:
        """What differs, for people."""
        return (
            f"the largest difference is {self.largest_difference:.1e}, and {self.other_rejections:,} rejections differ"
        )

    @property
    def agrees(self) -> bool:
        """Whether no probability differs by more than SAME, and no rejection."""
        return self.largest_difference <= SAME and not self.other_rejections

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return rounded(vars(self)) | {"agrees": self.agrees}


class Verification(Receipt[Way, Served]):
    """The receipt of a classifier."""


def verify_classifier(
    model: str | Path, data: str | Path | None, *, client: Client | None, say: Callable[[str], None]
) -> Verification:
    """Compare all ways to predict with training's evaluation, picture by picture.

    The ways are `predict` as it computes by default and by each backend that is installed, the choices of `tune`, and
    files that `export` writes for this comparison. `data` is a folder or a data set; labels are not needed. Without it,
    the pictures are those of the run's validation part, if the model is in a run folder whose data are there; else they
    are drawn. `say` is called with a line before each way.

    With `client`, the answers of a server of `resnetkit serve` are one more way. They are also compared with `predict`
    by the same backend, rejections included.

    Raises DataError if no picture can be read or the server can't be asked, and the errors of `load`.
    """
    loaded = load(model)
    with TemporaryDirectory(prefix="resnetkit-verify-") as folder:
        paths, of = pictures_for(
            model,
            data,
            Path(folder),
            loaded.header.preprocess,
            listed=lambda name: _listed(name, loaded),
            held_out=lambda name: _held_out(name, loaded),
        )
        say(f"{len(paths):,} pictures: {of}")
        samples = Samples(loaded.header.classes, np.zeros(len(paths), np.int64), paths=tuple(paths))
        expected, read = _evaluated(loaded, samples)
        paths = [paths[place] for place in read]
        ways: dict[str, Way] = {}
        left_out: dict[str, str] = {}
        for name, (precision, compute) in _ways(model, loaded, Path(folder)).items():
            say(f"comparing {name}")
            try:
                with warnings.catch_warnings(action="ignore"):
                    ways[name] = Way.of(expected, compute(paths), precision, Answer.of(loaded.header).thresholds)
            except ResnetkitError as error:
                if isinstance(error, ExportError):  # a file that differs too much is not kept
                    ways[name] = Way(1.0, len(paths), precision, agrees=False)
                left_out[name] = str(error)
        served = None
        if client is not None:
            say(f"asking {client.url}")
            answers = _ask(client, find_model(model).fingerprint, paths, classes=len(loaded.header.classes))
            ways["served"] = Way.of(
                expected,
                answers.probabilities,
                answers.card["choice"]["precision"],
                Answer.of(loaded.header).thresholds,
            )
            if answers.errors:
                left_out["served"] = f"{len(answers.errors):,} of the pictures were not answered; {answers.errors[0]}"
            try:
                served = _beside_predict(model, client.url, answers, paths)
            except ResnetkitError as error:
                left_out["predict as the server"] = str(error)
    return Verification(len(paths), of, ways, left_out, served)


class Answers(NamedTuple):
    """What a server answered."""

    card: Mapping[str, Any]
    """The card of the model that was asked."""
    same_file: bool
    probabilities: NDArray[np.float32]
    """(pictures, classes); NaN for a picture that was not answered."""
    rejected: list[bool | None]
    """For each picture; None without a threshold."""
    errors: list[str]
    """Why pictures were not answered."""


def _ask(client: Client, fingerprint: str, paths: Sequence[Path], *, classes: int) -> Answers:
    """Ask the model with this fingerprint for each picture; the first classifier if none has it."""
    card, same = find_card(client, fingerprint, "classifier")
    found = np.full((len(paths), classes), np.nan, np.float32)
    rejected: list[bool | None] = []
    errors: list[str] = []
    for row, path in zip(found, paths, strict=True):
        answer = client.predict(
            path.read_bytes(), model=card["name"], top=max(classes, len(card["classes"])), reject=card["can_reject"]
        )
        rejected.append(answer.get("rejected"))
        predictions = answer.get("predictions")
        if predictions is None:
            errors.append(f"{path}: {answer.get('error')}")
        elif len(predictions) == classes:
            row[[one["index"] for one in predictions]] = [one["probability"] for one in predictions]
        else:
            errors.append(f"the model {card['name']} of the server has {len(predictions)} classes, not {classes}")
    return Answers(card, same, found, rejected, errors)


def _beside_predict(model: str | Path, url: str, answers: Answers, paths: Sequence[Path]) -> Served:
    """Compare the answers of a server with `predict`, which computes picture by picture as the server does.

    Raises UsageError or ExportError if the server's backend can't be used here.
    """
    choice = Choice.from_dict(answers.card["choice"])
    predictor = Predictor(model, goal="throughput", device="cpu", **choice.to_dict() | {"batch_size": 1})
    expected = np.concatenate([predictor.probabilities(path) for path in paths])
    difference = np.abs(answers.probabilities - expected)
    other = 0
    if predictor.can_reject:
        rejected = np.concatenate([predictor.rejected(path) for path in paths]).tolist()
        other = sum(one != answer for one, answer in zip(rejected, answers.rejected, strict=True))
    return Served(
        url=url,
        model=answers.card["name"],
        computed_by=str(predictor.choice),
        same_file=answers.same_file,
        largest_difference=1.0 if np.isnan(difference).any() else float(difference.max()),
        other_rejections=other,
    )


def _held_out(data: str, loaded: Model) -> tuple[Sequence[Path], str] | None:
    """Return the files of the part that is evaluated, and which it is."""
    part = choose_part(open_as_trained(data, loaded.header.data), loaded.header.data)
    return (part.samples.paths, f"the {part.name} part of {part.of}") if part.samples.paths else None


def _listed(data: str, loaded: Model) -> Sequence[Path]:
    return choose_part(open_as_trained(data, loaded.header.data), loaded.header.data, "all").samples.paths or ()


def _evaluated(model: Model, samples: Samples) -> tuple[NDArray[np.float32], list[int]]:
    """Return the probabilities (n, classes) that training's evaluation gives, and the places of the pictures read."""
    if model.header.multilabel:
        found = evaluate_labels(model.net, samples, model.header.preprocess, calibration=model.header.calibration)
        return found.probabilities, found.indices.tolist()
    kept: list[tuple[Tensor, Tensor]] = []

    def see(logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        kept.append((logits.cpu(), indices))

    evaluate_net(model.net, samples, model.header.preprocess, see=see)
    logits = torch.cat([one for one, _ in kept]).numpy()
    return Answer.of(model.header).probabilities(logits), torch.cat([places for _, places in kept]).tolist()


Compute = Callable[[Sequence[Path]], NDArray[np.float32]]


def _ways(model: str | Path, loaded: Model, folder: Path) -> dict[str, tuple[str, Compute]]:
    """Return each way to try: its precision, and a function that gives the probabilities of pictures."""

    def predicted(**arguments: Any) -> Compute:
        return lambda paths: Predictor(model, device="cpu", **arguments).probabilities(list(paths))

    ways: dict[str, tuple[str, Compute]] = {}
    unloaded = find_model(model)
    with warnings.catch_warnings(action="ignore"):
        tuned = find_tuned(unloaded)
    usual = tuned[0].choice("throughput") if tuned else None
    ways["predict"] = (usual.precision if usual else "float32", predicted(goal="throughput"))
    for backend in ("torch", "openvino", "onnxruntime"):
        if installed(backend):
            ways[f"predict by {backend}"] = ("float32", predicted(backend=backend, precision="float32"))
    for goal in tuned[0].goals if tuned else ():
        choice = tuned[0].choice(goal) if tuned else None
        if isinstance(choice, Choice):
            ways[f"tuned for {goal}: {choice.backend} {choice.precision}"] = (
                choice.precision,
                predicted(goal=cast("Goal", goal)),
            )
    for to in ("onnx", "openvino"):
        if all(installed_package(name) for name in FILE_FORMATS[to].packages):
            ways[f"export to {to}"] = ("float32", _exported(loaded, to, folder))
    return ways


def installed_package(name: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    from importlib.util import find_spec

    return find_spec(name) is not None


def _exported(model: Model, to: Format, folder: Path) -> Compute:
    """Return a function that exports the model with its preprocessing, and runs the file on pixels."""

    def compute(paths: Sequence[Path]) -> NDArray[np.float32]:
        kind, preprocess = FILE_FORMATS[to], model.header.preprocess
        file = export(model, folder / f"model{kind.suffixes[0]}", to=to, with_preprocess=True).path
        run = kind.open(file)
        found = [run(preprocess.pixels(open_picture(path, mode=preprocess.mode))[None]) for path in paths]
        return np.concatenate(found)

    return compute
