"""Packages that are also functions: `resnetkit.train(...)` beside `resnetkit.train.loop`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

OF_A_PACKAGE = ("__file__", "__loader__", "__package__", "__path__", "__spec__")
"""Attributes that the import system, and tools that look for a package's files, read."""


def stands_for(package: str, function: Callable[..., Any]) -> None:
    """Make `function` the result of importing `package`. Call it at the end of the package's __init__.

    Python sets `resnetkit.train` to the package as soon as a module in it is imported, whatever had that name before.
    But what is in `sys.modules` need not be a module. A function with a package's attributes works as one: it gets the
    package's modules as attributes, and `help`, `inspect` and `pickle` see a function.
    """
    for name in OF_A_PACKAGE:
        setattr(function, name, getattr(sys.modules[package], name))
    parent, _, function.__qualname__ = package.rpartition(".")
    function.__name__ = package  # `from resnetkit.train import loop` finds the module by it
    function.__module__ = parent
    sys.modules[package] = cast("ModuleType", function)
