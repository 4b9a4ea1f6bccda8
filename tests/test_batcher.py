"""Dynamic batching, without a network and without HTTP."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from threading import Event, Lock

import numpy as np
import pytest

from resnetkit.serve.batcher import Batcher, ClosedError, Computed, ExpiredError, Work

FAR = float("inf")


class Network:
    """Returns each picture's first pixel as its logit; can be stopped, and fails for a batch with a 255 in it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go_on = Event()
        self.go_on.set()
        self.began = Event()
        self._lock = Lock()

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        first = [int(one[0, 0, 0]) for one in pictures]
        with self._lock:
            self.batches.append(first)
        self.began.set()
        assert self.go_on.wait(10)
        if 255 in first:
            raise ValueError("255")
        return np.array(first, np.float32)[:, None]


def work(value: int, deadline: float = FAR) -> Work:
    return Work(np.full((2, 2, 3), value, np.uint8), deadline)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@contextmanager
def busy(network: Network, batcher: Batcher) -> Iterator[Work]:
    """Within the block, one stream computes a picture, 99."""
    network.began.clear()
    network.go_on.clear()
    held = work(99)
    batcher.put([held])
    assert network.began.wait(10)
    try:
        yield held
    finally:
        network.go_on.set()
    assert held.future.result(10) == [99]


@pytest.fixture
def network() -> Network:
    return Network()


def test_what_waits_is_computed_together_and_each_gets_its_own_row(network: Network) -> None:
    seen: list[Computed] = []
    batcher = Batcher(network, batch_size=4, observe=seen.append)
    works = [work(value) for value in range(10)]
    with busy(network, batcher):
        for one in works:
            batcher.put([one])
        assert len(batcher) == 10
    assert [one.future.result(10).tolist() for one in works] == [[value] for value in range(10)]
    batcher.close()
    assert network.batches == [[99], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [one.pictures for one in seen] == [1, 4, 4, 2]
    assert all(len(one.waited) == one.pictures and min(one.waited) >= 0 for one in seen)


def test_an_idle_model_does_not_wait(network: Network) -> None:
    batcher = Batcher(network, batch_size=8, wait=3600)
    one = work(1)
    batcher.put([one])
    assert one.future.result(10) == [1]
    batcher.close()


def test_beside_a_busy_stream_a_batch_waits_but_only_so_long(network: Network) -> None:
    batcher = Batcher(network, batch_size=3, streams=2, wait=3600)
    with busy(network, batcher):
        batcher.put([work(1), work(2)])
        time.sleep(0.05)
        assert network.batches == [[99]]  # two pictures wait for a third
        batcher.put([work(3)])
        until(lambda: len(network.batches) == 2)
    batcher.close()
    assert network.batches == [[99], [1, 2, 3]]
    batcher = Batcher(network, batch_size=3, streams=2, wait=0.01)
    with busy(network, batcher):
        batcher.put([work(4)])
        until(lambda: network.batches[-1] == [4])  # it did not wait for the busy one
    batcher.close()


def test_cancelled_and_expired_pictures_are_never_computed(network: Network) -> None:
    gone: list[Work] = []
    batcher = Batcher(network, batch_size=8, dropped=gone.append)
    cancelled, late, wanted = work(1), work(2, deadline=time.monotonic() - 1), work(3)
    with busy(network, batcher):
        batcher.put([cancelled, late, wanted])
        assert cancelled.future.cancel()
    assert wanted.future.result(10) == [3]
    with pytest.raises(ExpiredError):
        late.future.result(10)
    batcher.close()
    assert network.batches == [[99], [3]]
    assert {id(one) for one in gone} >= {id(cancelled), id(late), id(wanted)}
    assert len(gone) == 4


def test_a_batch_that_fails_is_computed_one_by_one(network: Network) -> None:
    batcher = Batcher(network, batch_size=8)
    works = [work(1), work(255), work(2)]
    with busy(network, batcher):
        batcher.put(works)
    wait([one.future for one in works], 10)
    assert [one.future.exception() is None for one in works] == [True, False, True]
    assert [works[0].future.result().tolist(), works[2].future.result().tolist()] == [[1], [2]]
    with pytest.raises(ValueError, match="255"):
        works[1].future.result()
    after = work(5)  # the thread goes on
    batcher.put([after])
    assert after.future.result(10) == [5]
    batcher.close()


def test_closing_computes_what_was_accepted_and_refuses_the_rest(network: Network) -> None:
    gone: list[Work] = []
    batcher = Batcher(network, batch_size=2, streams=2, wait=3600, dropped=gone.append)
    works = [work(value) for value in range(5)]
    batcher.put(works)
    batcher.close()
    assert sorted(one.future.result(0).item() for one in works) == [0, 1, 2, 3, 4]
    late = work(7)
    batcher.put([late])
    with pytest.raises(ClosedError):
        late.future.result(0)
    assert len(gone) == 6
    batcher.close()


def test_many_callers_with_some_that_give_up(network: Network) -> None:
    batcher = Batcher(network, batch_size=16, streams=3, wait=0.001)
    works = [work(i % 250) for i in range(2000)]
    for place, one in enumerate(works):
        batcher.put([one])
        if place % 7 == 0:
            one.future.cancel()
    batcher.close()
    for place, one in enumerate(works):
        assert one.future.cancelled() or one.future.result(0) == [place % 250]
    computed = sum(map(len, network.batches))
    assert computed == sum(not one.future.cancelled() for one in works) >= 2000 - 286
    assert max(map(len, network.batches)) <= 16
