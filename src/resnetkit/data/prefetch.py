"""Read ahead with threads: results in order, bounded memory, and failures as values. No torch here."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from resnetkit.errors import DataError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """A picture that can't be read."""

    path: Path | None
    """Its file; None for a picture in memory."""
    reason: str
    """What is wrong with it, without the path."""

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


def own_path(job: object) -> Path | None:
    """The job itself, if it is a path."""
    return job if isinstance(job, Path) else None


def prefetch(
    read: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    ahead: int,
    path_of: Callable[[Job], Path | None] = own_path,
) -> Generator[Result | Failure]:
    """Yield `read(job)` for each job, in the order of the jobs.

    `workers` threads run `read`, and are up to `ahead` jobs ahead of the result that is yielded. With 0 workers there
    are no threads, and each job is read when its result is asked for. `jobs` is iterated in the caller's thread.

    A DataError from `read` is yielded as a Failure, with the path that `path_of` gives for the job. Any other exception
    is raised in the place of the result. Close the generator when you stop early (`contextlib.closing`): once it is
    closed, or has ended, its threads have ended, and jobs that had not begun are dropped.

    Raises UsageError for a negative `workers` or `ahead`, before the first result.
    """
    for name, value in (("workers", workers), ("ahead", ahead)):
        if value < 0:
            raise UsageError(f"`{name}` is {value}; it must be at least 0")

    def attempt(job: Job) -> Result | Failure:
        try:
            return read(job)
        except DataError as error:
            return Failure(path_of(job), error.reason)

    if not workers:
        yield from map(attempt, jobs)
        return
    pool = ThreadPoolExecutor(workers, "resnetkit-prefetch")
    started: deque[Future[Result | Failure]] = deque()
    try:
        for job in jobs:
            started.append(pool.submit(attempt, job))
            if len(started) > ahead:
                yield started.popleft().result()
        while started:
            yield started.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
