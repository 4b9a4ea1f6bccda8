"""The routes of the server, as a FastAPI application."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from resnetkit.display import printable
from resnetkit.errors import UsageError
from resnetkit.serve import protocol
from resnetkit.serve.answers import RequestError, predict, uploads
from resnetkit.serve.batcher import ExpiredError
from resnetkit.serve.card import cards
from resnetkit.serve.guard import OTHER, Guard, Scope
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.outputs import outputs
from resnetkit.serve.page import add_page
from resnetkit.serve.served import FullError, ServedModel
from resnetkit.version import __version__

LONG_JSON = 2**16
"""Bytes of JSON that are read in another thread, so that the event loop goes on."""


class OneClass(BaseModel):
    """A class and its probability."""

    label: str
    index: int
    probability: float = Field(ge=0, le=1.000001)


class Explanation(BaseModel):
    """Where the evidence for a class is (Grad-CAM)."""

    label: str = ""
    index: int = 0
    probability: float = 0
    stage: str = ""
    png: str = Field("", description="The picture with the evidence over it, PNG in base64.")
    error: str = ""


class OneObject(BaseModel):
    """An object that a detector found."""

    label: str
    index: int
    score: float = Field(ge=0, le=1.000001)
    box: list[float] = Field(
        min_length=4, max_length=4, description="Left, top, right and bottom in pixels of the upright picture."
    )


class Result(BaseModel):
    """The answer for one picture: predictions of a classifier, detections of a detector, or an error."""

    name: str
    predictions: list[OneClass] | None = None
    width: int | None = Field(None, description="Of the upright picture in pixels, where there are detections.")
    height: int | None = None
    detections: list[OneObject] | None = None
    rejected: bool | None = Field(None, description="Whether the picture seems to be of no known class.")
    error: str | None = None
    explanation: Explanation | None = None


class Answer(BaseModel):
    """The answer for the pictures of a request, in their order."""

    model: str
    results: list[Result]


class Wrong(BaseModel):
    """A request that was not answered."""

    error: str


CLASSES_EXAMPLE = {
    "model": "photos",
    "results": [
        {"name": "cat.jpg", "predictions": [{"label": "cat", "index": 3, "probability": 0.93}]},
        {"name": "notes.txt", "error": "not a picture of a known kind, or broken at its beginning"},
    ],
}
BOXES_EXAMPLE = {
    "model": "cells",
    "results": [
        {
            "name": "blood.jpg",
            "width": 640,
            "height": 480,
            "detections": [{"label": "RBC", "index": 1, "score": 0.98, "box": [204.5, 61.25, 306.0, 158.75]}],
        }
    ],
}
EXAMPLES = {
    "classifier": {"summary": "Classes, and a picture that can't be read", "value": CLASSES_EXAMPLE},
    "detector": {"summary": "Objects", "value": BOXES_EXAMPLE},
}
PICTURES = {
    "requestBody": {
        "required": True,
        "description": "One picture as the body, or a form with a field `file` for each picture.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["file"],
                }
            },
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
TENSORS = {
    "requestBody": {
        "required": True,
        "description": "A request of the Open Inference Protocol; binary tensors may follow the JSON.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object"}},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                        "parameters": {"type": "object"},
                    },
                    "required": ["inputs"],
                },
                "example": {
                    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQ..."]}],
                    "outputs": [{"name": "probabilities", "parameters": {"classification": 5}}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
WRONG: dict[int | str, dict[str, Any]] = {
    status: {"model": Wrong, "description": description}
    for status, description in {
        400: "The request is not valid.",
        401: "The key is missing or wrong.",
        404: "There is no such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large, or has too many pictures.",
        415: "The body is of another type.",
        501: "Explanations can't be computed here.",
        503: "Too many requests wait, or the server ends; Retry-After has the seconds to wait.",
        504: "The deadline has passed.",
    }.items()
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: WRONG[404], 401: WRONG[401]}


class _Api(FastAPI):
    """Takes FastAPI's own answer 422 out of the OpenAPI document: wrong parameters are answered with 400."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for path, methods in document["paths"].items():
            for method in methods.values():
                if path != "/predict":
                    method["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document


def create_app(
    models: Mapping[str, ServedModel], *, limits: Limits, metrics: Metrics, api_key: str | None = None
) -> Guard:
    """Return the application that serves `models`; the first of them is the default of /predict."""
    default = next(iter(models))
    app = _Api(
        title="resnetkit",
        version=__version__,
        description="Predicts the classes of pictures, and finds objects in them.",
        docs_url=None,  # these pages load scripts from other addresses
        redoc_url=None,
        redirect_slashes=False,
    )
    guard = Guard(app, limits=limits, metrics=metrics, api_key=api_key)

    def seconds_until_room() -> int | None:
        seconds = [one.seconds_until_room for one in models.values()]
        return None if None in seconds else min(one for one in seconds if one is not None)

    guard.seconds_until_room = seconds_until_room
    guard.route_of = lambda scope: _route_of(app, scope)

    def model_named(name: str | None) -> ServedModel:
        if name is None:
            return models[default]
        if name not in models:
            raise RequestError(404, f"there is no model {protocol.quoted(name)}; there are {', '.join(models)}")
        return models[name]

    @app.post(
        "/predict",
        responses={
            200: {"model": Answer, "content": {"application/json": {"examples": EXAMPLES}}},
            422: {"model": Answer, "description": "None of the pictures could be read."},
            **WRONG,
        },
        openapi_extra=PICTURES,
    )
    async def post_predict(
        request: Request,
        model: Annotated[str | None, Query(description="Name of the model; unset: the first.")] = None,
        top: Annotated[
            int | None,
            Query(
                ge=1,
                le=100_000,
                description="Of a classifier: number of classes, the best first; by default 5, and of a multi-label "
                "model all that reach their thresholds, which may be none.",
            ),
        ] = None,
        explain: Annotated[
            str | None, Query(description="Draw the evidence for a class, by name or index; true: for the best.")
        ] = None,
        reject: Annotated[bool, Query(description="Say whether a picture seems to be of no known class.")] = False,
        name: Annotated[str, Query(description="Name of a picture that has none.")] = "picture",
        threshold: Annotated[
            float | None,
            Query(
                ge=0,
                le=1,
                description="Of a detector: the least score of a detection; by default, for each class, the best one "
                "of its validation.",
            ),
        ] = None,
        timeout_ms: Annotated[float | None, Query(ge=1, le=1e9, description="Deadline of this request.")] = None,
    ) -> Response:
        """Return the most probable classes of each picture, or, by a detector, the objects in it.

        A picture that can't be read fails alone.
        """
        served = model_named(model)
        pictures = await uploads(request.headers, await request.body(), name=name, limits=limits)
        timeout = None if timeout_ms is None else timeout_ms / 1000
        wanted = None if explain in (None, "", "false") else explain
        status, answer = await predict(
            served, pictures, top=top, reject=reject, explain=wanted, threshold=threshold, timeout=timeout
        )
        return _json(answer, status)

    @app.get("/health/live", response_class=JSONResponse)
    @app.get("/v2/health/live", response_class=JSONResponse)
    async def live() -> Response:
        """Whether the process runs."""
        return _json({"live": True})

    ready_answers: dict[int | str, dict[str, Any]] = {503: {"description": "The server ends."}}

    @app.get("/health/ready", responses=ready_answers)
    @app.get("/v2/health/ready", responses=ready_answers)
    async def ready() -> Response:
        """Whether requests should be sent here."""
        return _json({"ready": not guard.draining}, 503 if guard.draining else 200)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, 401: WRONG[401]})
    async def get_metrics() -> Response:
        """Return the metrics for Prometheus."""
        for served in models.values():
            served.note_drift()
        return Response(metrics.text(), headers={"content-type": metrics.content_type})

    @app.get("/models", responses={401: WRONG[401]})
    async def get_models() -> Response:
        """Return what is known of each model: classes, network, way of computing; and the limits."""
        return _json(cards(models.values(), limits))

    @app.get("/v2", responses={401: WRONG[401]})
    async def server_metadata() -> Response:
        """Return the metadata of the server."""
        return _json(protocol.server_metadata())

    def of_model(
        end: str,
        answer: Callable[[Request, ServedModel], Awaitable[Response]],
        *,
        method: str = "GET",
        responses: dict[int | str, dict[str, Any]],
        openapi_extra: dict[str, Any] | None = None,
    ) -> None:
        """Add a route of the protocol for a model, and the same with its version."""
        named = Annotated[str, Path(description="Name of the model.", examples=[default])]
        versioned = Annotated[str, Path(description="Version of the model.", examples=[protocol.VERSION])]

        async def newest(request: Request, model: named) -> Response:
            return await answer(request, model_named(model))

        async def of_version(request: Request, model: named, version: versioned) -> Response:
            served = model_named(model)
            if version != protocol.VERSION:
                raise RequestError(404, f"model {model} has version {protocol.VERSION}, not {protocol.quoted(version)}")
            return await answer(request, served)

        for path, function in (("", newest), ("/versions/{version}", of_version)):
            app.add_api_route(
                f"/v2/models/{{model}}{path}{end}",
                function,
                methods=[method],
                description=answer.__doc__,
                name=answer.__name__,
                responses=responses,
                openapi_extra=openapi_extra,
            )

    async def model_metadata(request: Request, served: ServedModel) -> Response:
        """Return the inputs and outputs of a model."""
        return _json(protocol.model_metadata(served.name, served.opened.signature))

    async def model_ready(request: Request, served: ServedModel) -> Response:
        """Whether a model answers requests."""
        return _json({"name": served.name, "ready": not guard.draining}, 503 if guard.draining else 200)

    async def model_config(request: Request, served: ServedModel) -> Response:
        """Return the parts of Triton's model configuration that hold here."""
        opened = served.opened
        return _json(protocol.model_configuration(served.name, opened.signature, opened.batch_size))

    async def infer(request: Request, served: ServedModel) -> Response:
        """Compute a model for pictures: files in the input `image`, or pixels in the input `pixels`."""
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise RequestError(415, f"the body is compressed ({protocol.quoted(encoding)}); send it as it is")
        body, header_length = await request.body(), request.headers.get(protocol.HEADER_LENGTH)

        def read() -> protocol.InferRequest:
            return protocol.read_request(body, header_length, served.opened.signature, most=limits.max_pictures)

        # Numbers and base64 in JSON may take long; tensors after the JSON do not.
        long = header_length is None and len(body) > LONG_JSON
        given = await asyncio.to_thread(read) if long else read()
        opened, found = await served.find(given.pictures, timeout=given.timeout)
        content, length = protocol.write_answer(served.name, given.id, outputs(opened, given, found))
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={protocol.HEADER_LENGTH: str(length)})

    of_model("", model_metadata, responses=NOT_FOUND)
    of_model("/ready", model_ready, responses=ready_answers | NOT_FOUND)
    of_model("/config", model_config, responses=NOT_FOUND)
    of_model("/infer", infer, method="POST", responses=WRONG, openapi_extra=TENSORS)
    add_page(app)
    _answer_errors(app)
    return guard


def _route_of(app: FastAPI, scope: Scope) -> str:
    """Return the path of the route that takes a request, with its parameters unnamed as in /v2/models/{model}."""
    found = (route for route in app.routes if route.matches(scope)[0] is Match.FULL)
    return getattr(next(found, None), "path", OTHER)


def _json(content: Any, status: int = 200) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    return Response(body, status, media_type="application/json")


def _answer_errors(app: FastAPI) -> None:
    """Answer each error in one form, {"error": text}, without anything of the inside."""

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        return _json({"error": str(error)}, error.status)

    @app.exception_handler(UsageError)
    async def usage_error(request: Request, error: UsageError) -> Response:
        return _json({"error": printable(str(error))}, 400)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _json({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        answer = _json({"error": str(error.detail).lower()}, error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(FullError)
    async def full(request: Request, error: FullError) -> Response:
        answer = _json({"error": str(error)}, 503)
        answer.headers["retry-after"] = str(error.retry_after)
        return answer

    @app.exception_handler(ExpiredError)
    async def expired(request: Request, error: ExpiredError) -> Response:
        return _json({"error": str(error)}, 504)
