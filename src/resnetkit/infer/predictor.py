"""From pictures to labelled probabilities, with the preprocessing and the class names of the model file."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.folders.listing import OnePath, each_path
from resnetkit.data.transforms.resampling import prepare
from resnetkit.display import count, cut, line, shell
from resnetkit.errors import ExportError, ModelFileError, UsageError
from resnetkit.forked import apart
from resnetkit.infer.backends.backend import Backend, softmax, stream_decoded
from resnetkit.infer.backends.opening import open_backend
from resnetkit.infer.choice import (
    GRAPHS,
    BackendName,
    Choice,
    Goal,
    Output,
    Precision,
    choose,
    installed,
    usable_threads,
)
from resnetkit.infer.decoding import (
    Picture,
    as_list,
    decoded,
    find_pictures,
    is_one_file,
    is_picture,
    pixels_of,
    stacked,
)
from resnetkit.infer.graphs import (
    Source,
    compiled_folder,
    export_graph,
    find_tuned,
    has_graph,
    open_source,
    served_graph,
)
from resnetkit.machine import read_machine
from resnetkit.modelfile import Model, load
from resnetkit.models.spec import text_of

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

BATCH_SIZE = 32
"""Pictures that go through the network together, unless it is given or was measured."""
GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""A Linux with a GPU that torch could use has one of these."""
Pictures: TypeAlias = "Picture | Sequence[Picture]"


class Prediction(NamedTuple):
    """A class and its probability."""

    label: str
    index: int
    """Index of the class in the network's output."""
    probability: float
    """0 to 1; over all classes they sum to 1."""


@dataclass
class _Opened:
    """What a predictor has open in one process."""

    lock: Any = field(default_factory=RLock)
    """Held by the thread that opens a backend; others wait for it."""
    backends: dict[Output, Backend] = field(default_factory=dict)


