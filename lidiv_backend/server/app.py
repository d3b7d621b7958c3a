"""The Flask application: routes, errors, and how the parts are put together."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

from flask import Blueprint, Flask, Response, current_app, g, jsonify, request
from werkzeug.exceptions import HTTPException, NotFound, RequestEntityTooLarge
from werkzeug.middleware.proxy_fix import ProxyFix

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.engine import Engine, EngineNotReadyError
from lidiv_backend.labelstudio.requests import PredictRequest, SetupRequest, parse
from lidiv_backend.server.backend import Backend, build_backend, shortened
from lidiv_backend.server.logs import PROBES, name_request
from lidiv_backend.server.metrics import CONTENT_TYPE
from lidiv_backend.server.openapi import describe
from lidiv_backend.server.page_routes import add_pages
from lidiv_backend.server.security import (
    START_TRAINING,
    WRONG_LOGIN_COST,
    RateLimit,
    TooManyRequestsError,
    UnauthorizedError,
    carries_webhook_secret,
    may_send_event,
    protect_forms,
    require_json_of_no_other_site,
    require_login,
    require_no_wrong_login,
    require_webhook_secret,
    set_safe_headers,
)
from lidiv_backend.server.settings import RESERVED_THREADS, Settings

_EXTENSION = "lidiv"
_PLACES = "lidiv_places"
_LIMIT = "lidiv_limit"
_RETRY_SECONDS = 5
# START_TRAINING brings the project with its label config, a few kilobytes, and one with very many
# labels a hundred times as much.
_MAX_START_TRAINING_BYTES = 256_000

_routes = Blueprint("lidiv", __name__)


class RequestTooLargeError(BadRequestError):
    """A request's body is over the limit."""

    status = 413
    kind = "request size"


class BusyError(LidivError):
    """Too many requests are being answered already."""

    status = 503
    kind = "busy"


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
    backend = build_backend(settings or Settings.from_environment(), engine=engine)
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = backend.settings.max_body_bytes
    app.extensions[_EXTENSION] = backend
    app.extensions[_PLACES] = threading.BoundedSemaphore(
        backend.settings.threads - RESERVED_THREADS
    )
    app.extensions[_LIMIT] = RateLimit(backend.settings.requests_per_second)
    if backend.settings.proxies:
        # Each proxy adds the address that it sees; the scheme is passed on, and stands there once.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=backend.settings.proxies, x_proto=1
        )
    app.before_request(_begin)
    app.after_request(_finish)
    app.teardown_request(_end)
    protect_forms(app, backend.settings)
    app.register_error_handler(Exception, _answer_error)
    app.register_blueprint(_routes)
    add_pages(app, backend, answer_error=_answer_error)
    return app


def backend_of(app: Flask) -> Backend:
    """Return the parts of an application that `create_app` made."""
    return cast(Backend, app.extensions[_EXTENSION])


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
    # Probes ask every few seconds; that is no failure to keep.
    return _lidiv_response(engines.error or EngineNotReadyError("The model is still being loaded."))


@_routes.post("/setup")
def setup() -> Any:
    """Note where a project's Label Studio is, and check its label configuration."""
    backend = _backend()
    require_login(request, backend.settings)
    received = parse(SetupRequest, _body())
    backend.keep_connection(received)
    return {"model_version": backend.engines_of(received.project).version}


@_routes.post("/predict")
def predict() -> Any:
    """Answer clicks, or a batch of tasks."""
    backend = _backend()
    require_login(request, backend.settings)
    received = parse(PredictRequest, _body())
    g.task = received.tasks[0].id
    with _place():
        return {"results": backend.predict(received, request_id=_request_id())}


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
    settings = backend.settings
    # Who may not even send what asks for the least is refused unread.
    require_webhook_secret(request, settings, START_TRAINING)
    if not may_send_event(request, settings, None):
        request.max_content_length = min(_MAX_START_TRAINING_BYTES, settings.max_body_bytes)
    try:
        body = _body()
    except RequestEntityTooLarge:
        # An ordinary event without the secret, unless any may be sent.
        require_webhook_secret(request, settings, None)
        raise
    require_webhook_secret(request, settings, str(body.get("action", ""))[:64])
    backend.keep_event(body)
    return {"status": "ok"}, 201


@_routes.get("/openapi.json")
def openapi() -> Any:
    """Describe the routes for programs."""
    return describe()


