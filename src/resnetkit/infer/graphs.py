"""The exported graphs of a model, made once and kept in the cache. Only making a graph imports torch."""

import os
import sys
from atexit import register
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from resnetkit.data.published.download import locked, say
from resnetkit.data.transforms.resampling import prepare
from resnetkit.errors import UsageError
from resnetkit.files import can_write
from resnetkit.infer.choice import BackendName, Output, installed
from resnetkit.infer.unloaded import UnloadedModel
from resnetkit.modelfile import Model

SUFFIXES = {"openvino": ".xml", "onnxruntime": ".onnx"}


def graph_name(backend: BackendName, output: Output) -> str:
    """Return the name of a graph's file, such as logits.xml or pool.onnx.

    float32 and bfloat16 are two ways to compute the same graph.
    """
    return output + SUFFIXES[backend]


def cached_graph(model: UnloadedModel, *, backend: BackendName, output: Output = "logits") -> Path:
    """Return the path of a model's graph for OpenVINO (.xml) or ONNX Runtime (.onnx), in float32; make it if needed.

    The graph takes pixels, uint8 (batch, size, size, channels), and computes `output`. It is kept in the cache, or in a
    temporary folder if the cache can't be written. Making it imports torch and takes up to half a minute.
    Raises ExportError if the graph's outputs differ from the model's, and UsageError if it must be made and torch is
    not installed.
    """
    name = graph_name(backend, output)
    path = model.graph_cache / name
    if path.is_file():
        return path
    if not installed("torch"):
        raise UsageError(
            f"{path} does not exist, and torch, which makes this graph of {model.name}, is not installed; make it "
            "where torch is, by one prediction with the same RESNETKIT_CACHE, and bring that folder"
        )
    path = writable(path)
    with locked(path):
        if not path.is_file():  # another process may have made it while this one waited
            # Delete the unfinished files of a process that was killed: temporary folders, and a .bin without its .xml.
            for unfinished in path.parent.glob(f".{name}.*"):
                rmtree(unfinished, ignore_errors=True)
            if path.suffix == ".xml":
                path.with_suffix(".bin").unlink(missing_ok=True)
            if sys.stderr.isatty():
                say(f"{model.name}: making a graph for {backend}; this is done only once")
            export_graph(model.name, path.parent, backend=backend, output=output)
    return path


def writable(path: Path) -> Path:
    """Return `path`, or one of the same name in a temporary folder of this process if its folder can't be written."""
    if can_write(path.parent):
        return path
    folder = mkdtemp(prefix="resnetkit-")
    register(_remove, folder, os.getpid())
    return Path(folder) / path.name


def _remove(folder: str, process: int) -> None:
    """Delete a folder at the end of the process that made it, and not at the end of one that was forked from it."""
    if process == os.getpid():
        rmtree(folder, ignore_errors=True)


def has_cached_graph(model: UnloadedModel, backend: BackendName, output: Output = "logits") -> bool:
    """Whether cached_graph finds the graph in the cache and does not have to make it."""
    return (model.graph_cache / graph_name(backend, output)).is_file()


def export_graph(model: str | Model, folder: Path, *, backend: BackendName, output: Output) -> Path:
    """Write a graph as cached_graph describes it to `folder`, and return its path. Imports torch."""
    from resnetkit.infer.exports.export import export

    prepare()  # compiles the resizing of pictures, which predictions will need
    path = folder / graph_name(backend, output)
    to = "openvino" if backend == "openvino" else "onnx"
    return export(model, path, to=to, with_preprocess=True, output=output).path


def compiled_folder(model: UnloadedModel) -> Path | None:
    """Return the folder for the compiled graphs of a model; None if the cache can't be written."""
    folder = model.graph_cache / "compiled"
    return folder if can_write(folder) else None
