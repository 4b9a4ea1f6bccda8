"""OpenVINO and NNCF without their reports: each tells Intel that it was imported, and what was done with it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

REPORTER = "openvino_telemetry"
"""The package that sends; both do without it where it is not installed."""


@contextmanager
def unreported() -> Iterator[None]:
    """Within it, what is imported for the first time does not find REPORTER; afterwards all is as it was.

    What was imported before, by somebody else, stays as they have it.
    """
    before = sys.modules.get(REPORTER)
    sys.modules[REPORTER] = None  # pyrefly: ignore[unsupported-operation]
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop(REPORTER, None)
        else:
            sys.modules[REPORTER] = before