@_routes.get("/metrics")
def metrics() -> Any:
    """Give numbers to Prometheus."""
    backend = _backend()
    if backend.settings.metrics == "off":
        raise NotFound
    if backend.settings.metrics == "login":
        require_login(request, backend.settings)
    return Response(backend.metrics.render(), content_type=CONTENT_TYPE)


def _backend() -> Backend:
    return backend_of(current_app)


@contextlib.contextmanager
def _place() -> Iterator[None]:
    """Take one of the places for clicks, so that slow images leave threads for all else."""
    places: threading.BoundedSemaphore = current_app.extensions[_PLACES]
    if not places.acquire(blocking=False):
        raise BusyError(
            "Too many clicks are being answered already.",
            remedy="Click again in a moment. If it happens often, look for slow image sources, "
            "or raise LIDIV_THREADS.",
        )
    try:
        yield
    finally:
        places.release()


def _request_id() -> str:
    return cast(str, g.request_id)


def _limit() -> RateLimit:
    return cast(RateLimit, current_app.extensions[_LIMIT])


def _client() -> str:
    return request.remote_addr or ""


def _begin() -> None:
    g.began = time.perf_counter()
    g.request_id = secrets.token_hex(6)
    name_request(g.request_id)
    _backend().metrics.request_began()
    is_probe = request.path in PROBES and request.authorization is None
    # Label Studio tells once of what was accepted: an event that is refused is lost until the
    # worker looks, and many annotations can be submitted at once.
    is_event = request.path == "/webhook" and carries_webhook_secret(request, _backend().settings)
    if not (is_probe or is_event):
        _limit().require(_client())


def _finish(response: Response) -> Response:
    response.headers["X-Request-ID"] = _request_id()
    set_safe_headers(response)
    route = request.url_rule.rule if request.url_rule is not None else None
    _backend().metrics.answered(route, response.status_code, time.perf_counter() - g.began)
    return response


def _end(error: BaseException | None = None) -> None:
    name_request("")
    if "began" in g:
        _backend().metrics.request_ended()


def _body() -> dict[str, Any]:
    """Decode the request's JSON, which has to be an object."""
    require_json_of_no_other_site(request)
    try:
        data = request.get_data(cache=False)
        limit = request.max_content_length
        if request.content_length is None and limit is not None and len(data) >= limit:
            # Without an announced length Werkzeug stops at the limit, and says nothing.
            raise RequestEntityTooLarge
        # By itself `json` takes other encodings, and UTF-8 with halves of surrogate pairs.
        body = json.loads(data.decode())
        if b"\\ud" in data.lower():
            # Half a surrogate pair is a string that nothing can store or send on.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequestError(
            f"The request is not JSON: {error}.", remedy="Is the sender a Label Studio?"
        ) from error
    if not isinstance(body, dict):
        raise BadRequestError(
            "The request is not a JSON object.", remedy="Is the sender a Label Studio?"
        )
    return body


def _answer_error(error: Exception) -> Response:
    """Answer any error as JSON; those that somebody should do something about are kept."""
    if isinstance(error, RequestEntityTooLarge):
        limit = _backend().settings.max_body_bytes
        error = RequestTooLargeError(
            f"The request is larger than {limit:,} bytes.",
            remedy="Tasks with very many masks make large requests; raise LIDIV_MAX_BODY_BYTES.",
        )
    if isinstance(error, UnauthorizedError):
        _limit().charge(_client(), WRONG_LOGIN_COST)
    if isinstance(error, TooManyRequestsError):
        # Neither a row nor a line for each: that is what a flood would want.
        _backend().metrics.failed(error.kind)
        return _lidiv_response(error)
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.path} is not possible here: {error.name}."
        return _error_response(error.code or 500, "request", message, "")
    task = g.get("task")
    _backend().keep_failure(error, request_id=_request_id(), route=request.path, task=task)
    if not isinstance(error, LidivError):
        remedy = f"The server's log says more; search it for {_request_id()}."
        return _error_response(500, "defect", "Something unexpected happened.", remedy)
    return _lidiv_response(error)


def _lidiv_response(error: LidivError) -> Response:
    response = _error_response(error.status, error.kind, error.message, error.remedy)
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(_RETRY_SECONDS)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="LiDiv"'
    return response


def _error_response(status_code: int, kind: str, message: str, remedy: str) -> Response:
    response = jsonify(
        error=kind,
        message=shortened(message),
        remedy=shortened(remedy),
        request_id=_request_id(),
    )
    # Label Studio shows no body, but in some places the reason that comes with the status.
    reason = re.sub(r"[^ -~]+", " ", message)[:160]
    response.status = f"{status_code} {reason}"
    return response
