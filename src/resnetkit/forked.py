"""Work in a forked process, as web servers and data loaders make them: the threads of the parent do not exist there.

Libraries that had threads before the fork wait for them for ever. This module and `infer.backends` avoid that.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_FIRST = os.getpid()
"""The process that imported this module. A forked process inherits the number; a spawned one imports it anew."""


def is_forked() -> bool:
    """Whether this process was forked from one that had imported this module."""
    return os.getpid() != _FIRST


def apart(work: Callable[[], Result]) -> Result:
    """Call `work`, which computes with torch, and return its result; in a forked process in a thread of its own.

    OpenMP keeps worker threads for each thread that has computed. After a fork, the main thread would wait for workers
    that no longer exist; a new thread gets new ones.
    """
    if not is_forked() or threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