class Predictor:
    """A model ready to predict, by the fastest backend that is known to be as accurate as the model.

    The same picture gets the same probabilities, up to rounding in the last digits, whatever else is in its batch.
    Several threads may call it. A forked process opens the model anew at its first call. OpenVINO does not survive a
    fork: there torch computes instead, with a warning; where OpenVINO was asked for, it is a UsageError. A copy, or a
    predictor that was pickled, opens the model anew from its file.
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

        Arguments that are None are as `resnetkit tune` found them fastest for `goal` on this model. A model that was
        not tuned is computed in float32: on a GPU, if there is one and `device` does not say cpu, by torch; else by
        OpenVINO if it is installed, else by torch. OpenVINO needs a graph, which is made once and kept in the cache.
        That may take half a minute; without `may_export`, torch computes where there is no graph yet. A loaded model is
        computed by torch unless `backend` says otherwise. `choice` holds the result. `output` is prepared at once, any
        other output at its first use.

        Warns where the model was tuned on another processor or with other weights, and where the best backend can't be
        used. Raises UsageError for arguments that do not go together and packages that are not installed, and what
        modelfile.load raises.
        """
        if goal not in get_args(Goal):
            raise UsageError(f"`goal` is {goal!r}; choose one of {', '.join(get_args(Goal))}")
        _check_output(output)
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "model")}
        self._origin = model if isinstance(model, Model) else open_source(model)
        self.classes = self._origin.header.classes
        self.preprocess = self._origin.header.preprocess
        on_cpu = backend in GRAPHS or precision == "int8"
        self.device = device or ("cpu" if on_cpu else _best_device())
        asked = {"backend": backend, "precision": precision, "threads": threads, "streams": streams}
        stated = {name: value for name, value in {**asked, "batch_size": batch_size}.items() if value is not None}
        if self.device != "cpu" and backend in GRAPHS:
            raise UsageError(f"`backend` {backend} computes on the CPU here, not on {self.device}; torch does")
        tuned = self._tuned_choice(goal)
        rules = [tuned] if tuned else []
        kept = isinstance(self._origin, Source) and (may_export or has_graph(self._origin, "openvino", output))
        if kept and self.device == "cpu" and installed("openvino"):
            rules.append(Choice("openvino", batch_size=BATCH_SIZE))
        rules.append(Choice("torch", batch_size=BATCH_SIZE))
        self._goal: Goal = goal
        self._opened: dict[int, _Opened] = {}
        self._loaded: Model | None = None
        # A compiled network is cached unless it has settings that may not come again.
        self._keeps_compiled = not {"threads", "streams"} & stated.keys()
        self._choices = choose(stated, rules)
        self.backend_for(output)
        # Latency is tuned with single pictures, which says nothing about several at once.
        alone = batch_size is None and goal == "latency"
        self.batch_size = max(self.choice.batch_size, BATCH_SIZE) if alone else self.choice.batch_size

    def __repr__(self) -> str:
        header = self._origin.header
        name = "" if isinstance(self._origin, Model) else cut(str(self._origin.model), 60)
        network = f"{text_of(header.spec, without=['classes'])}, {count(len(self.classes), 'class')}"
        return line(type(self), name, network, str(self.choice), f"on {self.device}")

    def _tuned_choice(self, goal: Goal) -> Choice | None:
        source = self._origin
        if not isinstance(source, Source) or self.device != "cpu" or not (found := find_tuned(source)):
            return None
        tuned, place = found
        choice = tuned.choice(goal)
        if not choice:
            _warn(
                f"{place.file} says nothing that can be used here; measure again: resnetkit tune {shell(source.model)}"
            )
            return None
        if not installed(choice.backend):
            _warn(f"{place.file} says {choice.backend}, which is not installed: pip install 'resnetkit[export]'")
            return None
        if tuned.fits(machine := read_machine()):
            return choice
        # Integers that were judged there may overflow here: see quantize.EXACT.
        unsafe = choice.precision == "int8" and tuned.machine.get("instructions") != list(machine.instructions)
        _warn(
            f"{place.file} was measured on another machine ({tuned.machine.get('processor')}, "
            f"{tuned.machine.get('allowed_cores')} cores){', so its int8 is left aside' if unsafe else ''}; "
            f"measure this one: resnetkit tune {shell(source.model)}"
        )
        return None if unsafe else choice

    def __reduce__(self) -> tuple[Any, ...]:
        model = self._origin if isinstance(self._origin, Model) else self._origin.model
        return _opened_anew, (type(self), model, self._arguments)

    @property
    def _here(self) -> "_Opened":
        """What is open in this process. What its parent had open is kept: to close it would wait for threads."""
        process = os.getpid()
        return self._opened.get(process) or self._opened.setdefault(process, _Opened())

    def _open_first(self, output: Output) -> tuple[Choice, Backend]:
        """Open the first choice that can be opened; return the choice and its backend."""
        for choice, following in zip_longest(self._choices, self._choices[1:]):
            try:
                return choice, self._open(choice, output)
            except (ExportError, ModelFileError, UsageError) as error:
                if following is None:
                    raise
                instead = f"{following.backend} {following.precision}"
                _warn(f"{choice.backend} {choice.precision} can't be used, {instead} is: {error}", level=7)
        raise AssertionError("there is at least one choice")

    def _open(self, choice: Choice, output: Output) -> Backend:
        if output != "logits" and choice.precision == "int8":  # of which only the logits are known to be accurate
            choice = replace(choice, precision="float32")
        if choice.backend not in GRAPHS:
            return open_backend(choice, self.model, output=output, device=self.device)
        if isinstance(self._origin, Model):
            if choice.precision == "int8":
                raise UsageError(
                    "a model in memory has no int8 graph; save it to a file, and: resnetkit tune FILE DATA"
                )
            with TemporaryDirectory(prefix="resnetkit-", ignore_cleanup_errors=True) as folder:
                graph = export_graph(self._origin, Path(folder), backend=choice.backend, output=output)
                return open_backend(choice, graph)
        graph = served_graph(
            self._origin, backend=choice.backend, precision=choice.precision, output=output, goal=self._goal
        )
        return open_backend(choice, graph, cache=compiled_folder(self._origin) if self._keeps_compiled else None)

    @property
    def model(self) -> Model:
        """The model itself. It is loaded at the first use, which imports torch."""
        return self._origin if isinstance(self._origin, Model) else apart(self._load)

    def _load(self) -> Model:
        assert isinstance(self._origin, Source)
        with self._here.lock:
            self._loaded = self._loaded or load(self._origin.located)
            return self._loaded

    @property
    def backend(self) -> Backend:
        """The backend that computes logits from pixels."""
        return self.backend_for("logits")

    def backend_for(self, output: Output) -> Backend:
        """The backend that computes `output` from pixels."""
        _check_output(output)

        def ready() -> Backend:
            here = self._here
            with here.lock:  # several threads may ask for it at the same time
                if not here.backends:
                    self.choice, here.backends[output] = self._open_first(output)
                elif output not in here.backends:
                    here.backends[output] = self._open(self.choice, output)
                return here.backends[output]

        return apart(ready)

    @overload
    def __call__(self, pictures: Picture, *, top: int = 5) -> list[Prediction]: ...

    @overload
    def __call__(self, pictures: Sequence[Picture], *, top: int = 5) -> list[list[Prediction]]: ...

    def __call__(self, pictures: Pictures, *, top: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, best first: a list for one picture, a list of lists for several.

        An open file is read from its beginning. Raises DataError naming the first picture that can't be read, and
        UsageError for a value that is no picture.
        """
        _check_least(top=top)
        predictions = self._named(self.logits(pictures), top=top)
        return predictions[0] if is_picture(pictures) else predictions

    def logits(self, pictures: Pictures) -> NDArray[np.float32]:
        """The output of the last layer, float32 (n, classes); n is 1 for one picture."""
        return self._computed(pictures, "logits")

    def features(self, pictures: Pictures, output: Literal["pool", "c5"] = "pool") -> NDArray[np.float32]:
        """The input of the last layer, pool: float32 (n, channels); or the map before it, c5: (n, channels, h, w).

        pool is the mean of c5 over all places. c5 is the map of the last stage, also in a CIFAR net, which has three.
        Computed in float32 unless bfloat16 was chosen.
        """
        return self._computed(pictures, output)

    def probabilities(self, pictures: Pictures) -> NDArray[np.float32]:
        """The softmax of the logits, float32 (n, classes)."""
        return softmax(self.logits(pictures))

    def explain(self, picture: Picture, *, label: str | int | None = None, stage: str | int = -1) -> "Explanation":
        """Show where in the picture the evidence for a class is (Grad-CAM): see explain.explain."""
        from resnetkit.infer.explain import explain

        return apart(lambda: explain(self.model, picture, label=label, stage=stage, device=self.device))

    def predict_paths(
        self, paths: OnePath | Iterable[OnePath], *, top: int = 5, batch_size: int | None = None, workers: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Predict files, folders (with the folders in them) and globs; yield a result per picture as batches are done.

        `paths` is one path or several: see decoding.find_pictures. A result is {"path", "predictions": [{"label",
        "index", "probability"}]}, or {"path", "error"} for a file that can't be read or found. Pictures are decoded
        while the network computes, by `workers` threads, or in the calling one if 0. Memory holds one batch more than
        are computed at the same time, however many paths there are.
        """
        _check_least(top=top)
        return (
            {"path": str(path), "error": value}
            if isinstance(value, str)
            else {"path": str(path), "predictions": [best._asdict() for best in self._named(value[None], top=top)[0]]}
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
        """Like predict_paths, with numbers: yield each path and its `output`, or a message why it can't be read."""
        batch_size = self.batch_size if batch_size is None else batch_size
        _check_least(batch_size=batch_size)
        if workers < 0:
            raise UsageError(f"`workers` is {workers}; it must be at least 0")
        backend = self.backend_for(output)
        paths = each_path(paths)
        if not (isinstance(paths, list) and len(paths) == 1 and is_one_file(paths[0])):
            prepare()  # for one picture it would take longer than it saves
        pictures = decoded(find_pictures(paths), self._pixels, workers=workers, ahead=min(batch_size, 4 * workers))
        return stream_decoded(backend, pictures, batch_size)

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
        size = self.preprocess.size
        ready = self.preprocess.shorter_side == size and all(
            isinstance(one, np.ndarray) and one.shape[:2] == (size, size) for one in several
        )
        threads = 1 if ready else usable_threads()  # threads take longer to wake than such pictures to copy
        prepare()
        batches = stacked(several, self._pixels, batch_size=self.batch_size, threads=threads)
        return np.concatenate(list(backend.stream(batches)))

    def _named(self, logits: NDArray[np.float32], *, top: int) -> list[list[Prediction]]:
        probabilities = softmax(logits)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [Prediction(self.classes[i], i, row[i]) for i in indices]
            for indices, row in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]


def _opened_anew(kind: "type[Predictor]", model: str | Model, arguments: dict[str, Any]) -> "Predictor":
    return kind(model, **arguments)


def _best_device() -> str:
    """Return cuda where torch can use a GPU, else cpu. Torch, slow to import, is asked only if there may be one."""
    if sys.platform == "darwin" or (sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES))):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_output(output: Output) -> None:
    if output not in get_args(Output):
        raise UsageError(f"`output` is {output!r}; choose one of {', '.join(get_args(Output))}")


def _check_least(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"`{name}` is {value}; it must be at least 1")


def _warn(message: str, *, level: int = 4) -> None:
    warnings.warn(message, stacklevel=level)
