"""Where the exported graphs of a model are kept and found, and what tuning found for it. Imports no torch."""

import json
import os
import sys
import warnings
from atexit import register
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile, mkdtemp
from typing import Any

from resnetkit.data.published.download import digest, locked, say
from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.data.transforms.resampling import prepare
from resnetkit.display import line, shell
from resnetkit.errors import DataError, ModelFileError, UsageError
from resnetkit.files import cache_folder, write_whole
from resnetkit.infer.choice import BackendName, Choice, Goal, Output, Precision
from resnetkit.location import HubRepository, LocalFile, Located, PublishedWeights, file_in, locate
from resnetkit.machine import Machine
from resnetkit.modelfile import Header, Model, inspect
from resnetkit.version import __version__

TUNE_FILE = "tune.json"
FORMAT_VERSION = 1
"""Version of the format of tune.json."""
GRAPHS_VERSION = 1
"""Version of the graphs in the cache; with another number they are made anew."""


@dataclass(frozen=True)
class Place:
    """Where the tuning of a model is kept."""

    file: Path
    """Its tune.json."""
    folder: Path
    """The folder of its graphs, named by graph_name; it may not exist yet."""


@dataclass(frozen=True)
class Source:
    """A model that was located, with its header but without its weights."""

    located: Located
    """What MODEL names; modelfile.load takes it."""
    fingerprint: str
    """SHA-256 in hex: of the file, or of the name of weights that torchvision publishes."""
    header: Header
    places: tuple[Place, ...]
    """Where its tuning is looked for; it is kept in the first place that can be written."""

    @property
    def model(self) -> str:
        """MODEL: a model file, a run folder, NAME:WEIGHTS or hf:OWNER/NAME."""
        return self.located.name


def open_source(model: str | Path) -> Source:
    """Find what MODEL names, without torch where it is a model file, or where its header was kept in the cache.

    Raises what modelfile.inspect raises.
    """
    located = locate(model)
    match located:
        case LocalFile(path=path, shipped=shipped):
            places = _places(located.name) if shipped else _places_of_file(path)
            return Source(located, digest(path, "sha256"), inspect(located), places)
        case PublishedWeights(network=network, repository=repository) if repository:
            path = fetch_from_hub(repository, WEIGHTS_FILE)
            fingerprint = sha256(f"{network} {digest(path, 'sha256')}".encode()).hexdigest()
        case PublishedWeights():
            # Their files never change under their names; but another version may have another DEFAULT.
            from importlib.metadata import version

            fingerprint = sha256(f"{located.name} of torchvision {version('torchvision')}".encode()).hexdigest()
        case HubRepository(repository=repository):
            fingerprint = digest(fetch_from_hub(repository, WEIGHTS_FILE), "sha256")
    return Source(located, fingerprint, _kept_header(located, fingerprint), _places(located.name))


def _kept_header(located: Located, fingerprint: str) -> Header:
    """The header of weights that others publish: from the cache, since it takes seconds to gather it the first time."""
    path = cached_graphs(fingerprint) / "header.json"
    try:
        return Header.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, ValueError, ModelFileError):
        header = inspect(located)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, header.to_json())
    except OSError:  # then it is gathered again the next time
        pass
    return header


def _places_of_file(path: Path) -> tuple[Place, ...]:
    """Beside the model file: in its folder, if the file is the model of that folder; else in a folder of its own."""
    own = path.with_suffix(".tuned")
    of_folder = file_in(path.parent) == path
    beside = Place(path.parent / TUNE_FILE, path.parent / "tuned") if of_folder else Place(own / TUNE_FILE, own)
    return (beside, *_places(path.stem + "-" + sha256(str(path.resolve()).encode()).hexdigest()[:8]))


def _places(name: str) -> tuple[Place, ...]:
    folder = cache_folder() / "tuned" / name.replace("/", "-").replace(":", "-")
    return (Place(folder / TUNE_FILE, folder),)


def cached_graphs(fingerprint: str) -> Path:
    """The folder in the cache for the graphs of a model, and for what is compiled of them."""
    return cache_folder() / "graphs" / f"{fingerprint[:32]}-{GRAPHS_VERSION}"


