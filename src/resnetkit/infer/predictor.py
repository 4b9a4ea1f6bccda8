"""Predict the classes of pictures with a model: preprocess, compute and name the classes as its file states."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from resnetkit.calibration import FALSE_REJECT_RATE, Calibration, label_sets, rejects
from resnetkit.data.folders.listing import OnePath, each_path
from resnetkit.data.prefetch import Failure, own_path
from resnetkit.data.transforms.resampling import prepare
from resnetkit.display import count, cut, line, shell
from resnetkit.errors import DataError, UsageError
from resnetkit.forked import apart
from resnetkit.infer.answers import Answer, Prediction
from resnetkit.infer.backends.backend import Backend, stream_decoded
from resnetkit.infer.candidates import BATCH_SIZE, best_device, candidates
from resnetkit.infer.choice import GRAPHS, BackendName, Choice, Goal, Output, Precision, installed, usable_threads
from resnetkit.infer.decoding import (
    Picture,
    as_list,
    decoded,
    is_picture,
    pixels_of,
    stacked,
)
from resnetkit.infer.finding import find_pictures, is_one_file
from resnetkit.infer.session import Session
from resnetkit.infer.signature import Signature
from resnetkit.infer.unloaded import find_model
from resnetkit.modelfile import Header, Model
from resnetkit.models.spec import text_of

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

Pictures: TypeAlias = "Picture | Sequence[Picture]"


class Predictor:
    """A model that is ready to predict. It uses the fastest backend that was found to be as accurate as the model.

    A picture's probabilities do not depend on the other pictures in its batch, except for rounding in the last digits.
    Several threads may call one Predictor. A forked process opens its own backend at its first call. OpenVINO can't
    compute after a fork: torch replaces it with a warning, or a UsageError is raised if `backend` is openvino. A copied
    or unpickled Predictor opens the model again from its file.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        device: str | None = None,
        backend: BackendName | None = None,
        precision: Precision | None = None,
        threads: int | None = None,
        streams: int | None = None,
        batch_size: int | None = None,
        goal: Goal = "latency",
        output: Output = "logits",
        may_export: bool = True,
    ) -> None:
        """Take a model file, a run folder, NAME:WEIGHTS, hf:OWNER/NAME or a loaded model.

        For a tuned model, arguments that are None have the values that `resnetkit tune` found fastest for `goal`.
        Another model is computed in float32: by torch on a GPU if there is one and `device` is not cpu, else by
        OpenVINO if it is installed, else by torch. OpenVINO needs a graph of the model, which is made once and kept in
        the cache. Making it may take half a minute. Without `may_export` no graph is made, and torch computes if there
        is none in the cache. A loaded model is computed by torch unless `backend` is given. `choice` has the values
        that are used. The backend for `output` is opened now, the one for any other output at its first use.

        Warns if the model was tuned on another processor or with other weights, and if the best backend can't be used.
        Raises UsageError for arguments that do not go together and for packages that are not installed, and what
        modelfile.load raises.
        """
        if goal not in get_args(Goal):
            raise UsageError(f"`goal` is {goal!r}; choose one of {', '.join(get_args(Goal))}")
        _check_output(output)
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "model")}
        self._given = model if isinstance(model, Model) else find_model(model)
        self.classes = self._given.header.classes
        self.preprocess = self._given.header.preprocess
        self.calibration = self._given.header.calibration
        self.answer = Answer.of(self._given.header)
        """How logits are answered: probabilities, thresholds, names."""
        on_cpu = backend in GRAPHS or precision == "int8"
        self.device = device or ("cpu" if on_cpu else best_device())
        if self.device != "cpu" and backend in GRAPHS:
            raise UsageError(f"`backend` {backend} computes on the CPU here, not on {self.device}; torch does")
        fields = {
            "backend": backend,
            "precision": precision,
            "threads": threads,
            "streams": streams,
            "batch_size": batch_size,
        }
        stated = {name: value for name, value in fields.items() if value is not None}
        self._session = Session(
            self._given,
            candidates(self._given, stated, device=self.device, goal=goal, output=output, may_export=may_export),
            device=self.device,
            goal=goal,
            cache_compiled=not {"threads", "streams"}
            & stated.keys(),  # other settings need another compiled graph each
        )
        self._session.backend(output)
        self._decoders = usable_threads()
        # For latency, only single pictures are measured, so the batch size of that choice does not hold for several.
        alone = batch_size is None and goal == "latency"
        self.batch_size = max(self.choice.batch_size, BATCH_SIZE) if alone else self.choice.batch_size

    def __repr__(self) -> str:
        header = self._given.header
        name = "" if isinstance(self._given, Model) else cut(self._given.name, 60)
        network = f"{text_of(header.spec, without=['classes'])}, {count(len(self.classes), 'class')}"
        return line(type(self), name, network, str(self.choice), f"on {self.device}")

    def __reduce__(self) -> tuple[Any, ...]:
        model = self._given if isinstance(self._given, Model) else self._given.name
        return _opened_anew, (type(self), model, self._arguments)

    @property
    def choice(self) -> Choice:
        """Backend, precision, threads, streams and batch size that are used."""
        return self._session.choice

    @property
    def model(self) -> Model:
        """The loaded model. The first use loads it, which imports torch."""
        return self._session.model

    @property
    def backend(self) -> Backend:
        """The backend that computes logits (n, classes) from pixels, uint8 (n, size, size, channels)."""
        return self.backend_for("logits")

    def backend_for(self, output: Output) -> Backend:
        """Return the backend that computes `output` from pixels. Raises UsageError for an unknown output."""
        _check_output(output)
        return self._session.backend(output)

    @property
    def header(self) -> Header:
        """The header of the model file: network, preprocessing, classes and origin. Its weights are not loaded."""
        return self._given.header

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 in hex of the model file, or of the name of published weights; None for a model in memory."""
        return None if isinstance(self._given, Model) else self._given.fingerprint

    @property
    def signature(self) -> Signature:
        """The names, types and shapes of the arrays that `decode`, `compute` and `name` take and give."""
        return Signature.of(self._given.header)

    def decode(self, picture: Picture) -> NDArray[np.uint8] | Failure:
        """Return a picture as the network's input, uint8 (size, size, channels), or why it can't be read.

        Raises nothing for a wrong picture, so that one of many fails alone. Several threads may call it.
        """
        try:
            return self._pixels(picture)
        except (DataError, UsageError) as error:
            return Failure(own_path(picture), error.reason if isinstance(error, DataError) else str(error))

    def compute(self, pixels: NDArray[np.uint8], output: Output = "logits") -> NDArray[np.float32]:
        """Return the output, float32 (n, ...), for decoded pictures, uint8 (n, size, size, channels), as one batch.

        Several threads may call it; `choice.streams` is the number of batches that it is fastest to compute at a time.
        Raises UsageError for an array of another type or shape.
        """
        expected = (self.preprocess.size, self.preprocess.size, self.preprocess.channels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != expected or not len(pixels):
            raise UsageError(f"the pixels are {pixels.dtype} {pixels.shape}; expected uint8 (n, {str(expected)[1:]}")
        return self.backend_for(output)(pixels)

    def name(self, logits: NDArray[np.float32], *, top: int | None = None) -> list[list[Prediction]]:
        """Return for each row of logits, float32 (n, classes), the `top` most probable classes, the best first.

        For None, they are five; of a multi-label model, all that reach their thresholds, which may be none.

        Raises UsageError for an array of another shape.
        """
        _check_top(top)
        if logits.ndim != 2 or logits.shape[1] != len(self.classes):
            raise UsageError(f"the logits are {logits.shape}; expected (n, {len(self.classes)})")
        return self._named(logits, top=top)

    def reject(self, logits: NDArray[np.float32], rate: float = FALSE_REJECT_RATE) -> NDArray[np.bool_]:
        """Return which logits, float32 (n, classes), seem to be of no known class, bool (n,): see `rejected`."""
        return rejects(self.answer.probabilities(logits), self._calibrated, rate)

    @overload
    def __call__(self, pictures: Picture, *, top: int | None = None) -> list[Prediction]: ...

    @overload
    def __call__(self, pictures: Sequence[Picture], *, top: int | None = None) -> list[list[Prediction]]: ...

    def __call__(self, pictures: Pictures, *, top: int | None = None) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, the best first: one list for a picture, a list of lists for several.

        For None, they are five; of a multi-label model, all that reach their thresholds, which may be none.
        An open file is read from its beginning. Raises DataError with the name of the first picture that can't be read,
        and UsageError for a value that is not a picture.
        """
        _check_top(top)
        predictions = self._named(self.logits(pictures), top=top)
        return predictions[0] if is_picture(pictures) else predictions

    def logits(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return the output of the last layer, float32 (n, classes); n is 1 for one picture."""
        return self._computed(pictures, "logits")

    def features(self, pictures: Pictures, output: Literal["pool", "c5"] = "pool") -> NDArray[np.float32]:
        """Return features of pictures, float32: pool (n, channels) or c5 (n, channels, height, width).

        c5 is the feature map of the last stage, also in a CIFAR network, where it is the third. pool is the mean of c5
        over its height and width, which is the input of the last layer. They are computed in float32, or in
        bfloat16 if that is the precision of `choice`.
        """
        return self._computed(pictures, output)

    def probabilities(self, pictures: Pictures) -> NDArray[np.float32]:
        """Return the softmax of the logits divided by the model's temperature, float32 (n, classes).

        Of a multi-label model, it is the sigmoid.
        """
        return self.answer.probabilities(self.logits(pictures))

    def label_sets(self, pictures: Pictures, coverage: float = 0.9) -> list[tuple[str, ...]]:
        """Return for each picture the classes that contain its label with probability `coverage`, the best first.

        This holds on average over pictures like those of the validation; see `calibration.label_sets`. Raises
        UsageError for a model without a calibration.
        """
        return self._sets(self.logits(pictures), coverage)

    def rejected(self, pictures: Pictures, rate: float = FALSE_REJECT_RATE) -> NDArray[np.bool_]:
        """Return which pictures seem to be of no known class, bool (n,).

        Of pictures of known classes, at most the share `rate` (0 to 1) is rejected, too. Raises UsageError for a model
        without a calibration.
        """
        return self.reject(self.logits(pictures), rate)

    @property
    def can_explain(self) -> bool:
        """Whether `explain` has what it needs: OpenVINO's graph of a model file, or torch."""
        return self._session.has_last_map or installed("torch")

    def explain(self, picture: Picture, *, label: str | int | None = None, stage: str | int = -1) -> "Explanation":
        """Return where in the picture the evidence for a class is (Grad-CAM): see gradcam.explain_opened.

        For the last stage of a model file that OpenVINO computes, it is computed by the graph that predicts, without
        torch; else by torch in float32.
        """
        from resnetkit.infer.explain import explain, explain_by_map, find_stage

        depths = len(self.header.spec.depths)
        if self._session.has_last_map and find_stage(stage, depths) == depths - 1:
            return explain_by_map(
                self.header,
                picture,
                label=label,
                compute=self._session.last_map(),
                weights=self._session.last_layer(),
                probabilities=self.answer.probabilities,
            )
        return apart(lambda: explain(self.model, picture, label=label, stage=stage, device=self.device))

    def keep_for_explanations(self) -> None:
        """Read what `explain` needs of the model file now, so that a file that replaces it later changes nothing."""
        if self._session.has_last_map:
            self._session.last_layer()

    def predict_paths(
        self,
        paths: OnePath | Iterable[OnePath],
        *,
        top: int | None = None,
        reject_rate: float | None = None,
        coverage: float | None = None,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Predict the pictures of files, folders (with their subfolders) and globs; yield one result for each picture.

        `paths` is one path or several: see finding.find_pictures. A result is {"path", "predictions": [{"label",
        "index", "probability"}]}, or {"path", "error"} for a file that can't be read or found; `top` is that of `name`.
        `workers` threads decode
        pictures while the network computes; with 0, the calling thread decodes them. The memory needed does not grow
        with the number of paths: it holds the batches that are being computed and one more.

        With `reject_rate`, a result also has "rejected", true or false, and with `coverage` "set", a list of labels:
        see `rejected` and `label_sets`.

        Raises UsageError for numbers out of their range, and for a model without a calibration if one is needed.
        """
        _check_top(top)
        if reject_rate is not None:
            self._calibrated.threshold(reject_rate)
        if coverage is not None:
            self._calibrated.most_strange(coverage)

        def result(logits: NDArray[np.float32]) -> dict[str, Any]:
            found: dict[str, Any] = {"predictions": [best._asdict() for best in self._named(logits, top=top)[0]]}
            if reject_rate is not None:
                found["rejected"] = bool(self.reject(logits, reject_rate)[0])
            if coverage is not None:
                found["set"] = list(self._sets(logits, coverage)[0])
            return found

        return (
            {"path": str(path)} | ({"error": value} if isinstance(value, str) else result(value[None]))
            for path, value in self.compute_paths(paths, output="logits", batch_size=batch_size, workers=workers)
        )

    def compute_paths(
        self,
        paths: OnePath | Iterable[OnePath],
        *,
        output: Output = "logits",
        batch_size: int | None = None,
        workers: int = 0,
    ) -> Iterator[tuple[Path, NDArray[np.float32] | str]]:
        """Like predict_paths, but yield each path with its `output`, an array for one picture, or an error message."""
        batch_size = self.batch_size if batch_size is None else batch_size
        _check_least(batch_size=batch_size)
        if workers < 0:
            raise UsageError(f"`workers` is {workers}; it must be at least 0")
        backend = self.backend_for(output)
        paths = each_path(paths)
        if not (isinstance(paths, list) and len(paths) == 1 and is_one_file(paths[0])):
            prepare()  # compiling takes longer than one picture gains by it
        pictures = decoded(find_pictures(paths), self._pixels, workers=workers, ahead=min(batch_size, 4 * workers))
        found = stream_decoded(backend, pictures, batch_size)
        return ((path, values.reason if isinstance(values, Failure) else values) for path, values in found)

    def _pixels(self, picture: Picture) -> NDArray[np.uint8]:
        return pixels_of(picture, self.preprocess)

    def _computed(self, pictures: Pictures, output: Output) -> NDArray[np.float32]:
        backend = self.backend_for(output)
        several = as_list(pictures)
        if not several:  # an empty array of the right shape
            size, channels = self.preprocess.size, self.preprocess.channels
            return backend(np.zeros((1, size, size, channels), np.uint8))[:0]
        if len(several) == 1:
            return backend(self._pixels(several[0])[None])
        size, channels = self.preprocess.size, self.preprocess.channels
        ready = self.preprocess.shorter_side == size and all(
            isinstance(one, np.ndarray) and one.shape[:2] == (size, size) for one in several
        )
        threads = 1 if ready else self._decoders  # copying such pictures takes less time than waking threads
        prepare()
        shape = (size, size, channels)
        batches = stacked(several, self._pixels, shape=shape, batch_size=self.batch_size, threads=threads)
        return np.concatenate(list(backend.stream(batches)))

    def _named(self, logits: NDArray[np.float32], *, top: int | None) -> list[list[Prediction]]:
        return self.answer.named(logits, top=top)

    @property
    def can_reject(self) -> bool:
        """Whether `reject` and `label_sets` have what they need: a calibration, and one class for a picture."""
        return self.calibration is not None and not self.answer.multilabel

    @property
    def _calibrated(self) -> Calibration:
        """The calibration. Raises UsageError if the model has none, or gives several labels."""
        if self.answer.multilabel:
            raise UsageError(
                "`reject` and `sets` are for models that give one class for a picture; a picture that is none of the "
                "classes of this one gets no label"
            )
        if self.calibration is None:
            name = "MODEL" if isinstance(self._given, Model) else shell(self._given.name)
            raise UsageError(
                f"{name} has no thresholds from a validation; write a model file that has them, by labelled pictures "
                f"that did not train it: resnetkit evaluate {name} DATA --calibrate FILE"
            )
        return self.calibration

    def _sets(self, logits: NDArray[np.float32], coverage: float) -> list[tuple[str, ...]]:
        probabilities = self.answer.probabilities(logits)
        sets = label_sets(probabilities, self._calibrated, coverage)
        orders = np.argsort(-probabilities, axis=1, kind="stable")
        return [
            tuple(self.classes[i] for i in order.tolist() if row[i]) for order, row in zip(orders, sets, strict=True)
        ]


def _opened_anew(kind: "type[Predictor]", model: str | Model, arguments: dict[str, Any]) -> "Predictor":
    return kind(model, **arguments)


def _check_output(output: Output) -> None:
    if output not in get_args(Output):
        raise UsageError(f"`output` is {output!r}; choose one of {', '.join(get_args(Output))}")


def _check_top(top: int | None) -> None:
    if top is not None:
        _check_least(top=top)


def _check_least(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"`{name}` is {value}; it must be at least 1")
