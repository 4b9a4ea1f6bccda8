"""Open a detector with the fastest way to compute it: what tuning found, else OpenVINO, else torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

from resnetkit.data.published.download import digest, locked, say
from resnetkit.detect.evaluate import Finder
from resnetkit.detect.files import DetectorModel, load_detector
from resnetkit.detect.inference.export import (
    BACKENDS,
    SUFFIXES,
    export_detector,
    open_files,
    read_header,
    regions_file,
)
from resnetkit.detect.inference.finders import TorchFinder
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.files import expanded
from resnetkit.infer.backends.opening import check_installed
from resnetkit.infer.candidates import candidates, first_usable
from resnetkit.infer.choice import GRAPHS, BackendName, Choice, Goal, Precision, choose
from resnetkit.infer.exports.formats import Format
from resnetkit.infer.graphs import compiled_folder, writable
from resnetkit.infer.tuning.record import find_int8_graph
from resnetkit.infer.unloaded import UnloadedModel, find_model
from resnetkit.modelfile import Header

FORMATS: Mapping[BackendName, Format] = {backend: to for to, backend in BACKENDS.items()}
EXPORTED: Mapping[str, BackendName] = {SUFFIXES[to][0]: backend for to, backend in BACKENDS.items()}
"""Suffix of an exported detector -> what computes it."""


@dataclass(frozen=True)
class ReadyDetector:
    """A detector that is ready to find objects."""

    find: Finder
    choice: Choice
    header: Header
    fingerprint: str | None
    """SHA-256 in hex of the file; None for a detector in memory."""


def open_detector(
    model: DetectorModel | str | Path,
    *,
    backend: BackendName | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    streams: int | None = None,
    goal: Goal = "latency",
    may_export: bool = True,
) -> ReadyDetector:
    """Open a model file, a run folder, a file of `resnetkit export` (.xml or .onnx), or a detector in memory.

    Arguments that are None have the values that `resnetkit tune` found fastest for `goal`. A detector that was not
    tuned is computed by OpenVINO in float32 if it is installed, else by torch; one in memory by torch. OpenVINO and
    ONNX Runtime need graphs, which are made once and kept in the cache. Without `may_export` none are made.

    Warns if the best choice can't be used. Raises UsageError for arguments that do not go together, ExportError for
    graphs that can't be made, ModelFileError for a file that is not a detector.
    """
    fields = {"backend": backend, "precision": precision, "threads": threads, "streams": streams}
    stated = {name: value for name, value in fields.items() if value is not None}
    if backend == "inductor":
        raise UsageError("`backend` inductor does not compute detectors; choose openvino, onnxruntime or torch")
    if isinstance(model, DetectorModel):
        choice = choose(stated, [Choice("torch")])[0]
        return ReadyDetector(_of_memory(model, choice), choice, model.header, None)
    file = expanded(model)
    if file.suffix in EXPORTED and file.is_file():
        return _open_exported(file, stated)
    unloaded = find_model(model)
    if unloaded.header.kind != "detector":
        raise ModelFileError(
            f"{model} contains a {unloaded.header.kind}; give a detector, such as one from resnetkit detect train"
        )
    choices = [
        replace(choice, batch_size=1)
        for choice in candidates(
            unloaded, stated, device="cpu", goal=goal, output="logits", may_export=may_export or _are_cached(unloaded)
        )
    ]
    cache = not {"threads", "streams"} & stated.keys()  # other settings need another compiled graph each
    choice, find = first_usable(
        choices, lambda choice: open_choice(unloaded, choice, goal=goal, cache_compiled=cache), stacklevel=3
    )
    return ReadyDetector(find, choice, unloaded.header, unloaded.fingerprint)


def open_choice(model: UnloadedModel, choice: Choice, *, goal: Goal, cache_compiled: bool = False) -> Finder:
    """Return what finds objects by one choice. Raises ExportError, ModelFileError or UsageError if it can't be used."""
    check_installed(choice.backend)
    if choice.backend not in GRAPHS:
        import torch

        if choice.precision != "float32":
            raise UsageError(f"{choice.backend} computes detectors in float32 only")
        if choice.threads:
            torch.set_num_threads(choice.threads)
        return TorchFinder(load_detector(model.located.name).net)
    file = cached_files(model, choice.backend)
    integers = find_int8_graph(model, goal) if choice.precision == "int8" else None
    cache = compiled_folder(model) if cache_compiled else None
    return open_files(file, choice, model.header, cache=cache, integers=integers)


def cached_files(model: UnloadedModel, backend: BackendName) -> Path:
    """Return the first of the two files of a detector for a backend of GRAPHS, from the cache; make them if needed.

    Raises ExportError if what they find differs from what the detector finds.
    """
    path = _cached(model, backend)
    if _are_whole(path):
        return path
    path = writable(path)
    with locked(path):
        if not _are_whole(path):  # another process may have made them while this one waited
            # Delete the unfinished files of a process that was killed.
            for unfinished in path.parent.glob(f".{path.name}.*"):
                rmtree(unfinished, ignore_errors=True)
            for suffix in SUFFIXES[FORMATS[backend]]:
                path.with_suffix(suffix).unlink(missing_ok=True)
            if sys.stderr.isatty():
                say(f"{model.name}: making graphs for {backend}; this is done only once")
            export_detector(load_detector(model.located.name), path, to=FORMATS[backend], force=True)
    return path


def _cached(model: UnloadedModel, backend: BackendName) -> Path:
    return model.graph_cache / f"detector{SUFFIXES[FORMATS[backend]][0]}"


def _are_cached(model: UnloadedModel) -> bool:
    return _are_whole(_cached(model, "openvino"))


def _are_whole(path: Path) -> bool:
    return path.is_file() and regions_file(path).is_file()


def _open_exported(file: Path, stated: Mapping[str, Any]) -> ReadyDetector:
    choice = choose({"backend": EXPORTED[file.suffix], **stated}, [])[0]
    if choice.backend != EXPORTED[file.suffix]:
        raise UsageError(f"{file} is computed by {EXPORTED[file.suffix]}, not by {choice.backend}")
    header = read_header(file)
    return ReadyDetector(open_files(file, choice, header), choice, header, digest(file, "sha256"))


def _of_memory(model: DetectorModel, choice: Choice) -> Finder:
    if choice.backend not in GRAPHS:
        return TorchFinder(model.net)
    if choice.precision == "int8":
        raise UsageError("a detector in memory has no int8 graph; save it to a file, and run: resnetkit tune FILE DATA")
    with TemporaryDirectory(prefix="resnetkit-", ignore_cleanup_errors=True) as folder:
        file = Path(folder, f"detector{SUFFIXES[FORMATS[choice.backend]][0]}")
        export_detector(model, file, to=FORMATS[choice.backend])
        return open_files(file, choice, model.header)
