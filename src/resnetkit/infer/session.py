"""A model with the backends that compute it, which are opened when they are first needed, once in each process."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UsageError
from resnetkit.forked import apart, is_forked
from resnetkit.infer.backends.backend import Backend
from resnetkit.infer.backends.last_map import WithLastMap
from resnetkit.infer.backends.opening import check_installed, open_backend
from resnetkit.infer.candidates import first_usable
from resnetkit.infer.choice import GRAPHS, Choice, Goal, Output
from resnetkit.infer.graphs import cached_graph, compiled_folder, export_graph
from resnetkit.infer.tuning.record import find_int8_graph
from resnetkit.infer.unloaded import UnloadedModel
from resnetkit.location import LocalFile
from resnetkit.modelfile import Model, load


@dataclass
class _Opened:
    """The backends that are open in one process."""

    lock: Any = field(default_factory=RLock)
    """Held by the thread that opens a backend; others wait for it."""
    backends: dict[Output, Backend] = field(default_factory=dict)
    last_map: WithLastMap | None = None
    last_layer: NDArray[np.float32] | None = None


class Session:
    """A model with a backend for each output. Several threads may use it; a forked process opens its own backends."""

    choice: Choice
    """The first of the choices that could be opened."""

    def __init__(
        self,
        model: Model | UnloadedModel,
        choices: Sequence[Choice],
        *,
        device: str,
        goal: Goal,
        cache_compiled: bool,
    ) -> None:
        """Open nothing yet.

        `choices` are tried in their order. `goal` selects the int8 graph of an UnloadedModel. `cache_compiled` lets
        OpenVINO keep the compiled graph in the cache.
        """
        self.choice = choices[0]
        self._given = model
        self._choices = choices
        self._device = device
        self._goal: Goal = goal
        self._cache_compiled = cache_compiled
        self._loaded: Model | None = None
        self._opened: dict[int, _Opened] = {}

    @property
    def model(self) -> Model:
        """The loaded model. The first use loads it, which imports torch."""
        return self._given if isinstance(self._given, Model) else apart(self._load)

    def _load(self) -> Model:
        assert isinstance(self._given, UnloadedModel)
        with self._here.lock:
            self._loaded = self._loaded or load(self._given.located)
            return self._loaded

    def backend(self, output: Output) -> Backend:
        """Return the backend that computes `output` from pixels. The first call in a process opens it.

        Warns if the best of the choices can't be used. Raises ExportError, ModelFileError or UsageError if none can.
        """

        def ready() -> Backend:
            here = self._here
            with here.lock:  # several threads may call at the same time
                if not here.backends:
                    self.choice, here.backends[output] = self._open_first(output)
                elif output not in here.backends:
                    here.backends[output] = self._open(self.choice, output)
                return here.backends[output]

        return apart(ready)

    @property
    def has_last_map(self) -> bool:
        """Whether `last_map` and `last_layer` need no torch: a model file is computed by OpenVINO."""
        unloaded = isinstance(self._given, UnloadedModel) and isinstance(self._given.located, LocalFile)
        return unloaded and self.choice.backend == "openvino" and not is_forked()

    def last_map(self) -> WithLastMap:
        """Return what computes the last feature map and the logits, by the graph that computes logits.

        The first call opens it. Raises ExportError or ModelFileError if it can't be opened.
        """
        assert isinstance(self._given, UnloadedModel)
        with self._here.lock:
            self._here.last_map = self._here.last_map or WithLastMap(self.choice, self._graph(self.choice, "logits"))
            return self._here.last_map

    def last_layer(self) -> NDArray[np.float32]:
        """Return the weights of the last layer, float32 (classes, channels), from the model file. Imports no torch.

        The first call reads them. A file that is replaced later does not change them.
        """
        from safetensors import safe_open

        assert isinstance(self._given, UnloadedModel)
        assert isinstance(self._given.located, LocalFile)
        with self._here.lock:
            if self._here.last_layer is None:
                with safe_open(self._given.located.path, framework="numpy") as file:
                    self._here.last_layer = file.get_tensor("fc.weight").astype(np.float32)
            return self._here.last_layer

    @property
    def _here(self) -> _Opened:
        """The backends of this process. Those of its parent are kept too: closing them would wait for their threads."""
        process = os.getpid()
        return self._opened.get(process) or self._opened.setdefault(process, _Opened())

    def _open_first(self, output: Output) -> tuple[Choice, Backend]:
        """Open the first choice that can be opened; return the choice and its backend."""
        return first_usable(self._choices, lambda choice: self._open(choice, output), stacklevel=6)

    def _open(self, choice: Choice, output: Output) -> Backend:
        if output != "logits" and choice.precision == "int8":  # tuning checks the accuracy of int8 logits only
            choice = replace(choice, precision="float32")
        if choice.backend not in GRAPHS:
            check_installed(choice.backend)  # else loading the model would say that a module is missing
            return open_backend(choice, self.model, output=output, device=self._device)
        if isinstance(self._given, Model):
            if choice.precision == "int8":
                raise UsageError(
                    "a model in memory has no int8 graph; save it to a file, and run: resnetkit tune FILE DATA"
                )
            with TemporaryDirectory(prefix="resnetkit-", ignore_cleanup_errors=True) as folder:
                return open_backend(
                    choice, export_graph(self._given, Path(folder), backend=choice.backend, output=output)
                )
        cache = compiled_folder(self._given) if self._cache_compiled else None
        return open_backend(choice, self._graph(choice, output), cache=cache)

    def _graph(self, choice: Choice, output: Output) -> Path:
        """Return the path of the graph that `choice` computes."""
        assert isinstance(self._given, UnloadedModel)
        if choice.precision == "int8":
            return find_int8_graph(self._given, self._goal)
        return cached_graph(self._given, backend=choice.backend, output=output)
