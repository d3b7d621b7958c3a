"""The Flask application: routes, errors, and how the parts are put together."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import secrets
from dataclasses import dataclass
from typing import Any, cast

from flask import Blueprint, Flask, Response, current_app, g, jsonify, render_template, request
from pydantic import SecretStr
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.config import parse_label_config
from lidiv_backend.labelstudio.engine import Engine, EngineNotReadyError
from lidiv_backend.labelstudio.images import Connection, FetchLimits, ImageSource
from lidiv_backend.labelstudio.requests import PredictRequest, SetupRequest, WebhookEvent, parse
from lidiv_backend.labelstudio.service import PredictionService
from lidiv_backend.learning.recording import AnswerLog
from lidiv_backend.learning.store import Failure, Store, StoredAnnotation, StoreError
from lidiv_backend.server.background import BackgroundPool
from lidiv_backend.server.engines import EngineRegistry
from lidiv_backend.server.security import (
    require_login,
    require_no_wrong_login,
    require_webhook_secret,
)
from lidiv_backend.server.settings import Settings

_LOG = logging.getLogger(__name__)
_EXTENSION = "lidiv"
_RETRY_SECONDS = 5
# Label Studio's own secrets, which some events carry.
_PROJECT_SECRETS = ("token", "task_data_login", "task_data_password")

_routes = Blueprint("lidiv", __name__)


class RequestTooLargeError(BadRequestError):
    """A request's body is over the limit."""

    status = 413
    kind = "request size"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The parts of a running server.

    Parameters
    ----------
    settings
        From the environment.
    store
        The database.
    engines
        The models.
    service
        Answers `/predict`.
    background
        Embeds images ahead.
    """

    settings: Settings
    store: Store
    engines: EngineRegistry
    service: PredictionService
    background: BackgroundPool

    def close(self) -> None:
        """Drop what waits in the background, and close the database."""
        self.background.close()
        self.store.close()

    def connection(self, project: str) -> Connection | None:
        """Find the Label Studio that a project belongs to."""
        try:
            stored = self.store.connection(project)
        except StoreError as error:
            _LOG.error("The connection of a project cannot be looked up. %s", error)
            stored = None
        settings = self.settings
        if settings.label_studio_url:
            token = settings.label_studio_token
            if not token.get_secret_value() and stored is not None:
                token = SecretStr(stored.access_token)
            return Connection(url=settings.label_studio_url, token=token, configured=True)
        if stored is None or not stored.hostname:
            return None
        return Connection(url=stored.hostname, token=SecretStr(stored.access_token))

    def keep_failure(
        self, error: Exception, *, request_id: str, route: str, task: int | None = None
    ) -> None:
        """Log a failure, and keep it for the status page."""
        if isinstance(error, LidivError):
            kind, message, remedy = error.kind, error.message, error.remedy
            _LOG.warning("%s %s: %s: %s", request_id, route, kind, error)
        else:
            kind, message = "defect", f"Something unexpected happened: {type(error).__name__}."
            remedy = f"Search the server's log for {request_id}, and report what it says."
            _LOG.error("%s %s: %s", request_id, route, message, exc_info=error)
        try:
            self.store.keep_failure(
                Failure(
                    kind=kind,
                    message=message,
                    remedy=remedy,
                    request_id=request_id,
                    route=route[:128],
                    task=task,
                )
            )
        except StoreError as store_error:
            _LOG.error("%s the failure is not kept. %s", request_id, store_error)


def create_app(settings: Settings | None = None, engine: Engine | None = None) -> Flask:
    """Make the application, and begin to load the model in the background.

    To be called in the process that serves, after any fork.

    Parameters
    ----------
    settings
        From the environment if not given.
    engine
        Used instead of the preset's model; for tests.

    Returns
    -------
    flask.Flask

    Raises
    ------
    LidivError
        If the settings are wrong, or the database cannot be opened.
    """
    settings = settings or Settings.from_environment()
    if not settings.label_studio_url:
        _LOG.warning(
            "LIDIV_LABEL_STUDIO_URL is not set: whoever reaches /setup says where Label Studio is."
        )
    store = Store(settings.database)
    engines = EngineRegistry(
        lambda: _load(settings) if engine is None else engine,
        name=settings.preset,
        wait_seconds=settings.load_seconds,
    )
    background = BackgroundPool()
    images = ImageSource(
        allowed_hosts=settings.allowed_image_hosts,
        limits=FetchLimits(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_pixels,
            total_seconds=settings.image_seconds,
        ),
        cache_bytes=settings.cache_bytes,
        ca_bundle=str(settings.ca_bundle) if settings.ca_bundle else None,
    )
    service = PredictionService(
        engines=engines,
        images=images,
        recorder=AnswerLog(store),
        background=background,
        memo_bytes=settings.cache_bytes,
    )
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions[_EXTENSION] = Backend(
        settings=settings, store=store, engines=engines, service=service, background=background
    )
    app.before_request(_name_request)
    app.after_request(_finish)
    app.register_error_handler(Exception, _answer_error)
    app.register_blueprint(_routes)
    if engine is None:
        engines.start()
    else:
        engines.promote(engine)
    return app


def backend_of(app: Flask) -> Backend:
    """Return the parts of an application that `create_app` made."""
    return cast(Backend, app.extensions[_EXTENSION])


def _load(settings: Settings) -> Engine:
    # Imported here, in the thread that loads: libraries of models take their time.
    from lidiv_backend.predictor import Predictor

    return Predictor.from_pretrained(settings.preset, device=settings.device)


@_routes.get("/health")
def health() -> Any:
    """Say that the process lives."""
    require_no_wrong_login(request, _backend().settings)
    return {"status": "UP", "model_class": "LiDiv"}


@_routes.get("/ready")
def ready() -> Any:
    """Say whether the model is loaded."""
    engines = _backend().engines
    if engines.is_ready:
        return {"status": "READY", "model_version": engines.version}
    raise engines.error or EngineNotReadyError("The model is still being loaded.")


@_routes.post("/setup")
def setup() -> Any:
    """Note where a project's Label Studio is, and check its label configuration."""
    backend = _backend()
    require_login(request, backend.settings)
    received = parse(SetupRequest, _body())
    has_token = bool(backend.settings.label_studio_token.get_secret_value())
    backend.store.keep_connection(
        project=received.project,
        hostname=received.hostname,
        access_token="" if has_token else received.access_token.get_secret_value(),
        label_config=received.label_config,
        extra_params=received.extra_params,
    )
    parse_label_config(received.label_config)
    return {"model_version": backend.engines.version}


