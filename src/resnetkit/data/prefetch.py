"""Read pictures ahead with threads: results come in order, and failures are results too. No torch here."""

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
    """Why it can't be read, without the path."""

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


def own_path(job: object) -> Path | None:
    """Return the job itself if it is a path, else None."""
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

    `workers` threads run `read` on up to `ahead` jobs before their results are needed. With 0 workers there are no
    threads, and each job is read when its result is needed. The caller's thread iterates over `jobs`.

    A DataError from `read` is yielded as a Failure, with the path that `path_of` returns for the job. Any other
    exception is raised instead of the result. Close the generator if you stop early (`contextlib.closing`): closing it
    waits for its threads, and drops jobs that have not begun.

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
