"""A model that was found but not loaded: its header, its fingerprint, and the folders for its tuning. No torch here."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from resnetkit.data.published.download import digest
from resnetkit.data.published.huggingface import WEIGHTS_FILE, fetch_from_hub
from resnetkit.errors import DataError, ModelFileError
from resnetkit.files import cache_folder, can_write, write_whole
from resnetkit.location import HubRepository, LocalFile, Located, PublishedWeights, file_in, locate
from resnetkit.modelfile import Header, inspect

TUNE_FILE = "tune.json"
GRAPHS_VERSION = 1
"""Version of the graphs in the cache. Graphs of another version are not used; they are made again."""


@dataclass(frozen=True)
class TuningPlace:
    """The paths of the files that tuning writes for a model."""

    file: Path
    """The model's tune.json."""
    folder: Path
    """The folder of its int8 graphs. It may not exist yet."""


@dataclass(frozen=True)
class UnloadedModel:
    """A model that was found, with its header but without its weights."""

    located: Located
    """The location of the weights, for modelfile.load."""
    fingerprint: str
    """SHA-256 in hex: of the file, or of the name of weights that torchvision publishes."""
    header: Header
    places: tuple[TuningPlace, ...]
    """Where its tuning may be, in the order of the search. Tuning writes to the first place that can be written."""

    @property
    def name(self) -> str:
        """MODEL as it was given: a model file, a run folder, NAME:WEIGHTS or hf:OWNER/NAME."""
        return self.located.name

    @property
    def graph_cache(self) -> Path:
        """The folder in the cache for the model's graphs and for the compiled forms of them. It may not exist yet."""
        return _graph_cache(self.fingerprint)

    def writable_place(self) -> TuningPlace:
        """Return the first of `places` that can be written, and make its folders. Raises DataError if none can."""
        for place in self.places:
            if can_write(place.folder) and can_write(place.file.parent):
                return place
        raise DataError(f"{self.places[-1].folder} can't be written; name another folder in RESNETKIT_CACHE")


def files_of(model: str | Path) -> tuple[Path, ...]:
    """Return the files that a Predictor of MODEL reads and that may change: the model file, and each tune.json.

    There are none for weights that others publish. The files may not exist. Raises what location.locate raises.
    """
    located = locate(model)
    if not isinstance(located, LocalFile) or located.shipped:
        return ()
    return (located.path, *(place.file for place in _places_of_file(located.path)))


def find_model(model: str | Path) -> UnloadedModel:
    """Find the model that MODEL names, and read its header.

    Imports torch only for published weights whose header is not in the cache yet. Raises what modelfile.inspect raises.
    """
    located = locate(model)
    match located:
        case LocalFile(path=path, shipped=shipped):
            places = _cached_places(located.name) if shipped else _places_of_file(path)
            return UnloadedModel(located, digest(path, "sha256"), inspect(located), places)
        case PublishedWeights(network=network, repository=repository) if repository:
            path = fetch_from_hub(repository, WEIGHTS_FILE)
            fingerprint = sha256(f"{network} {digest(path, 'sha256')}".encode()).hexdigest()
        case PublishedWeights():
            # The files of torchvision never change under their names, but its versions may differ in DEFAULT.
            from importlib.metadata import version

            fingerprint = sha256(f"{located.name} of torchvision {version('torchvision')}".encode()).hexdigest()
        case HubRepository(repository=repository):
            fingerprint = digest(fetch_from_hub(repository, WEIGHTS_FILE), "sha256")
    return UnloadedModel(located, fingerprint, _cached_header(located, fingerprint), _cached_places(located.name))


def _cached_header(located: Located, fingerprint: str) -> Header:
    """Return the header of published weights from the cache. At the first time, make it, which takes seconds."""
    path = _graph_cache(fingerprint) / "header.json"
    try:
        return Header.from_json(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, ValueError, ModelFileError):
        header = inspect(located)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, header.to_json())
    except OSError:  # without a cache, the header is made again the next time
        pass
    return header


def _graph_cache(fingerprint: str) -> Path:
    return cache_folder() / "graphs" / f"{fingerprint[:32]}-{GRAPHS_VERSION}"


def _places_of_file(path: Path) -> tuple[TuningPlace, ...]:
    """Return the places for a model file: next to it, then in the cache.

    For the model of a run folder, this is the run folder; for another file NAME.safetensors, the folder NAME.tuned.
    """
    own = path.with_suffix(".tuned")
    of_folder = file_in(path.parent) == path
    nearby = (
        TuningPlace(path.parent / TUNE_FILE, path.parent / "tuned") if of_folder else TuningPlace(own / TUNE_FILE, own)
    )
    return (nearby, *_cached_places(path.stem + "-" + sha256(str(path.resolve()).encode()).hexdigest()[:8]))


def _cached_places(name: str) -> tuple[TuningPlace, ...]:
    folder = cache_folder() / "tuned" / name.replace("/", "-").replace(":", "-")
    return (TuningPlace(folder / TUNE_FILE, folder),)
