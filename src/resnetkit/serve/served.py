"""A model that is served: its queue, its deadlines, and its replacement by a newer file while requests go on.

It knows nothing of what is computed: see `Opened`.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from resnetkit.data.prefetch import Failure
from resnetkit.errors import ResnetkitError
from resnetkit.serve.batcher import Batcher, Computed, ExpiredError, Work
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.opened import Opened, Pixels

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

Given: TypeAlias = bytes | Pixels
"""The content of a picture file, or a decoded picture."""
MOST_DECODED = 256 * 2**20
"""Bytes of a model's decoded pictures that wait. Beyond them, a picture waits as its file, which its stream decodes."""
LAST_BATCHES = 15
"""By which the time of the next pictures is estimated."""
log = logging.getLogger("resnetkit.serve")


class FullError(ResnetkitError):
    """The queue has no room for the pictures of a request."""

    def __init__(self, retry_after: int) -> None:
        """`retry_after` is the number of seconds after which there should be room."""
        super().__init__("too many requests wait; try again later")
        self.retry_after = retry_after


@dataclass(eq=False)
class Loaded:
    """One state of a model's file, with its own queue. It is closed when its last picture is answered."""

    opened: Opened
    batcher: Batcher
    in_flight: int = 0
    """Pictures that are decoded, wait or are computed."""
    decoded: int = 0
    """Bytes of those that are decoded."""
    paces: deque[float] = field(default_factory=lambda: deque(maxlen=LAST_BATCHES))
    """Seconds for a picture in each of the last batches."""
    seconds_per_picture: float = 0.01
    """Their median: one batch that the machine held up tells nothing of the next ones."""