def graph_name(backend: BackendName, precision: Precision, output: Output) -> str:
    """Name of a graph's file, such as logits.xml, pool.onnx, int8-logits.xml (the first that tuning keeps in a folder).

    float32 and bfloat16 are two ways to compute one graph.
    """
    suffix = {"openvino": ".xml", "onnxruntime": ".onnx"}[backend]
    return f"{'int8-' if precision == 'int8' else ''}{output}{suffix}"


def served_graph(
    source: Source,
    *,
    backend: BackendName,
    precision: Precision = "float32",
    output: Output = "logits",
    goal: Goal = "latency",
) -> Path:
    """The graph of a model for OpenVINO (.xml) or ONNX Runtime (.onnx): uint8 (batch, size, size, channels) in.

    An int8 graph is one that tuning for `goal` (or else for the other one) made, measured and kept; UsageError without
    one. Any other is in the cache, and made where there is none, which imports torch; in a temporary folder if the
    cache can't be written. Raises ExportError for a graph that computes something else than the model.
    """
    if precision == "int8":
        tuned = find_tuned(source)
        kept = [tuned[1].folder / graph for graph in tuned[0].graphs(goal)] if tuned and output == "logits" else []
        for graph in kept:
            if graph.is_file():
                return graph
        raise UsageError(
            f"{source.model} has no int8 graph that gives {output}; make one that is as accurate as the model: "
            f"resnetkit tune {shell(source.model)} DATA"
        )
    name = graph_name(backend, precision, output)
    path = cached_graphs(source.fingerprint) / name
    if path.is_file():
        return path
    if not can_write(path.parent):
        folder = mkdtemp(prefix="resnetkit-")
        register(_remove, folder, os.getpid())
        path = Path(folder) / name
    with locked(path):
        if not path.is_file():  # another process may have made it meanwhile
            for left in path.parent.glob(f".{name}.*"):  # of a process that was killed, as is a .bin alone
                rmtree(left, ignore_errors=True)
            if path.suffix == ".xml":
                path.with_suffix(".bin").unlink(missing_ok=True)
            if sys.stderr.isatty():
                say(f"{source.model}: making a graph for {backend}, once; then it is ready in a moment")
            export_graph(source.model, path.parent, backend=backend, output=output)
    return path


def _remove(folder: str, process: int) -> None:
    """Delete a folder at the end of the process that made it, and not at the end of one that was forked from it."""
    if process == os.getpid():
        rmtree(folder, ignore_errors=True)


def has_graph(source: Source, backend: BackendName, output: Output = "logits") -> bool:
    """Whether served_graph has a float32 graph already, and need not make it, which takes up to half a minute."""
    return (cached_graphs(source.fingerprint) / graph_name(backend, "float32", output)).is_file()


def export_graph(model: str | Model, folder: Path, *, backend: BackendName, output: Output) -> Path:
    """Make a graph as served_graph has it, in `folder`, and return its path; imports torch."""
    from resnetkit.infer.exports.export import export

    prepare()  # a model that is kept for predictions will get pictures to resize
    path = folder / graph_name(backend, "float32", output)
    to = "openvino" if backend == "openvino" else "onnx"
    return export(model, path, to=to, with_preprocess=True, output=output).path


def compiled_folder(source: Source) -> Path | None:
    """Where what is compiled of a model's graphs is kept; None if the cache can't be written."""
    folder = cached_graphs(source.fingerprint) / "compiled"
    return folder if can_write(folder) else None


