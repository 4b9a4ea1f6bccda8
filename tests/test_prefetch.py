"""Reading ahead: results in order, a limited distance, failures as results, and no threads left at the end."""

import threading
from contextlib import closing
from pathlib import Path

import pytest

from resnetkit.data.prefetch import Failure, prefetch
from resnetkit.errors import DataError, UsageError


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("resnetkit-prefetch")]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ahead", [0, 3, 100])
def test_results_come_in_order(workers, ahead):
    assert list(prefetch(lambda n: n * n, range(20), workers=workers, ahead=ahead)) == [n * n for n in range(20)]
    assert list(prefetch(str, [], workers=workers, ahead=ahead)) == []
    assert threads() == []


def test_a_slow_job_does_not_lose_its_place():
    others = threading.Event()

    def read(n):
        if n == 0:
            assert others.wait(60)
        if n == 3:
            others.set()
        return n

    assert list(prefetch(read, range(4), workers=2, ahead=3)) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_are_values(workers):
    def read(path):
        if path.suffix == ".bad":
            raise DataError("the file is empty", name=str(path))
        if path.suffix == ".long":
            raise DataError("it is too long")
        return path.name

    paths = [Path("a.png"), Path("b.bad"), Path("c.long"), Path("d.png")]
    results = list(prefetch(read, paths, workers=workers, ahead=2))
    assert results == ["a.png", Failure(paths[1], "the file is empty"), Failure(paths[2], "it is too long"), "d.png"]
    assert str(results[1]) == "b.bad: the file is empty"


@pytest.mark.parametrize("workers", [0, 2])
def test_jobs_are_named_by_their_paths(workers):
    def read(number):
        raise DataError("it is broken")

    def first(**options):
        return next(prefetch(read, [7], workers=workers, ahead=0, **options))

    assert first(path_of=lambda number: Path(f"{number}.png")) == Failure(Path("7.png"), "it is broken")
    in_memory = first()
    assert in_memory == Failure(None, "it is broken")
    assert str(in_memory) == "it is broken"


@pytest.mark.parametrize("workers", [0, 2])
def test_other_exceptions_are_raised_in_their_turn(workers):
    def read(n):
        if n == 2:
            raise ValueError("a mistake")
        return n

    results = prefetch(read, range(9), workers=workers, ahead=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="a mistake"):
        next(results)
    assert threads() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_jobs_raise_is_no_failure(workers):
    def jobs():
        yield 0
        raise DataError("no such list")

    results = prefetch(str, jobs(), workers=workers, ahead=0)
    assert next(results) == "0"
    with pytest.raises(DataError, match="no such list"):
        next(results)
    assert threads() == []


@pytest.mark.parametrize(("workers", "ahead"), [(0, 7), (1, 0), (2, 3), (8, 3)])
def test_jobs_are_taken_no_further_than_ahead(workers, ahead):
    taken = []

    def jobs():
        for n in range(50):
            taken.append(n)
            yield n

    results = prefetch(str, jobs(), workers=workers, ahead=ahead)
    assert taken == []
    for given in range(1, 30):
        next(results)
        assert len(taken) == given + (ahead if workers else 0)
    results.close()
    assert threads() == []


def test_closing_ends_the_threads_and_drops_what_has_not_begun():
    begun = []
    release = threading.Event()

    def read(n):
        begun.append(n)
        if n:
            assert release.wait(60)
        return n

    with closing(prefetch(read, range(100), workers=2, ahead=50)) as results:
        assert next(results) == 0
        assert len(threads()) == 2
        threading.Timer(0.1, release.set).start()
    assert threads() == []
    assert len(begun) < 10


@pytest.mark.parametrize("options", [{"workers": -1, "ahead": 1}, {"workers": 1, "ahead": -1}])
def test_negative_numbers_are_refused(options):
    with pytest.raises(UsageError, match="is -1; it must be at least 0"):
        next(prefetch(str, [1], **options))