@_routes.post("/predict")
def predict() -> Any:
    """Answer clicks, or a batch of tasks."""
    backend = _backend()
    require_login(request, backend.settings)
    received = parse(PredictRequest, _body())
    g.task = received.tasks[0].id
    request_id = _request_id()
    predictions = backend.service.predict(
        received,
        backend.connection(received.project),
        failed=lambda error, task: backend.keep_failure(
            error, request_id=request_id, route="/predict", task=task
        ),
    )
    results = [
        items[0].as_json() if len(items) == 1 else [item.as_json() for item in items]
        for items in predictions
    ]
    return {"results": results}


@_routes.get("/versions")
def versions() -> Any:
    """List the models that can be served."""
    backend = _backend()
    require_login(request, backend.settings)
    engines = backend.engines
    return {"versions": list(engines.versions) or [engines.version]}


@_routes.post("/webhook")
def webhook() -> Any:
    """Write down what happened in Label Studio, and answer at once."""
    backend = _backend()
    body = _body()
    action = str(body.get("action", ""))[:64]
    require_webhook_secret(request, backend.settings, action)
    payload = _without_secrets(body)
    try:
        event = parse(WebhookEvent, body)
    except BadRequestError:
        # Label Studio sends it only once: kept as it is, for whoever finds out what it means.
        backend.store.keep_event(action=action, project=None, payload=payload)
        raise
    project = event.project.key if event.project else None
    backend.store.keep_event(
        action=event.action,
        project=project,
        payload=payload,
        annotation=_annotation(event, project),
        deleted=[annotation.id for annotation in event.annotations]
        if event.action == "ANNOTATIONS_DELETED"
        else [],
    )
    return {"status": "ok"}, 201