def can_write(folder: Path) -> bool:
    """Whether files can be written in `folder`, which is made if it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Tuned:
    """What tuning found: the fastest choice for each goal, and how it was found. tune.json has these fields."""

    fingerprint: str
    """Source.fingerprint of the model that was tuned."""
    machine: Mapping[str, Any]
    """Machine's fields, of the machine that was measured."""
    goals: Mapping[Goal, Mapping[str, Any]]
    """For each goal that was tuned {"choice": Choice.to_dict(), "images_per_second", "milliseconds", ...}.

    "graph" is the file in integers that was judged then, or None. What an earlier run found has its own "accuracy".
    """
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    """How accurate the last run asked predictions to be, on which pictures, and how accurate each precision was."""
    table: Sequence[Mapping[str, Any]] = ()
    """Every choice that was measured for these goals."""
    version: str = __version__
    """Version of this package that measured."""
    format_version: int = FORMAT_VERSION

    def __repr__(self) -> str:
        rows = ((goal, self.choice(goal), row.get("images_per_second", 0)) for goal, row in self.goals.items())
        return line(type(self), "; ".join(f"{goal}: {choice}, {rate:.0f} images/s" for goal, choice, rate in rows))

    def choice(self, goal: Goal) -> Choice | None:
        """The fastest for `goal`; for the other one if `goal` was not tuned; None if its parts are not known here."""
        row = self.goals.get(goal) or next(iter(self.goals.values()), None)
        try:
            return Choice.from_dict(row["choice"]) if row else None
        except (UsageError, TypeError, KeyError):  # of a later version, which may know more backends
            return None

    def graphs(self, goal: Goal) -> list[str]:
        """Names of the int8 graphs that were judged and kept; the one for `goal` comes first."""
        rows = sorted(self.goals.items(), key=lambda row: row[0] != goal)
        # Version 0.1.0 kept one for all goals and did not say its name.
        names = [row.get("graph", graph_name("openvino", "int8", "logits")) for _, row in rows]
        return [name for name in names if isinstance(name, str) and Path(name).name == name]

    def fits(self, machine: Machine) -> bool:
        """Whether it was measured on a machine with the same processor, instructions and usable cores."""
        now = asdict(machine) | {"instructions": list(machine.instructions)}
        names = ("processor", "instructions", "allowed_cores", "quota_cores")
        return all(self.machine.get(name) == now[name] for name in names)

    def write(self, source: Source) -> Path:
        """Write tune.json, whole or not at all, and return where. Raises DataError where it can't be written."""
        file = writable_place(source).file
        try:
            write_whole(file, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{file} could not be written: {error.strerror}") from error
        return file


def _read(file: Path) -> Tuned | None:
    """Read tune.json; None where there is none. Warns about one that can't be read, and returns None."""
    try:
        values = _renamed(json.loads(file.read_text(encoding="utf-8")))
        if values["format_version"] > FORMAT_VERSION:
            raise ValueError(f"it is of format {values['format_version']}, which resnetkit {__version__} can't read")
        found = Tuned(**{part.name: values[part.name] for part in fields(Tuned) if part.name in values})
        if not all(isinstance(part, dict) for part in (found.machine, found.goals, *found.goals.values())):
            raise TypeError("its parts are of other types")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(f"{file} is left aside ({error}); tune again", stacklevel=2)
        return None
    return found


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of tune.json by their present names: older files have "guard" for "accuracy", also in each goal."""
    goals = {goal: _with_accuracy(row) for goal, row in values.get("goals", {}).items()}
    return _with_accuracy(values) | {"goals": goals}


def _with_accuracy(values: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy" if key == "guard" else key: value for key, value in values.items()}


def find_tuned(source: Source, *, warn: bool = True) -> tuple[Tuned, Place] | None:
    """What tuning found for this model, and where it is kept. Warns where it was found for other weights."""
    for place in source.places:
        found = _read(place.file)
        if found and found.fingerprint == source.fingerprint:
            return found, place
        if found and warn:
            warnings.warn(
                f"{place.file} is of other weights than {source.model} has now, and is left aside; measure again: "
                f"resnetkit tune {shell(source.model)}",
                stacklevel=2,
            )
    return None


def writable_place(source: Source) -> Place:
    """The first of a model's places that can be written, with its folder made. Raises DataError if none can."""
    for place in source.places:
        if can_write(place.folder) and can_write(place.file.parent):
            return place
    raise DataError(f"{source.places[-1].folder} can't be written; name another folder in RESNETKIT_CACHE")
