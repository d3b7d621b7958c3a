"""Who may ask: basic auth as Label Studio sends it, and the webhooks' secret."""

from __future__ import annotations

import hmac

from werkzeug import Request

from lidiv_backend.errors import LidivError
from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.server.settings import Settings


class UnauthorizedError(LidivError):
    """A password or secret is missing or wrong."""

    status = 401
    kind = "unauthorized"


def require_login(request: Request, settings: Settings) -> None:
    """Refuse a request without the right user and password, if the server has any.

    Raises
    ------
    UnauthorizedError
        If they are missing or wrong.
    """
    if not _has_login(request, settings):
        raise UnauthorizedError(
            "The user name or the password is missing or wrong.",
            remedy="In Label Studio, open the project's settings, Model, Edit: choose basic "
            "authentication, and enter LIDIV_BASIC_AUTH_USER and LIDIV_BASIC_AUTH_PASSWORD.",
        )


def require_no_wrong_login(request: Request, settings: Settings) -> None:
    """Refuse a request with a wrong login, but not one without.

    For `/health`: Label Studio tells people that their password is wrong only if this route says
    so, while probes of an orchestrator have none.

    Raises
    ------
    UnauthorizedError
        If a login is there and wrong.
    """
    if request.authorization is not None:
        require_login(request, settings)


def require_webhook_secret(request: Request, settings: Settings, action: str) -> None:
    """Refuse a webhook without the secret, if the server has one.

    Label Studio sends its webhooks without the backend's login, so they carry a secret instead;
    START_TRAINING comes as a call to the backend instead: with the login, and with no header.

    Parameters
    ----------
    request
        The request.
    settings
        The server's.
    action
        What the event is.

    Raises
    ------
    UnauthorizedError
        If neither fits.
    """
    secret = settings.webhook_secret.get_secret_value()
    if secret and _equal(request.headers.get(SECRET_HEADER, ""), secret):
        return
    may_log_in = bool(settings.basic_auth_user) or action == "START_TRAINING" or not secret
    if may_log_in and _has_login(request, settings):
        return
    raise UnauthorizedError(
        f"The webhook's secret, in the header {SECRET_HEADER}, is missing or wrong.",
        remedy="Run `lidiv connect`: it replaces Label Studio's own webhook by one that carries "
        "LIDIV_WEBHOOK_SECRET. Until then nothing is learned from this project.",
    )


def _has_login(request: Request, settings: Settings) -> bool:
    if not settings.basic_auth_user:
        return True
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    # Both are compared in any case, so that the time tells nothing.
    user = _equal(given.username or "", settings.basic_auth_user)
    password = _equal(given.password or "", settings.basic_auth_password.get_secret_value())
    return user and password


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
