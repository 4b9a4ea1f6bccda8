"""A model that is served: its queue, its deadlines, and its replacement by a newer file while requests go on."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.prefetch import Failure
from resnetkit.data.transforms.resampling import prepare
from resnetkit.errors import ResnetkitError
from resnetkit.infer.predictor import Predictor
from resnetkit.serve.batcher import Batcher, Computed, ExpiredError, Logits, Work
from resnetkit.serve.drift import Moments, Scores
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics

if TYPE_CHECKING:
    from resnetkit.infer.explain import Explanation

Given: TypeAlias = bytes | NDArray[np.uint8]
"""The content of a picture file, or decoded pixels, uint8 (size, size, channels)."""
NOTHING = np.zeros((0, 0, 0), np.uint8)
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

    predictor: Predictor
    batcher: Batcher
    scores: Scores | None
    """Confidences of the pictures that were answered; None without a calibration to compare them with."""
    moments: Moments | None
    """Moments of their logits; None without those of the validation."""
    in_flight: int = 0
    """Pictures that are decoded, wait or are computed."""


class ServedModel:
    """A model with its queue. Its methods may be called from the event loop and from threads."""

    def __init__(
        self,
        name: str,
        open_predictor: Callable[[], Predictor],
        *,
        limits: Limits,
        metrics: Metrics,
        decoders: ThreadPoolExecutor,
        files: Sequence[Path] = (),
    ) -> None:
        """Open the model and warm it up. Raises what `open_predictor` raises.

        `decoders` decode pictures. `files` are watched by `reload_if_changed`.
        """
        self.name = name
        self._open = open_predictor
        self._limits = limits
        self._metrics = metrics
        self._decoders = decoders
        self._explainer = ThreadPoolExecutor(1, "resnetkit-explain")
        self._files = files
        self._changed = Condition()
        self._seconds_per_picture = 0.01
        self._stamp = self._seen = self._stamp_of_files()
        self._loaded = self._load()

    @property
    def predictor(self) -> Predictor:
        """The newest Predictor."""
        return self._loaded.predictor

    @property
    def seconds_until_room(self) -> int | None:
        """If the queue is full, the seconds after which there should be room; else None."""
        loaded = self._loaded
        return self._retry_after(loaded) if loaded.in_flight >= self._limits.queue else None

    async def logits(
        self, pictures: Sequence[Given], *, timeout: float | None = None
    ) -> tuple[Predictor, list[Logits | Failure]]:
        """Return for each picture, in order, its logits or why it can't be read, and the Predictor that names them.

        `timeout` is in seconds; None is the limit of the server, and so is more than that. If the caller is cancelled,
        pictures that are not being computed are dropped.

        Raises FullError if there is no room for all of them, ExpiredError after `timeout`.
        """
        loaded = self._enter(len(pictures))
        deadline = self._deadline(timeout)
        works = [Work(NOTHING, deadline) for _ in pictures]
        for work, picture in zip(works, pictures, strict=True):
            if isinstance(picture, bytes):
                self._decoders.submit(self._decode, loaded, picture, work)
            else:
                work.pixels = picture
                loaded.batcher.put([work])
        found = await self._until(deadline, works)
        self._note_scores(loaded, found)
        return loaded.predictor, found

    async def explain(self, picture: bytes, *, label: str | int | None, timeout: float | None = None) -> "Explanation":
        """Return where the evidence for a class is, the most probable one for None: see `Predictor.explain`.

        One picture at a time is explained. Without OpenVINO, the first time imports torch. Raises what `logits` raises,
        DataError for a picture that can't be read, and UsageError for an unknown class.
        """
        loaded = self._enter(1)
        deadline = self._deadline(timeout)
        work = Work(NOTHING, deadline)

        def run() -> None:
            try:
                if work.start():
                    work.future.set_result(loaded.predictor.explain(picture, label=label))
            except Exception as error:
                work.future.set_exception(error)
            finally:
                self._leave(loaded, work)

        self._explainer.submit(run)
        (explanation,) = await self._until(deadline, [work])
        return explanation

    def note_drift(self) -> None:
        """Set the metrics of drift; a model without the values of its validation has none."""
        loaded, metrics = self._loaded, self._metrics
        scores = None if loaded.scores is None else loaded.scores.distance()
        found = None if loaded.moments is None else loaded.moments.distance()
        for gauge, value in (
            (metrics.drift, scores),
            (metrics.drift_shift, found.shift if found else None),
            (metrics.drift_frechet, found.frechet if found else None),
            (metrics.drift_pictures, found.pictures if found else None),
        ):
            if value is not None:
                gauge.labels(self.name).set(value)
            else:
                with suppress(KeyError):  # the model of before may have had one
                    gauge.remove(self.name)

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
        predictor = self._open()
        known = predictor.calibration
        scores = Scores(known.confidences) if known and predictor.can_reject else None
        comparable = known and len(known.logit_means) == len(predictor.classes)
        moments = Moments(known.logit_means, known.logit_deviations) if known and comparable else None
        streams = max(1, predictor.choice.streams)
        size, channels = predictor.preprocess.size, predictor.preprocess.channels
        # The first computation of a stream takes longest. The first of a larger batch takes a fifth longer, too, but
        # computing one now would cost more time until the server is ready than it saves.
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(predictor.compute, [np.zeros((1, size, size, channels), np.uint8)] * streams))
        prepare()  # compiles or loads the kernel that resizes
        predictor.keep_for_explanations()
        self._metrics.loads.labels(self.name, "done").inc()
        loaded: list[Loaded] = []
        batcher = Batcher(
            predictor.compute,
            batch_size=predictor.batch_size,
            streams=streams,
            wait=self._limits.wait_ms / 1000,
            observe=lambda computed: self._observe(computed, streams),
            dropped=lambda work: self._leave(loaded[0], work),
        )
        loaded.append(Loaded(predictor, batcher, scores, moments))
        return loaded[0]

    def _decode(self, loaded: Loaded, picture: bytes, work: Work) -> None:
        if work.future.cancelled() or time.monotonic() > work.deadline:
            work.start()
            self._leave(loaded, work)
            return
        began = time.monotonic()
        try:
            decoded = loaded.predictor.decode(picture)
        except Exception as error:
            decoded = error
        self._metrics.stage_seconds.labels(self.name, "decode").observe(time.monotonic() - began)
        if isinstance(decoded, np.ndarray):
            work.pixels, work.queued_at = decoded, time.monotonic()
            loaded.batcher.put([work])
            return
        if work.future.set_running_or_notify_cancel():
            if isinstance(decoded, Failure):
                work.future.set_result(decoded)
            else:
                work.future.set_exception(decoded)
        self._leave(loaded, work)

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

    def _note_scores(self, loaded: Loaded, found: Sequence[Logits | Failure]) -> None:
        rows = [one for one in found if not isinstance(one, Failure)]
        if not rows or (loaded.scores is None and loaded.moments is None):
            return
        logits = np.stack(rows)
        if loaded.moments is not None:
            loaded.moments.add(logits)
        if loaded.scores is not None:
            loaded.scores.add(loaded.predictor.answer.probabilities(logits).max(axis=1))
            self._metrics.rejected.labels(self.name).inc(int(loaded.predictor.reject(logits).sum()))

    def _deadline(self, timeout: float | None) -> float:
        limit = self._limits.timeout
        return time.monotonic() + (limit if timeout is None else min(timeout, limit))

    def _enter(self, count: int) -> Loaded:
        """Take room for `count` pictures, all or none."""
        with self._changed:
            loaded = self._loaded
            if loaded.in_flight + count > self._limits.queue:
                self._metrics.refused.labels("queue").inc()
                raise FullError(self._retry_after(loaded))
            loaded.in_flight += count
            self._metrics.in_flight.labels(self.name).set(loaded.in_flight)
        return loaded

    def _retry_after(self, loaded: Loaded) -> int:
        return max(1, math.ceil(loaded.in_flight * self._seconds_per_picture))

    def _leave(self, loaded: Loaded, work: Work) -> None:
        self._metrics.pictures.labels(self.name, _outcome(work.future)).inc()
        with self._changed:
            loaded.in_flight -= 1
            self._metrics.in_flight.labels(self.name).set(loaded.in_flight)
            if not loaded.in_flight:
                self._changed.notify_all()

    def _retire(self, loaded: Loaded) -> None:
        with self._changed:
            while loaded.in_flight:
                self._changed.wait()
        loaded.batcher.close()

    def _observe(self, computed: Computed, streams: int) -> None:
        pace = computed.seconds / computed.pictures / streams
        self._seconds_per_picture += 0.1 * (pace - self._seconds_per_picture)
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


def _outcome(future: "Future[Any]") -> str:
    if future.cancelled():
        return "cancelled"
    error = future.exception(0)
    if error is not None:
        return "expired" if isinstance(error, ExpiredError) else "failed"
    return "unreadable" if isinstance(future.result(0), Failure) else "answered"
