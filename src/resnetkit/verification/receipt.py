"""The receipt of a model of any kind."""

from collections.abc import Callable
from pathlib import Path

from resnetkit.modelfile import inspect
from resnetkit.serve.client import Client
from resnetkit.verification.classifiers import Verification, verify_classifier
from resnetkit.verification.detectors import DetectorVerification, verify_detector


def verify(
    model: str | Path,
    data: str | Path | None = None,
    *,
    url: str | None = None,
    key: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Verification | DetectorVerification:
    """Compare all ways to predict with training's evaluation, picture by picture.

    `data` is a folder or a data set; labels are not needed. Without it, the pictures are those of the run's validation
    part, if the model is in a run folder whose data are there; else they are drawn. `say` is called with a line before
    each way. With `url`, the address of a server of `resnetkit serve`, its answers are one more way; `key` is the key
    that it asks for.

    Raises DataError if no picture can be read or the server can't be asked, UsageError for a wrong `url`, and the
    errors of `load`.
    """
    client = None if url is None else Client(url, key)
    if client is not None:
        client.models()  # a server that can't be asked is said before minutes of work
    of_kind = verify_detector if inspect(model).kind == "detector" else verify_classifier
    return of_kind(model, data, client=client, say=say)
