"""Import OpenVINO, NNCF and ONNX Runtime without the reports that they send to Intel and Microsoft."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REPORTER = "openvino_telemetry"
"""The package that sends the reports of OpenVINO and NNCF. Both work without it."""
DISABLED = "ORT_DISABLE_TELEMETRY"
"""If this variable is 1, ONNX Runtime sends no reports and writes no machine identifier to the home folder. Its own
`disable_telemetry_events` is too late: the identifier is written during the import."""


@contextmanager
def unreported() -> Iterator[None]:
    """Within the block, packages that are imported for the first time send no reports.

    Packages that other code imported before are not changed. At the end, the process's settings are restored.
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
