"""`resnetkit serve`: a server that answers requests for predictions."""

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from resnetkit.commands.detect_computing import COMPUTING, is_detector, use_one_thread_beside
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import on_one_line
from resnetkit.errors import DataError, UsageError
from resnetkit.files import expanded
from resnetkit.infer.choice import BackendName, Goal, Precision
from resnetkit.serve.limits import Limits

if TYPE_CHECKING:
    from resnetkit.serve.opened import Opened

PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")
KEY = "RESNETKIT_API_KEY"
NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.ASCII | re.DOTALL)
LOCAL = ("127.0.0.1", "::1", "localhost")


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = Parser(
        "serve", "MODEL... [options]", f"Answer requests for predictions. A key in ${KEY} is asked of every client."
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"{MODEL}; NAME=MODEL gives it a name in addresses")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; 0.0.0.0: all")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0: a free one, which is printed")
    parser.add_argument(
        "--api_key_file", type=str, metavar="FILE", help=f"file with the key that clients must send; unset: ${KEY}"
    )
    parser.add_argument("--log_json", action="store_true", help="log a JSON object for each request")
    parser.add_argument("--goal", type=Goal, default="throughput", help="result of tune to use")
    parser.add_argument(
        "--backend", type=BackendName | None, help="library that computes; unset: tune's choice, or one installed"
    )
    parser.add_argument(
        "--precision", type=Precision | None, help="precision of the numbers; unset: tune's choice, or float32"
    )
    parser.add_argument("--threads", type=int | None, help="threads that compute; unset: tune's choice, or all cores")
    parser.add_argument(
        "--streams", type=int | None, help="batches computed at the same time; unset: tune's choice, or 1"
    )
    parser.add_argument(
        "--batch_size", type=int | None, help="most pictures that go through the network together; unset: tune's choice"
    )
    parser.add_class_arguments(Limits)
    (parser.groups or {})["Limits"].title = "limits"
    given = parser.read(argv)
    limits = Limits(**{name: given[name] for name in Limits.__dataclass_fields__})
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(f"{missing[0].replace('_', '-')} is not installed; pip install 'resnetkit[serve]'")
    if not 0 <= given["port"] < 2**16:
        raise UsageError(f"--port is {given['port']}; it must be from 0 to 65535")
    key = _key(given["api_key_file"])
    _serve(given, _named(given["models"]), limits, key)
    return 0


def _serve(given: dict[str, Any], models: dict[str, str], limits: Limits, key: str | None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from resnetkit.data.decoding.opening import accept_pixels
    from resnetkit.infer.choice import usable_threads
    from resnetkit.infer.unloaded import files_of
    from resnetkit.serve.listener import address_of, listen
    from resnetkit.serve.logs import log_to_standard_error
    from resnetkit.serve.metrics import Metrics
    from resnetkit.serve.served import ServedModel

    metrics = Metrics()
    with ExitStack() as stack:
        listener = stack.enter_context(listen(given["host"], given["port"]))
        # FastAPI and uvicorn take as long to import as a model takes to open, which leaves the interpreter free.
        importer = stack.enter_context(ThreadPoolExecutor(1, "resnetkit-import"))
        imported = importer.submit(_import_server)
        stack.enter_context(accept_pixels(limits.max_pixels))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = cast("Any", _print_warning)
        decoders = stack.enter_context(ThreadPoolExecutor(usable_threads(), "resnetkit-decode"))
        log_to_standard_error(as_json=given["log_json"])
        served = {
            name: ServedModel(
                name,
                _opener(model, given),
                limits=limits,
                metrics=metrics,
                decoders=decoders,
                files=files_of(model),
            )
            for name, model in models.items()
        }
        use_one_thread_beside(*(one.opened.choice for one in served.values()))
        create_app, server = imported.result()
        guard = create_app(served, limits=limits, metrics=metrics, api_key=key)
        address = address_of(listener)
        if given["host"] not in LOCAL and key is None:
            print(
                f"resnetkit serve: warning: everybody who reaches {address} can use it; a key in {KEY} prevents this",
                file=sys.stderr,
            )

        def ready() -> None:
            print(f"serving {', '.join(served)} at {address}", flush=True)

        server.run(guard, list(served.values()), listener, limits=limits, ready=ready)


def _import_server() -> tuple[Any, Any]:
    from resnetkit.serve import server
    from resnetkit.serve.app import create_app

    return create_app, server


def _opener(model: str, given: dict[str, Any]) -> "Callable[[], Opened]":
    def open_model() -> "Opened":
        if is_detector(model):
            return _open_detector(model, given)
        from resnetkit.infer.predictor import Predictor
        from resnetkit.serve.classifier import OpenedClassifier

        stated = {name: given[name] for name in ("backend", "precision", "threads", "streams", "batch_size")}
        return OpenedClassifier(Predictor(model, goal=given["goal"], **stated))

    return open_model


def _open_detector(model: str, given: dict[str, Any]) -> "Opened":
    from resnetkit.detect.predict import DetectorPredictor
    from resnetkit.serve.detector import OpenedDetector

    return OpenedDetector(DetectorPredictor(model, goal=given["goal"], **{name: given[name] for name in COMPUTING}))


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return the models by their names in addresses. Raises UsageError for two of one name."""
    found: dict[str, str] = {}
    for model in models:
        match = NAMED.fullmatch(model)
        if match and not Path(model).exists():
            name, model = match.groups()
        else:
            path = Path(model)
            last = path.resolve().name if path.exists() else model
            name = re.sub(r"[^A-Za-z0-9.-]+", "-", last.removesuffix(".safetensors")).strip("-.") or "model"
        if name in found:
            raise UsageError(f"two models are called {name}; give one of them another name: NAME={model}")
        found[name] = model
    return found


def _key(file: str | None) -> str | None:
    if file is None:
        return os.environ.get(KEY) or None
    try:
        key = expanded(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file of the key, {file}, can't be read: {error}") from error
    if not key or not key.isascii():
        raise DataError(f"the file of the key, {file}, has no key of ASCII letters in it")
    return key


def _print_warning(message: Warning | str, *_: object) -> None:
    """Print a warning in one line, without the place in the code."""
    print(f"resnetkit serve: warning: {on_one_line(message)}", file=sys.stderr)
