"""Work in a process that was forked, as web servers and loaders of data do it: the threads of its parent are not there.

Libraries that had threads before the fork wait for them for ever. What survives it, and how, is said here and in
`infer.backends`.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_FIRST = os.getpid()
"""The process that imported this. A forked one has the module with this number; a spawned one imports it anew."""


def is_forked() -> bool:
    """Whether this process was forked from one that had imported this module."""
    return os.getpid() != _FIRST


def apart(work: Callable[[], Result]) -> Result:
    """What `work`, which computes with torch, returns; in a forked process it runs in a thread of its own.

    OpenMP keeps threads for each thread that has computed. The one thread that a fork leaves waits for those of before,
    and any later one gets new ones.
    """
    if not is_forked() or threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
