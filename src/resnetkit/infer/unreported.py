"""OpenVINO, NNCF and ONNX Runtime without their reports to Intel and Microsoft, which begin when they are imported."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REPORTER = "openvino_telemetry"
"""The package that reports for OpenVINO and NNCF; both do without it where it is not installed."""
DISABLED = "ORT_DISABLE_TELEMETRY"
"""Where this is 1, ONNX Runtime keeps no number of the machine in the home folder, and sends nothing. Its own
`disable_telemetry_events` comes too late: the number is written while it is imported."""


@contextmanager
def unreported() -> Iterator[None]:
    """Within it, what is imported for the first time reports nothing; afterwards the process is as it was.

    What was imported before, by somebody else, stays as they have it.
    """
    module, variable = sys.modules.get(REPORTER), os.environ.get(DISABLED)
    sys.modules[REPORTER] = None  # pyrefly: ignore[unsupported-operation]
    os.environ[DISABLED] = "1"
    try:
        yield
    finally:
        if module is None:
            sys.modules.pop(REPORTER, None)
        else:
            sys.modules[REPORTER] = module
        if variable is None:
            os.environ.pop(DISABLED, None)
        else:
            os.environ[DISABLED] = variable
