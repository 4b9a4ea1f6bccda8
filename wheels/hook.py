"""Adds libraries that were built ahead to a wheel. Without them, as for `pip install .`, a wheel has only the sources.

`$RESNETKIT_BUILT` is a folder, named by the wheel's platform tag, with the libraries at their places in the wheel.
"""

import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuiltLibraries(BuildHookInterface):
    """The hook that hatchling calls before it makes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries and the tag of their platform."""
        if "RESNETKIT_BUILT" not in os.environ or version == "editable":
            return
        folder = Path(os.environ["RESNETKIT_BUILT"])
        build_data["tag"] = f"py3-none-{folder.name}"
        build_data["pure_python"] = False
        for path in folder.rglob("*"):
            if path.is_file():
                build_data["force_include"][str(path)] = path.relative_to(folder).as_posix()
