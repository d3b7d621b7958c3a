"""The routes of the pages: what people see, and the buttons that they press."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from flask import Blueprint, Flask, Response, current_app, redirect, render_template, request
from flask import url_for as address_of
from markupsafe import Markup

from lidiv_backend.errors import LidivError
from lidiv_backend.server.backend import Backend
from lidiv_backend.server.pages import Pages
from lidiv_backend.server.security import require_login, require_own_form

_EXTENSION = "lidiv_pages"
# Seconds after which the page of a run that is under way is loaded again.
_REFRESH_SECONDS = 10
_STYLE = importlib.resources.files("lidiv_backend.server").joinpath("templates/style.css")
_STYLE_TEXT = _STYLE.read_text(encoding="utf-8")
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE_TEXT.encode()).digest()).decode()
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill-opacity=".55">'
    '<circle cx="16" cy="16" r="14" fill="#1f6feb"/><circle cx="19" cy="18" r="9" fill="#b4560f"/>'
    '</g><circle cx="20" cy="19" r="4" fill="#fff"/></svg>'
)
_HEADERS = {
    # The one style sheet is inside the page, and named by its digest: no script, nothing foreign,
    # and no frame in which somebody could be made to press a button.
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# An old address, or a button of a page that is no longer true: nothing that failed.
_EXPECTED = (400, 404, 409)
#: What is said after a button was pressed; by name, so that no address can put words into the page.
_NOTES = {
    "started": "The training is asked for. This page follows it.",
    "promoted": "This version is in use now. Annotators get it with the next object that they "
    "begin; what they are at is finished with the version that it began with.",
    "rolled-back": "The version before is in use again. Annotators get it with the next object "
    "that they begin.",
}

pages = Blueprint("pages", __name__)


@dataclass(frozen=True, kw_only=True)
class _Context:
    backend: Backend
    pages: Pages
    otherwise: Callable[[Exception], Response]


def add_pages(
    app: Flask, backend: Backend, *, answer_error: Callable[[Exception], Response]
) -> None:
    """Give an application its pages.

    Parameters
    ----------
    app
        The application.
    backend
        What they show.
    answer_error
        Answers errors to what is no browser, and keeps them.
    """
    app.extensions[_EXTENSION] = _Context(
        backend=backend, pages=Pages(backend), otherwise=answer_error
    )
    app.register_blueprint(pages)


@pages.get("/")
def home() -> Response:
    """Show what this is, what it costs to annotate with it, and what it has learnt."""
    page = _context().pages.home(project=request.args.get("project") or None)
    return _html("home.html", page=page)


@pages.get("/icon.svg")
def icon() -> Response:
    """Give the icon of the browser's tab."""
    return Response(_ICON, mimetype="image/svg+xml", headers={"Cache-Control": "private"})


@pages.get("/runs/<int:number>")
def run(number: int) -> Response:
    """Show a training run."""
    page = _context().pages.run(number)
    refresh = _REFRESH_SECONDS if page.is_active else None
    return _html("run.html", page=page, refresh=refresh)


@pages.get("/runs/<int:number>/examples/<int:example>-<name>.jpg")
def picture(number: int, example: int, name: str) -> Response:
    """Give a picture of a run."""
    content = _context().pages.picture(number, example, name)
    response = Response(content, mimetype="image/jpeg")
    # An attempt that is made again draws them again.
    response.headers["Cache-Control"] = "private, max-age=60"
    return response


@pages.get("/models/<version>")
def model(version: str) -> Response:
    """Show a version of the model."""
    return _html("model.html", page=_context().pages.version(version))


@pages.post("/channels/<channel>/train")
def train(channel: str) -> Response:
    """Start a training."""
    _require_own_form()
    number = _context().pages.start_training(channel)
    return _see(address_of("pages.run", number=number, said="started"))


@pages.post("/channels/<channel>/promote")
def promote(channel: str) -> Response:
    """Put a version in use."""
    _require_own_form()
    version = request.form.get("version", "")
    _context().pages.promote(channel, version, expected=request.form.get("expected", ""))
    return _see(address_of("pages.model", version=version, said="promoted"))


@pages.post("/channels/<channel>/rollback")
def roll_back(channel: str) -> Response:
    """Put the version before in use again."""
    _require_own_form()
    expected = request.form.get("expected", "")
    version = _context().pages.roll_back(channel, expected=expected)
    return _see(address_of("pages.model", version=version, said="rolled-back"))


@pages.get("/channels/<channel>/<_action>")
def no_form(channel: str, _action: str) -> Response:
    """Lead back whoever opens the address of a form."""
    return _see(address_of("pages.home"))


@pages.before_request
def _log_in() -> None:
    require_login(request, _context().backend.settings)


@pages.after_request
def _protect(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


@pages.errorhandler(Exception)
def _answer_error(error: Exception) -> Response:
    """Answer a browser with a page; everything else, and the records, as elsewhere."""
    if isinstance(error, LidivError) and error.status in _EXPECTED:
        page = _html("error.html", message=error.message, remedy=error.remedy, request_id="")
        page.status_code = error.status
        return page
    response = _context().otherwise(error)
    if not request.accept_mimetypes.accept_html:
        return response
    told = response.get_json(silent=True) or {}
    page = _html(
        "error.html",
        message=told.get("message") or "Something unexpected happened.",
        remedy=told.get("remedy") or "",
        request_id=told.get("request_id") or "",
    )
    page.status = response.status
    for name in ("WWW-Authenticate", "Retry-After"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


@pages.app_template_filter("moment")
def _moment(value: datetime) -> Markup:
    """Write a time down for people and for machines."""
    shown = value.strftime("%Y-%m-%d %H:%M")
    return Markup('<time datetime="{}">{} UTC</time>').format(value.isoformat(), shown)


@pages.app_template_filter("percent")
def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


@pages.app_template_filter("duration")
def _duration(seconds: float) -> str:
    """Say how long something took."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def _context() -> _Context:
    return cast(_Context, current_app.extensions[_EXTENSION])


def _require_own_form() -> None:
    require_own_form(request, _context().backend.settings)


def _see(address: str) -> Response:
    return cast(Response, redirect(address, code=303))


def _html(template: str, **values: object) -> Response:
    page = render_template(
        template,
        style=Markup(_STYLE_TEXT),  # noqa: S704 - our own file
        said=_NOTES.get(request.args.get("said", "")),
        **values,
    )
    return Response(page, mimetype="text/html")
