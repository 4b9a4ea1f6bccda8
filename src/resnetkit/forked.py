"""Work in a forked process, as of web servers and data loaders. The threads of the parent do not exist in it.

A library that had threads before the fork would wait for them without end. This module and `infer.backends` avoid it.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_FIRST = os.getpid()
"""The process that imported this module. A forked process inherits the number; a spawned process imports it again."""


def is_forked() -> bool:
    """Return whether this process was forked from a process that had imported this module."""
    return os.getpid() != _FIRST


def apart(work: Callable[[], Result]) -> Result:
    """Call `work`, which computes with torch, and return its result. In a forked process, it runs in a new thread.

    OpenMP keeps worker threads for each thread that has computed. After a fork, the main thread would wait for workers
    that no longer exist; a new thread gets new workers.
    """
    if not is_forked() or threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
