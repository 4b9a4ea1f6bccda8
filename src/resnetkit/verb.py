"""A package that is called like a verb, and is that function: `resnetkit.train(...)` beside `resnetkit.train.loop`."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

OF_A_PACKAGE = ("__file__", "__loader__", "__package__", "__path__", "__spec__")
"""What the import system, and who looks for a package's files, reads of a package."""


def stands_for(package: str, function: Callable[..., Any]) -> None:
    """Let `function` be what importing `package` gives; called at the end of the package's __init__.

    By the rules of importing, `resnetkit.train` is the package from the first import of a module in it, whatever else
    had that name. What is in `sys.modules` need not be a module: a function with a package's attributes serves, gets
    its modules as attributes, and is a function to `help`, `inspect` and `pickle`.
    """
    for name in OF_A_PACKAGE:
        setattr(function, name, getattr(sys.modules[package], name))
    parent, _, function.__qualname__ = package.rpartition(".")
    function.__name__ = package  # by which `from resnetkit.train import loop` finds the module
    function.__module__ = parent
    sys.modules[package] = cast("ModuleType", function)
