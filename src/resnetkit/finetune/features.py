"""Features of pictures by a frozen trunk: computed once, kept on disk, found again by the pictures' content.

    cache = FeatureCache(model)                                  # a Model: its network without the last layer
    features = cache.compute(samples, views=training_views(3))   # computes what is missing, and only that
    features.pool(0)                                             # float32 (n, channels): the head's input
    features.labels, features.indices, features.unreadable

A row is found by a hash of the file's bytes. So pictures may be renamed, moved, relabelled, or divided into parts in
another way, and new ones added: only new content is computed. An interrupted computation goes on where it stopped.
"""

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.data.published.download import locked, locked_now
from resnetkit.data.samples import Samples
from resnetkit.data.transforms import resampling
from resnetkit.errors import DataError, UsageError
from resnetkit.files import cache_folder, can_write
from resnetkit.finetune.table import KEY_BYTES, Table
from resnetkit.finetune.trunk import Trunk, Values
from resnetkit.finetune.views import PLAIN, View
from resnetkit.modelfile import Model
from resnetkit.progress import Advance, ignore

logger = logging.getLogger("resnetkit")

VERSION = 1
"""Version of the rows. Rows of another version are not used."""
AT_ONCE = 16
"""Pictures that are read together."""
WRITE_EVERY = 64
"""Pictures whose rows are written together; an interruption loses no more than these."""
GB = 10**9


