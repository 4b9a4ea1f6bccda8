"""POST /predict: pictures in the body of a request to labelled probabilities, or boxes, in JSON."""

import asyncio
import base64
import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from resnetkit.data.prefetch import Failure
from resnetkit.display import cut, printable
from resnetkit.errors import DataError
from resnetkit.serve.classifier import OpenedClassifier
from resnetkit.serve.detector import OpenedDetector
from resnetkit.serve.limits import Limits
from resnetkit.serve.served import ServedModel

FIELD = "file"
"""The field of a form that has a picture."""
LONGEST_NAME = 255
BY_FLAG = ", or raise the limit by `max_pixels`"
"""The part of an error that is for those who run the server."""
SHOWN = 1024
"""Pixels of the longer side of a drawn explanation, at most."""


class RequestError(Exception):
    """A request that can't be answered, with the status and the words of its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Upload(NamedTuple):
    """One picture of a request."""

    name: str
    content: bytes


class _InMemory(MultiPartParser):
    """Keeps every part in memory: a body is within the server's limit, and nothing of a client is on the disk."""

    spool_max_size = 2**62


async def uploads(headers: Mapping[str, str], body: bytes, *, name: str, limits: Limits) -> list[Upload]:
    """Return the pictures in a body: a raw one of type image/*, called `name`, or a form with fields `file`.

    `headers` have lower-case names. Raises RequestError for another type, a form that is broken, and too many pictures.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [Upload(shown(name), body)]
    if kind != "multipart/form-data":
        raise RequestError(
            415,
            "send one picture as the body with a Content-Type of image/*, or multipart/form-data with fields `file`",
        )

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(Headers(headers), stream(), max_files=limits.max_pictures, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = "Too many files" in error.message
        raise RequestError(
            413 if too_many else 400,
            f"more than {limits.max_pictures} pictures" if too_many else f"the form is broken: {error.message}",
        ) from error
    files = form.getlist(FIELD)
    if not files or len(files) != len(form.multi_items()) or not all(isinstance(file, UploadFile) for file in files):
        raise RequestError(400, f"the form must have pictures in fields `{FIELD}`, as files with names, and no others")
    found = [Upload(shown(file.filename or name), await file.read()) for file in files if isinstance(file, UploadFile)]
    await form.close()
    return found


async def predict(
    model: ServedModel,
    pictures: Sequence[Upload],
    *,
    top: int | None = None,
    reject: bool = False,
    explain: str | None = None,
    threshold: float | None = None,
    timeout: float | None = None,
) -> tuple[int, dict[str, Any]]:
    """Return the status and the answer for pictures.

    With `reject`, each result says whether the picture seems to be of no known class. `explain` is the class whose
    evidence is drawn over each picture: a name, an index, or "true" for the most probable. They and `top` are for
    classifiers. `threshold` is for detectors: the least score of a detection, in place of the model file's.

    Raises what `ServedModel.find` and `ServedModel.explain` raise, and RequestError for what the model can't do.
    """
    _refuse_misfit(model, top=top, reject=reject, explain=explain, threshold=threshold)
    opened, found = await model.find([picture.content for picture in pictures], timeout=timeout)
    results: list[dict[str, Any]] = []
    for picture, one in zip(pictures, found, strict=True):
        result: dict[str, Any] = {"name": picture.name}
        if isinstance(one, Failure):
            result["error"] = reason(one)
        elif isinstance(opened, OpenedDetector):
            result |= opened.answer(one, threshold)
        elif isinstance(opened, OpenedClassifier):
            result |= opened.answer(one, top=top, reject=reject)
        results.append(result)
    if explain is not None:
        for picture, result in zip(pictures, results, strict=True):
            if "predictions" in result:
                best = result["predictions"][0]["index"] if result["predictions"] else None
                label = best if explain == "true" else explain
                result["explanation"] = await _explained(model, picture.content, label, timeout)
    answered = any("error" not in result for result in results)
    return 200 if answered else 422, {"model": model.name, "results": results}


def _refuse_misfit(
    model: ServedModel, *, top: int | None, reject: bool, explain: str | None, threshold: float | None
) -> None:
    """Raise RequestError for a wish that the model can't fulfil."""
    opened = model.opened
    if isinstance(opened, OpenedDetector):
        for name, given in (("top", top is not None), ("reject", reject), ("explain", explain is not None)):
            if given:
                raise RequestError(400, f"model {model.name} is a detector; leave out `{name}`")
    if not isinstance(opened, OpenedClassifier):
        return
    predictor = opened.predictor
    if threshold is not None:
        raise RequestError(400, f"model {model.name} is a classifier; leave out `threshold`")
    if reject and not predictor.can_reject:
        if predictor.answer.multilabel:
            raise RequestError(400, f"model {model.name} gives no label where none applies; leave out `reject`")
        raise RequestError(400, f"model {model.name} has no threshold to reject pictures by")
    if explain is not None and not predictor.can_explain:
        raise RequestError(501, "this server can't explain predictions: it computes without OpenVINO and torch")


async def _explained(
    model: ServedModel, content: bytes, label: str | int | None, timeout: float | None
) -> dict[str, Any]:
    try:
        explanation = await model.explain(content, label=label, timeout=timeout)
    except DataError as error:
        return {"error": error.reason}

    def drawn() -> str:
        picture, file = explanation.overlay(), io.BytesIO()
        picture.thumbnail((SHOWN, SHOWN))
        picture.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    return {
        "label": explanation.label,
        "index": explanation.index,
        "probability": explanation.probability,
        "stage": explanation.stage,
        "png": await asyncio.to_thread(drawn),
    }


def reason(failure: Failure) -> str:
    """Return why a picture can't be read, for a client."""
    return printable(failure.reason.replace(BY_FLAG, ""))


def shown(name: str) -> str:
    """Return a client's name of a picture, which is only ever sent back, without control characters and cut."""
    return (
        cut("".join(letter if letter.isprintable() else " " for letter in printable(name)), LONGEST_NAME) or "picture"
    )
