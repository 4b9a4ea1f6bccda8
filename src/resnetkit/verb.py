"""Packages that are also functions: `resnetkit.train(...)` and `resnetkit.train.loop` both work."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

OF_A_PACKAGE = ("__file__", "__loader__", "__package__", "__path__", "__spec__")
"""Attributes of a package for the import system, and for tools that search a package's files."""


def stands_for(package: str, function: Callable[..., Any]) -> None:
    """Make `function` the result of importing `package`. Call it at the end of the package's __init__.

    Python sets `resnetkit.train` to the package as soon as a module in it is imported, and replaces any other object of
    this name. But an entry of `sys.modules` need not be a module. A function with the attributes of a package works as
    a package: Python adds the package's modules to it as attributes, and `help`, `inspect` and `pickle` see a function.
    """
    for name in OF_A_PACKAGE:
        setattr(function, name, getattr(sys.modules[package], name))
    parent, _, function.__qualname__ = package.rpartition(".")
    function.__name__ = package  # `from resnetkit.train import loop` finds the module by this name
    function.__module__ = parent
    sys.modules[package] = cast("ModuleType", function)