@dataclass(frozen=True)
class Features:
    """Features of the pictures in `samples` that could be read."""

    samples: Samples
    views: tuple[View, ...]
    """The views that are there for every readable picture."""
    indices: NDArray[np.int64]
    """int64 (n,): the readable pictures' indices in `samples`."""
    unreadable: dict[Path, str]
    """The files that could not be read, each with the reason."""
    with_maps: bool
    """Whether the inputs of the last stage are there, too."""
    _places: dict[str, NDArray[np.int64]] = field(repr=False)
    _rows: dict[str, NDArray[np.generic]] = field(repr=False)

    def __len__(self) -> int:
        """Number of readable pictures."""
        return len(self.indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (n,), or (n, classes) if pictures have several labels: labels of the readable pictures."""
        return self.samples.labels[self.indices]

    def pool(self, view: int = 0) -> NDArray[np.float32]:
        """Return the head's input for a view: float32 (n, channels), a copy in memory."""
        name = _name(self.views[view], "pool")
        return np.asarray(self._rows[name][self._places[name]], np.float32)

    def maps(self, view: int, pictures: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return inputs of the last stage: float16 (m, channels, h, w), a copy; `pictures` are places among the n."""
        name = _name(self.views[view], "maps")
        return np.asarray(self._rows[name][self._places[name][pictures]], np.float16)

    def stacked(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the features of all views below each other, float32 (views · n, channels), and their labels."""
        pools = [self.pool(view) for view in range(len(self.views))]
        return np.concatenate(pools), np.concatenate([self.labels] * len(self.views))


class FeatureCache:
    """The kept features of one trunk: of its weights, its preprocessing and the way in which it is computed."""

    def __init__(
        self, model: Model, *, folder: Path | None = None, cache_gb: float = 4.0, device: str = "cpu", workers: int = 2
    ) -> None:
        """Prepare the trunk of `model`, whose head is not used, and find its rows on disk.

        `folder` is the cache folder by default; if that can't be written, a temporary one. `cache_gb` bounds the rows
        on disk in 10⁹ bytes, of all trunks together: the rows of other trunks are deleted, those of the longest time
        ago first. `workers` threads decode pictures.
        """
        self.preprocess, self.workers, self.cache_gb = model.header.preprocess, workers, cache_gb
        self._model, self._device = model, device
        self._trunks: dict[bool, Trunk] = {}
        self._temporary: TemporaryDirectory[str] | None = None
        self.computed = 0
        """Pictures whose features this object computed, over all views."""
        root = folder or cache_folder() / "features"
        if not can_write(root):
            self._temporary = TemporaryDirectory(prefix="resnetkit-", ignore_cleanup_errors=True)
            root = Path(self._temporary.name)
        self.folder = root / _trunk_key(model, self._trunk(maps=False).computed_by)
        spec, size = model.net.spec, self.preprocess.size
        self.channels = spec.channels[-1]
        self.map_shape: tuple[int, int, int] | None = None
        """Shape of the last stage's input, (channels, h, w); None for a network of one stage."""
        if len(spec.channels) > 1:
            side = ceil(size / spec.strides[-2])
            self.map_shape = (spec.channels[-2], side, side)

    @property
    def computed_by(self) -> str:
        """How features are computed: openvino or torch, and its version."""
        return self._trunk(maps=False).computed_by

    def close(self) -> None:
        """Delete the temporary folder, if there is one."""
        if self._temporary:
            self._temporary.cleanup()

    def needed_bytes(self, pictures: int, *, views: int, maps: bool = False) -> int:
        """Return the size on disk of the features of so many pictures and views."""
        each = 4 * self.channels + (2 * int(np.prod(self.map_shape)) if maps and self.map_shape else 0) + 2 * KEY_BYTES
        return pictures * views * each

    def affordable_views(self, pictures: int, *, views: int, maps: bool = False) -> int:
        """Return how many of `views` fit into `cache_gb`, 0 if not even one does."""
        one = self.needed_bytes(pictures, views=1, maps=maps)
        return min(views, int(self.cache_gb * GB // max(one, 1)))

    def share(self, samples: Samples, view: View) -> float:
        """Return the share of `samples`, 0 to 1, whose features in a view are on disk."""
        keys, _ = self._keys(samples, strict=False)
        table = Table(self.folder / _name(view, "pool"), (self.channels,), "<f4")
        return sum(key in table for key in keys if key) / max(len(samples), 1)

    def compute(
        self,
        samples: Samples,
        *,
        views: Sequence[View] = (PLAIN,),
        maps: bool = False,
        strict: bool = False,
        until: float | None = None,
        order: NDArray[np.int64] | None = None,
        at_least: int = 0,
        enough: Callable[[int], bool] | None = None,
        advance: Advance = ignore,
    ) -> Features:
        """Return the features of `samples`; only those that are not on disk yet are computed.

        The first view is always computed; a further one only as long as time.monotonic() is before `until`, after it
        for no picture. `enough` is asked before each batch, with the number of pictures that have the first view or are
        begun; if it returns True, the view ends there, and the result is of the pictures that have it. They are
        computed in `order`, indices int64 (n,), by default as they come, and the first `at_least` of it always. With
        `maps`, the inputs of the last stage are kept, too. `advance` is called with the number of pictures of each
        batch, also for those that were on disk; it may raise to stop, and then what is computed is kept. With `strict`,
        an unreadable file raises DataError; without it, it is named in the result and left out.

        Raises DataError if no picture can be read, and if the disk is full.
        """
        if maps and self.map_shape is None:
            raise UsageError("`maps` needs a network of two stages or more")
        keys, unreadable = self._keys(samples, strict=strict)
        tables: dict[str, Table] = {}
        done: list[View] = []
        with locked(self.folder):
            self._make_room(len(samples), views=len(views), maps=maps)
            for view in views:
                if done and until is not None and time.monotonic() >= until:
                    break
                own = {"pool": Table(self.folder / _name(view, "pool"), (self.channels,), "<f4")}
                if maps and self.map_shape:
                    own["maps"] = Table(self.folder / _name(view, "maps"), self.map_shape, "<f2")
                over = enough if not done else None if until is None else lambda _: time.monotonic() >= until
                complete = self._compute_view(
                    samples,
                    view,
                    own,
                    keys,
                    unreadable,
                    strict=strict,
                    order=order,
                    at_least=0 if done else at_least,
                    over=over,
                    advance=advance,
                )
                if done and not complete:
                    break
                done.append(view)
                tables |= {_name(view, output): table for output, table in own.items()}
                if not complete:
                    break
        readable = [(i, key) for i, key in enumerate(keys) if key and samples.path(i) not in unreadable]
        there = [(i, key) for i, key in readable if all(key in table for table in tables.values())]
        indices = np.array([i for i, _ in there], np.int64)
        if not len(indices):
            raise DataError(f"none of the {len(samples)} pictures can be read; see resnetkit data check")
        known = [key for _, key in there]
        places = {name: table.places(known) for name, table in tables.items()}
        rows = {name: table.rows() for name, table in tables.items()}  # open files: another process may delete them
        return Features(samples, tuple(done), indices, unreadable, maps, places, rows)

    def _compute_view(
        self,
        samples: Samples,
        view: View,
        tables: dict[str, Table],
        keys: list[bytes | None],
        unreadable: dict[Path, str],
        *,
        strict: bool,
        order: NDArray[np.int64] | None,
        at_least: int,
        over: Callable[[int], bool] | None,
        advance: Advance,
    ) -> bool:
        """Compute the missing rows of one view; return whether the view is complete (`over` may end it early)."""
        missing: dict[bytes, int] = {}  # of pictures with the same bytes, one is computed
        ordered = range(len(keys)) if order is None else order.tolist()
        for index in ordered:
            key = keys[index]
            if key and samples.path(index) not in unreadable and any(key not in table for table in tables.values()):
                missing.setdefault(key, index)
        advance(len(samples) - len(missing))
        if not missing:
            return True
        resampling.prepare()
        trunk = self._trunk(maps="maps" in tables)
        started: deque[list[_Job]] = deque()

        def jobs() -> Iterator[_Job]:
            side, channels = self.preprocess.size, self.preprocess.channels
            waiting, begun = iter(missing.items()), 0
            needed = len({keys[index] for index in ordered[:at_least]} & missing.keys())
            while some := list(islice(waiting, AT_ONCE)):
                if over is not None and begun >= needed and over(len(samples) - len(missing) + begun):
                    return
                begun += len(some)
                pixels = np.empty((len(some), side, side, channels), np.uint8)
                batch = [_Job(key, index, out) for (key, index), out in zip(some, pixels, strict=True)]
                started.append(batch)
                yield from batch

        def read(job: _Job) -> bytes:
            view.write(job.out, samples.source(job.index), self.preprocess, job.key)
            return job.key

        found: deque[list[bytes]] = deque()

        def batches(reading: Iterator[bytes | Failure]) -> Iterator[NDArray[np.uint8]]:
            for first in reading:
                batch = started.popleft()
                results = [first, *islice(reading, len(batch) - 1)]
                for result, job in zip(results, batch, strict=True):
                    if isinstance(result, Failure):
                        self._refuse(result, strict=strict)
                        unreadable[result.path or Path(samples.place(job.index))] = result.reason
                good = [job for result, job in zip(results, batch, strict=True) if not isinstance(result, Failure)]
                advance(len(batch) - len(good))
                if good:
                    found.append([job.key for job in good])
                    yield np.stack([job.out for job in good])

        pending: list[tuple[list[bytes], Values]] = []

        def write() -> None:
            for output, table in tables.items():
                fresh = [
                    (key, row)
                    for names, values in pending
                    for key, row in zip(names, _rows_of(values, output), strict=True)
                    if key not in table
                ]
                if fresh:
                    table.append([key for key, _ in fresh], np.stack([row for _, row in fresh]))
            pending.clear()

        reading = prefetch(
            read,
            jobs(),
            workers=self.workers,
            ahead=2 * AT_ONCE,
            path_of=lambda job: samples.path(job.index),
        )
        try:
            with closing(reading), closing(trunk.stream(batches(reading))) as computed:
                for values in computed:
                    pending.append((found.popleft(), values))
                    self.computed += len(values.pool)
                    if sum(len(names) for names, _ in pending) >= WRITE_EVERY:
                        write()
                    advance(len(values.pool))
        finally:
            write()
        return all(
            key in table
            for table in tables.values()
            for index, key in enumerate(keys)
            if key and samples.path(index) not in unreadable
        )

    def _refuse(self, failure: Failure, *, strict: bool) -> None:
        if failure.path is None:
            raise DataError(failure.reason)
        if strict:
            raise DataError(f"{failure}. Remove the file, or leave out `strict` to skip it")
        logger.warning("skipped %s", failure)

    def _keys(self, samples: Samples, *, strict: bool) -> tuple[list[bytes | None], dict[Path, str]]:
        """Return a hash of each picture's content, None for a file that can't be read, and these with the reasons."""
        if samples.images is not None:
            return [_hash(np.ascontiguousarray(picture).data) for picture in samples.images], {}

        def content(path: Path) -> bytes:
            try:
                return _hash(path.read_bytes())
            except OSError as error:
                raise DataError(error.strerror or str(error), name=str(path)) from error

        keys: list[bytes | None] = []
        unreadable: dict[Path, str] = {}
        for result in prefetch(content, samples.paths or (), workers=self.workers, ahead=2 * AT_ONCE):
            if isinstance(result, Failure):
                self._refuse(result, strict=strict)
                unreadable[result.path or Path()] = result.reason
            keys.append(None if isinstance(result, Failure) else result)
        return keys, unreadable

    def _trunk(self, *, maps: bool) -> Trunk:
        if maps not in self._trunks:
            self._trunks[maps] = Trunk(self._model.net, self.preprocess, device=self._device, maps=maps)
        return self._trunks[maps]

    def _make_room(self, pictures: int, *, views: int, maps: bool) -> None:
        """Delete rows of other trunks, the oldest first, until these fit; at last this trunk's own old maps."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        free = self.cache_gb * GB - self.needed_bytes(pictures, views=views, maps=maps)
        others = sorted(
            (path for path in self.folder.parent.iterdir() if path.is_dir() and path != self.folder),
            key=lambda path: path.stat().st_mtime,
        )
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
        for path in others:
            if sum(sizes.values()) <= free:
                break
            with locked_now(path) as ours:
                if ours:
                    rmtree(path, ignore_errors=True)
                    del sizes[path]


class _Job(NamedTuple):
    """A picture that a thread will read."""

    key: bytes
    index: int
    out: NDArray[np.uint8]


def _rows_of(values: Values, output: str) -> NDArray[np.generic]:
    if output == "pool":
        return values.pool
    assert values.maps is not None  # the trunk was asked for them
    return values.maps


def _name(view: View, output: str) -> str:
    return f"{view.name}.{output}"


def _hash(content: "bytes | memoryview") -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def _trunk_key(model: Model, computed_by: str) -> str:
    """Return a name for everything that the features depend on, apart from the pictures: 32 hex digits."""
    digest = hashlib.sha256(f"{VERSION} {computed_by} {sorted(model.header.preprocess.to_dict().items())}".encode())
    spec = model.net.spec.to_dict()
    digest.update(repr(sorted((name, value) for name, value in spec.items() if name != "classes")).encode())
    for name, tensor in model.net.state_dict().items():
        if not name.startswith("fc."):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()[:32]
