"""Dynamic batching: pictures of many requests go through the network together, and each is answered on its own."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from resnetkit.errors import ResnetkitError


class ExpiredError(ResnetkitError):
    """The deadline of a picture passed before it was computed."""


class ClosedError(ResnetkitError):
    """The batcher computes no more pictures."""


@dataclass(eq=False)
class Work:
    """One picture on its way through the network."""

    picture: Any
    """What `compute` takes, such as decoded pixels."""
    deadline: float
    """On the clock time.monotonic."""
    future: "Future[Any]" = field(default_factory=Future)
    """Its result is what was found in the picture. It fails with ExpiredError, ClosedError, or what the network raised.
    If it is cancelled while the picture waits, the picture is not computed."""
    queued_at: float = field(default_factory=time.monotonic)

    def start(self) -> bool:
        """Whether the picture is still wanted; from now on it can't be cancelled. An expired one fails here."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() < self.deadline:
            return True
        self.future.set_exception(ExpiredError("the deadline passed before the picture was computed"))
        return False


@dataclass(frozen=True)
class Computed:
    """A batch that was computed, for metrics."""

    pictures: int
    seconds: float
    waited: Sequence[float]
    """For each picture, seconds in the queue."""


class Batcher:
    """A queue of pictures, and `streams` threads that compute them in batches.

    A thread that is free takes what is in the queue, up to `batch_size` pictures. If no other thread computes, it takes
    them at once, so an idle model answers without waiting. Else it waits until the batch is full or its first picture
    has waited for `wait` seconds. Cancelled and expired pictures are dropped when they would enter a batch. If a batch
    fails, its pictures are computed one by one, so that only the one that fails gets the error.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Sequence[Any]],
        *,
        batch_size: int,
        streams: int = 1,
        wait: float = 0.0,
        observe: Callable[[Computed], None] = lambda computed: None,
        dropped: Callable[[Work], None] = lambda work: None,
    ) -> None:
        """Start the threads.

        `compute` takes the pictures of a batch, and returns as many results in their order. `observe` is called after
        each batch. `dropped` is called for each picture that leaves the queue, computed or not.
        """
        self.batch_size = batch_size
        self._compute = compute
        self._wait = wait
        self._observe = observe
        self._dropped = dropped
        self._queue: deque[Work] = deque()
        self._changed = Condition()
        self._computing = 0
        self._closed = False
        self._threads = [Thread(target=self._run, name=f"resnetkit-batch-{i}", daemon=True) for i in range(streams)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return the number of pictures that wait."""
        return len(self._queue)

    def put(self, works: Sequence[Work]) -> None:
        """Queue pictures. After `close`, they fail with ClosedError."""
        with self._changed:
            if not self._closed:
                self._queue.extend(works)
                self._changed.notify_all()
                return
        for work in works:
            if work.future.set_running_or_notify_cancel():
                work.future.set_exception(ClosedError("the model is closed"))
            self._dropped(work)

    def close(self) -> None:
        """Compute what is in the queue, and end the threads. A second call waits, too."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while batch := self._take():
            self._finish(batch)
            with self._changed:
                self._computing -= 1
                self._changed.notify_all()

    def _take(self) -> list[Work]:
        """Return the next batch, when it should be computed; an empty list at the end."""
        with self._changed:
            while True:
                self._drop_first()
                if not self._queue and self._closed:
                    return []
                if not self._queue:
                    self._changed.wait()
                    continue
                left = self._queue[0].queued_at + self._wait - time.monotonic()
                full = len(self._queue) >= self.batch_size
                if not (full or self._computing == 0 or left <= 0 or self._closed):
                    self._changed.wait(left)
                    continue
                batch: list[Work] = []
                while self._queue and len(batch) < self.batch_size:
                    work = self._queue.popleft()
                    if work.start():
                        batch.append(work)
                    else:
                        self._dropped(work)
                if batch:
                    self._computing += 1
                    return batch

    def _drop_first(self) -> None:
        """Drop cancelled pictures at the head of the queue, so that nothing waits for them."""
        while self._queue and self._queue[0].future.cancelled():
            work = self._queue.popleft()
            work.future.set_running_or_notify_cancel()
            self._dropped(work)

    def _finish(self, batch: list[Work]) -> None:
        began = time.monotonic()
        try:
            found = self._compute([work.picture for work in batch])
        except Exception as error:  # of any kind: the thread must go on, and others are waiting
            for work in batch:
                self._finish_alone(work, error if len(batch) == 1 else None)
        else:
            for work, one in zip(batch, found, strict=True):
                work.future.set_result(one)
        ended = time.monotonic()
        for work in batch:
            self._dropped(work)
        self._observe(Computed(len(batch), ended - began, [began - work.queued_at for work in batch]))

    def _finish_alone(self, work: Work, error: Exception | None) -> None:
        try:
            if error is not None:
                raise error
            work.future.set_result(self._compute([work.picture])[0])
        except Exception as reason:
            work.future.set_exception(reason)
