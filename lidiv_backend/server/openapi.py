"""What ``/openapi.json`` says of the routes, made from the models that parse what is sent."""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.labelstudio.requests import PredictRequest, SetupRequest, WebhookEvent

_SCHEMAS = "#/components/schemas/{model}"


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(_Reply):
    """The process lives."""

    status: Literal["UP"]
    model_class: str


class Ready(_Reply):
    """The model is loaded."""

    status: Literal["READY"]
    model_version: str


class SetupReply(_Reply):
    """What is served."""

    model_version: str


class Meta(_Reply):
    """Shown in a region's details, and saved with it."""

    text: list[str]


class RegionValue(_Reply):
    """A mask, as Label Studio encodes it."""

    format: Literal["rle"]
    rle: list[int]
    brushlabels: list[str] | None = None
    labels: list[str] | None = None


class RegionReply(BaseModel):
    """One result of a prediction; two with one id where labels have a tag of their own."""

    id: str
    from_name: str
    to_name: str
    type: str
    original_width: int
    original_height: int
    image_rotation: float
    origin: str
    readonly: bool
    score: float
    value: RegionValue
    meta: Meta | None = None


class PredictionReply(_Reply):
    """One prediction."""

    result: list[RegionReply]
    score: float
    model_version: str


class PredictReply(_Reply):
    """For each task a prediction, or a list of them, worst first."""

    results: list[PredictionReply | list[PredictionReply]]


class Versions(_Reply):
    """The models that are held, the one in use first."""

    versions: list[str]


class Noted(_Reply):
    """An event was written down."""

    status: Literal["ok"]


class ErrorReply(_Reply):
    """What went wrong, and what to do about it."""

    error: str
    message: str
    remedy: str
    request_id: str


@dataclass(frozen=True, kw_only=True)
class _Operation:
    """A route.

    Parameters
    ----------
    method, path
        Where.
    about
        What it is for.
    body
        What is sent; None for nothing.
    status, reply
        The answer when all is well; no reply for what is no JSON.
    errors
        Statuses of HTTP with which it answers otherwise, besides those of all routes.
    security
        Names of what it may ask for; any of them is enough.
    """

    method: str
    path: str
    about: str
    body: type[BaseModel] | None = None
    status: int = 200
    reply: type[BaseModel] | None = None
    errors: tuple[int, ...] = ()
    security: tuple[str, ...] = ("login",)


OPERATIONS = (
    _Operation(method="get", path="/health", about="The process lives.", reply=Health),
    _Operation(
        method="get",
        path="/ready",
        about="Whether the model is loaded.",
        reply=Ready,
        errors=(503,),
        security=(),
    ),
    _Operation(
        method="post",
        path="/setup",
        about="Where a project's Label Studio is, and its label configuration.",
        body=SetupRequest,
        reply=SetupReply,
        errors=(400, 401, 403, 413, 415, 503),
    ),
    _Operation(
        method="post",
        path="/predict",
        about="Masks for an annotator's clicks, or for a batch of tasks.",
        body=PredictRequest,
        reply=PredictReply,
        errors=(400, 401, 403, 413, 415, 422, 502, 503),
    ),
    _Operation(
        method="get",
        path="/versions",
        about="The models that can be served.",
        reply=Versions,
        errors=(401,),
    ),
    _Operation(
        method="post",
        path="/webhook",
        about="What happened in Label Studio.",
        body=WebhookEvent,
        status=201,
        reply=Noted,
        errors=(400, 401, 403, 413, 415, 503),
        security=("webhook", "login"),
    ),
    _Operation(method="get", path="/metrics", about="Numbers for Prometheus.", errors=(401, 404)),
    _Operation(method="get", path="/openapi.json", about="This description.", security=()),
)


@functools.cache
def describe() -> dict[str, Any]:
    """Describe the routes for programs.

    Returns
    -------
    dict
        OpenAPI 3.1, as JSON has it.
    """
    models = {
        model
        for operation in OPERATIONS
        for model in (operation.body, operation.reply)
        if model is not None
    } | {ErrorReply}
    names, schemas = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template=_SCHEMAS,
    )
    references = {model: reference for (model, _), reference in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        described = _describe(operation, references)
        paths.setdefault(operation.path, {})[operation.method] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LiDiv",
            "version": importlib.metadata.version("lidiv-backend"),
            "description": "A backend for Label Studio: masks from clicks, with alternatives.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "login": {"type": "http", "scheme": "basic"},
                "webhook": {"type": "apiKey", "in": "header", "name": SECRET_HEADER},
            },
        },
    }


def _describe(operation: _Operation, references: dict[Any, Any]) -> dict[str, Any]:
    def content(model: type[BaseModel]) -> dict[str, Any]:
        return {"application/json": {"schema": references[model]}}

    answer: dict[str, Any] = {"description": operation.about}
    if operation.reply is not None:
        answer["content"] = content(operation.reply)
    error = {"description": "What went wrong.", "content": content(ErrorReply)}
    described: dict[str, Any] = {
        "summary": operation.about,
        "operationId": operation.path.strip("/").partition(".")[0],
        # Who asks too often is told so everywhere but by the probes.
        "responses": {
            str(operation.status): answer,
            **{str(status): error for status in sorted({*operation.errors, 429})},
        },
        # What a server without logins and secrets does not ask for need not be sent.
        "security": [{name: []} for name in operation.security] + [{}],
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": content(operation.body)}
    return described