@_routes.get("/")
def status() -> Any:
    """Show people what this is, and what went wrong lately."""
    backend = _backend()
    require_login(request, backend.settings)
    page = render_template(
        "status.html",
        ready=backend.engines.is_ready,
        error=backend.engines.error,
        versions=backend.engines.versions,
        preset=backend.settings.preset,
        release=importlib.metadata.version("lidiv-backend"),
        connections=backend.store.connections(),
        failures=backend.store.recent_failures(),
    )
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(page, mimetype="text/html", headers=headers)


def _backend() -> Backend:
    return backend_of(current_app)


def _request_id() -> str:
    return cast(str, g.request_id)


def _name_request() -> None:
    g.request_id = secrets.token_hex(6)


def _finish(response: Response) -> Response:
    response.headers["X-Request-ID"] = _request_id()
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _body() -> dict[str, Any]:
    """Decode the request's JSON, which has to be an object."""
    try:
        body = json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"The request is not JSON: {error}.", remedy="Is the sender a Label Studio?"
        ) from error
    if not isinstance(body, dict):
        raise BadRequestError(
            "The request is not a JSON object.", remedy="Is the sender a Label Studio?"
        )
    return body


def _without_secrets(body: dict[str, Any]) -> dict[str, Any]:
    project = body.get("project")
    if not isinstance(project, dict):
        return body
    kept = {name: value for name, value in project.items() if name not in _PROJECT_SECRETS}
    return body | {"project": kept}


def _annotation(event: WebhookEvent, project: str | None) -> StoredAnnotation | None:
    if event.annotation is None or project is None:
        return None
    annotation = event.annotation
    return StoredAnnotation(
        project=project,
        annotation=annotation.id,
        task=annotation.task,
        task_data=event.task.data if event.task else {},
        result=annotation.result,
        was_cancelled=annotation.was_cancelled,
        completed_by=annotation.completed_by,
        lead_time=annotation.lead_time,
    )


def _answer_error(error: Exception) -> Response:
    """Answer any error as JSON; those that somebody should do something about are kept."""
    if isinstance(error, RequestEntityTooLarge):
        limit = _backend().settings.max_body_bytes
        error = RequestTooLargeError(
            f"The request is larger than {limit:,} bytes.",
            remedy="Tasks with very many masks make large requests; raise LIDIV_MAX_BODY_BYTES.",
        )
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.path} is not possible here: {error.name}."
        return _error_response(error.code or 500, "request", message, "")
    task = g.get("task")
    _backend().keep_failure(error, request_id=_request_id(), route=request.path, task=task)
    if not isinstance(error, LidivError):
        remedy = f"The server's log says more; search it for {_request_id()}."
        return _error_response(500, "defect", "Something unexpected happened.", remedy)
    response = _error_response(error.status, error.kind, error.message, error.remedy)
    if error.status == 503:
        response.headers["Retry-After"] = str(_RETRY_SECONDS)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="LiDiv"'
    return response


def _error_response(status_code: int, kind: str, message: str, remedy: str) -> Response:
    response = jsonify(error=kind, message=message, remedy=remedy, request_id=_request_id())
    # Label Studio shows no body, but in some places the reason that comes with the status.
    reason = re.sub(r"[^ -~]+", " ", message)[:160]
    response.status = f"{status_code} {reason}"
    return response