class ServedModel:
    """A model with its queue. Its methods may be called from the event loop and from threads."""

    def __init__(
        self,
        name: str,
        open_model: Callable[[], Opened],
        *,
        limits: Limits,
        metrics: Metrics,
        decoders: ThreadPoolExecutor,
        files: Sequence[Path] = (),
    ) -> None:
        """Open the model and warm it up. Raises what `open_model` raises.

        `decoders` decode pictures. `files` are watched by `reload_if_changed`.
        """
        self.name = name
        self._open = open_model
        self._limits = limits
        self._metrics = metrics
        self._decoders = decoders
        self._explainer = ThreadPoolExecutor(1, "resnetkit-explain")
        self._files = files
        self._changed = Condition()
        self._stamp = self._seen = self._stamp_of_files()
        self._loaded = self._load()

    @property
    def opened(self) -> Opened:
        """The newest state of the model."""
        return self._loaded.opened

    @property
    def seconds_until_room(self) -> int | None:
        """If the queue is full, the seconds after which there should be room; else None."""
        loaded = self._loaded
        return self._retry_after(loaded) if loaded.in_flight >= self._limits.queue else None

    async def find(self, pictures: Sequence[Given], *, timeout: float | None = None) -> tuple[Opened, list[Any]]:
        """Return for each picture, in order, what the model finds or a Failure, and the state of the model that did.

        `timeout` is in seconds; None is the limit of the server, and so is more than that. If the caller is cancelled,
        pictures that are not being computed are dropped.

        Raises FullError if there is no room for all of them, or they would wait longer than `timeout`; ExpiredError
        after `timeout`.
        """
        seconds = self._seconds(timeout)
        loaded = self._enter(len(pictures), seconds)
        deadline = time.monotonic() + seconds
        works = [Work(picture, deadline) for picture in pictures]
        for work in works:
            if isinstance(work.picture, bytes):
                self._decoders.submit(self._decode, loaded, work)
            else:
                self._put(loaded, work, work.picture)
        found = await self._until(deadline, works)
        if answered := [one for one in found if not isinstance(one, Failure)]:
            loaded.opened.note(answered, self._metrics, self.name)
        return loaded.opened, found

    async def explain(self, picture: bytes, *, label: str | int | None, timeout: float | None = None) -> "Explanation":
        """Return where the evidence for a class is, the most probable one for None: see `Predictor.explain`.

        One picture at a time is explained. Without OpenVINO, the first time imports torch. Raises what `find` raises,
        DataError for a picture that can't be read, and UsageError for an unknown class.
        """
        seconds = self._seconds(timeout)
        loaded = self._enter(1, seconds)
        deadline = time.monotonic() + seconds
        work = Work(picture, deadline)

        def run() -> None:
            try:
                if work.start():
                    work.future.set_result(loaded.opened.explain(picture, label=label))
            except Exception as error:
                work.future.set_exception(error)
            finally:
                self._leave(loaded, work)

        self._explainer.submit(run)
        (explanation,) = await self._until(deadline, [work])
        return explanation

    def note_drift(self) -> None:
        """Set the metrics of drift; a model without the values of its validation has none."""
        self._loaded.opened.note_drift(self._metrics, self.name)

    def close(self) -> None:
        """Compute what was accepted, and end the threads."""
        self._retire(self._loaded)
        self._explainer.shutdown()

    def reload_if_changed(self) -> bool:
        """Open the model again if its files have changed, and return whether it was.

        A file counts as changed if it stays the same between two calls, so that a copy that is not complete yet is not
        read. Requests that have begun are answered by the model of before. If the new file can't be used, this is
        logged, and the model of before goes on.
        """
        stamp, before = self._stamp_of_files(), self._seen
        self._seen = stamp
        if stamp in (self._stamp, None) or stamp != before:
            return False
        self._stamp = stamp
        try:
            loaded = self._load()
        except Exception as error:
            self._metrics.loads.labels(self.name, "failed").inc()
            log.error("%s: the new file can't be used, so the model of before goes on: %s", self.name, error)
            return False
        with self._changed:
            old, self._loaded = self._loaded, loaded
        log.info("%s: its file was replaced; new requests use the new one", self.name)
        self._retire(old)
        return True

    def _load(self) -> Loaded:
        opened = self._open()
        opened.warm_up()
        self._metrics.loads.labels(self.name, "done").inc()
        loaded: list[Loaded] = []
        batcher = Batcher(
            lambda pictures: self._compute(opened, pictures),
            batch_size=opened.batch_size,
            streams=opened.streams,
            wait=self._limits.wait_ms / 1000,
            observe=lambda computed: self._observe(computed, loaded[0]),
            dropped=lambda work: self._leave(loaded[0], work),
        )
        loaded.append(Loaded(opened, batcher))
        return loaded[0]

    def _compute(self, opened: Opened, pictures: Sequence[Given]) -> list[Any]:
        """Compute a batch; pictures that waited as files are decoded first, and one that can't be read is a Failure."""
        decoded = [self._decoded(opened, one) if isinstance(one, bytes) else one for one in pictures]
        pixels = [one for one in decoded if not isinstance(one, Failure)]
        found = iter(opened.compute(pixels) if pixels else ())
        return [one if isinstance(one, Failure) else next(found) for one in decoded]

    def _decoded(self, opened: Opened, picture: bytes) -> Pixels | Failure:
        began = time.monotonic()
        try:
            return opened.decode(picture)
        finally:
            self._metrics.stage_seconds.labels(self.name, "decode").observe(time.monotonic() - began)

    def _decode(self, loaded: Loaded, work: Work) -> None:
        """Decode the file of a picture and put it into the queue; where too much is decoded, the file itself."""
        if work.future.cancelled() or time.monotonic() > work.deadline:
            work.start()
            self._leave(loaded, work)
            return
        try:
            full = loaded.decoded > MOST_DECODED
            decoded = work.picture if full else self._decoded(loaded.opened, work.picture)
        except Exception as error:
            decoded = error
        if isinstance(decoded, bytes | np.ndarray):
            self._put(loaded, work, decoded)
            return
        if work.future.set_running_or_notify_cancel():
            if isinstance(decoded, Failure):
                work.future.set_result(decoded)
            else:
                work.future.set_exception(decoded)
        self._leave(loaded, work)

    def _put(self, loaded: Loaded, work: Work, picture: Given) -> None:
        work.picture, work.queued_at = picture, time.monotonic()
        with self._changed:
            loaded.decoded += _decoded_bytes(work)
        loaded.batcher.put([work])

    async def _until(self, deadline: float, works: Sequence[Work]) -> list[Any]:
        """Wait for the results. The event loop's clock is time.monotonic."""
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.gather(*(asyncio.wrap_future(work.future) for work in works))
        except TimeoutError as error:
            raise ExpiredError("the request was not answered in time") from error
        finally:
            for work in works:  # if one of them failed, the others are not wanted any more
                work.future.cancel()

    def _seconds(self, timeout: float | None) -> float:
        limit = self._limits.timeout
        return limit if timeout is None else min(timeout, limit)

    def _enter(self, count: int, seconds: float) -> Loaded:
        """Take room for `count` pictures, all or none; none if those before them take longer than `seconds`."""
        with self._changed:
            loaded = self._loaded
            late = loaded.in_flight * loaded.seconds_per_picture > seconds
            if late or loaded.in_flight + count > self._limits.queue:
                self._metrics.refused.labels("queue").inc()
                raise FullError(self._retry_after(loaded))
            loaded.in_flight += count
            self._metrics.in_flight.labels(self.name).set(loaded.in_flight)
        return loaded

    def _retry_after(self, loaded: Loaded) -> int:
        return max(1, math.ceil(loaded.in_flight * loaded.seconds_per_picture))

    def _leave(self, loaded: Loaded, work: Work) -> None:
        self._metrics.pictures.labels(self.name, _outcome(work.future)).inc()
        with self._changed:
            loaded.in_flight -= 1
            loaded.decoded -= _decoded_bytes(work)
            self._metrics.in_flight.labels(self.name).set(loaded.in_flight)
            if not loaded.in_flight:
                self._changed.notify_all()

    def _retire(self, loaded: Loaded) -> None:
        with self._changed:
            while loaded.in_flight:
                self._changed.wait()
        loaded.batcher.close()

    def _observe(self, computed: Computed, loaded: Loaded) -> None:
        with self._changed:
            loaded.paces.append(computed.seconds / computed.pictures / loaded.opened.streams)
            loaded.seconds_per_picture = median(loaded.paces)
        self._metrics.batch_pictures.labels(self.name).observe(computed.pictures)
        self._metrics.stage_seconds.labels(self.name, "compute").observe(computed.seconds)
        for waited in computed.waited:
            self._metrics.stage_seconds.labels(self.name, "queue").observe(waited)

    def _stamp_of_files(self) -> tuple[object, ...] | None:
        """Return what changes when a file is replaced; None while the model file, the first of them, is missing."""
        stamps: list[object] = []
        for place, file in enumerate(self._files):
            try:
                status = file.stat()
                stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
            except OSError:
                if place == 0:
                    return None
                stamps.append(None)
        return tuple(stamps)


def _decoded_bytes(work: Work) -> int:
    return work.picture.nbytes if isinstance(work.picture, np.ndarray) else 0


def _outcome(future: "Future[Any]") -> str:
    if future.cancelled():
        return "cancelled"
    error = future.exception(0)
    if error is not None:
        return "expired" if isinstance(error, ExpiredError) else "failed"
    return "unreadable" if isinstance(future.result(0), Failure) else "answered"
