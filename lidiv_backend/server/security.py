"""Who may ask, and how often: logins, the webhooks' secret, the page's own forms, and a rate limit.

A form of the page that changes something needs two lines. In its template::

    <form method="post" action="{{ url_for("lidiv.…") }}">{{ csrf_field() }} … </form>

and in the route that it posts to, before anything else::

    require_own_form(request, _backend().settings)
    …
    return redirect(url_for("pages.home"), code=303)

Browsers send basic auth along with whatever another site makes them post, so the password alone
does not show that it was the page which asked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from flask import Flask, Response, g
from flask import request as current_request
from markupsafe import Markup
from werkzeug import Request

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.server.settings import Settings

#: The form's field and the cookie whose values have to fit together.
CSRF_FIELD, CSRF_COOKIE = "csrf_token", "lidiv_csrf"
#: The event that Label Studio sends with the backend's login, and without the webhooks' secret.
START_TRAINING = "START_TRAINING"
#: What a wrong login costs of a client's requests, so that passwords cannot be guessed quickly.
WRONG_LOGIN_COST = 20
_NONCE = re.compile(r"[0-9a-f]{32}")
# Requests that may come at once are those of so many seconds.
_BURST_SECONDS = 5.0
_MAX_CLIENTS = 10_000
_SAFE_HEADERS = {
    # The page has no scripts, and nothing may be put on it or around it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' "
    "data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not "no-referrer": browsers would send the page's own forms with the origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class UnauthorizedError(LidivError):
    """A password or secret is missing or wrong."""

    status = 401
    kind = "unauthorized"


class CrossSiteError(LidivError):
    """Something was posted by a browser, and not from the page of this server."""

    status = 403
    kind = "cross-site"


class ContentTypeError(BadRequestError):
    """A request is not declared to be JSON."""

    status = 415
    kind = "content type"


class TooManyRequestsError(LidivError):
    """A client asks more often than it may."""

    status = 429
    kind = "rate limit"


class RateLimit:
    """Lets each client ask so often on average, and more in a burst.

    Parameters
    ----------
    per_second
        Requests per second; 0 for no limit.
    clock
        Seconds that only grow; for tests.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._clock = clock
        self._lock = threading.Lock()
        # Client -> what is left, and when that was counted. Who is forgotten may begin anew.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def require(self, client: str) -> None:
        """Count a request.

        Raises
        ------
        TooManyRequestsError
            If there have been too many.
        """
        if self._take(client, 1.0, may_owe=False):
            return
        raise TooManyRequestsError(
            f"This client asks more than {self._rate:g} times a second.",
            remedy="Wait a little. If all requests come through one proxy, set LIDIV_PROXIES, or "
            "raise LIDIV_REQUESTS_PER_SECOND.",
        )

    def charge(self, client: str, cost: float) -> None:
        """Count something that costs more than a request, after the fact."""
        self._take(client, cost, may_owe=True)

    def _take(self, client: str, cost: float, *, may_owe: bool) -> bool:
        if not self._rate:
            return True
        burst = max(self._rate * _BURST_SECONDS, 1.0)
        with self._lock:
            now = self._clock()
            left, since = self._left.pop(client, (burst, now))
            left = min(burst, left + (now - since) * self._rate)
            allowed = may_owe or left >= cost
            # Debts are limited: a client that was wrong for long is let in again soon.
            self._left[client] = (max(left - cost, -burst) if allowed else left, now)
            while len(self._left) > _MAX_CLIENTS:
                self._left.popitem(last=False)
        return allowed


def set_safe_headers(response: Response) -> None:
    """Tell browsers what they must not do with an answer, unless the route has said it."""
    for name, value in _SAFE_HEADERS.items():
        response.headers.setdefault(name, value)
    if response.mimetype == "text/html":
        response.headers.setdefault("Cache-Control", "no-store")


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


def carries_webhook_secret(request: Request, settings: Settings) -> bool:
    """Whether a request has the webhooks' secret; False where the server has none."""
    secret = settings.webhook_secret.get_secret_value()
    return bool(secret) and _equal(request.headers.get(SECRET_HEADER, ""), secret)


def may_send_event(request: Request, settings: Settings, action: str | None) -> bool:
    """Tell whether a request may bring an event, by its headers.

    Label Studio sends its webhooks without the backend's login, so they carry a secret instead;
    START_TRAINING comes as a call to the backend instead: with the login, and with no header.

    Parameters
    ----------
    request
        The request; its body is not read.
    settings
        The server's.
    action
        What the event is; None for any that there is.
    """
    if carries_webhook_secret(request, settings):
        return True
    has_secret = bool(settings.webhook_secret.get_secret_value())
    may_log_in = bool(settings.basic_auth_user) or action == START_TRAINING or not has_secret
    return may_log_in and _has_login(request, settings)


def require_webhook_secret(request: Request, settings: Settings, action: str | None) -> None:
    """Refuse a webhook without the secret, if the server has one.

    Parameters
    ----------
    request, settings, action
        As for `may_send_event`.

    Raises
    ------
    UnauthorizedError
        If it may not bring that event.
    """
    if may_send_event(request, settings, action):
        return
    raise UnauthorizedError(
        f"The webhook's secret, in the header {SECRET_HEADER}, is missing or wrong.",
        remedy="Run `lidiv connect`: it replaces Label Studio's own webhook by one that carries "
        "LIDIV_WEBHOOK_SECRET. Until then nothing is learned from this project.",
    )


def require_json_of_no_other_site(request: Request) -> None:
    """Refuse what another site may have had a browser post, with the login that it sends along.

    Browsers let any page post forms and plain text anywhere. For JSON they ask the server first,
    and this one allows it to nobody.

    Raises
    ------
    CrossSiteError
        If a browser says that another site posts it.
    ContentTypeError
        If it is not declared to be JSON.
    """
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise CrossSiteError(
            "A page of another site had a browser post this.",
            remedy="Only Label Studio itself sends this, not its pages or those of others.",
        )
    if request.mimetype != "application/json":
        raise ContentTypeError(
            "The request is not declared to be JSON.",
            remedy="Send it with the header Content-Type: application/json, as Label Studio does.",
        )


def protect_forms(app: Flask, settings: Settings) -> None:
    """Give the templates of an application `csrf_field()`, for forms that change something.

    Parameters
    ----------
    app
        The application.
    settings
        The server's.
    """

    def csrf_field() -> Markup:
        """Make a hidden field with the token, for inside of a form."""
        if "csrf_nonce" not in g:
            kept = current_request.cookies.get(CSRF_COOKIE, "")
            # Kept, so that a second tab does not spoil the first one's forms.
            g.csrf_nonce = kept if _NONCE.fullmatch(kept) else secrets.token_hex(16)
        field = Markup('<input type="hidden" name="{}" value="{}">')
        return field.format(CSRF_FIELD, _csrf_token(g.csrf_nonce, settings))

    def keep_nonce(response: Response) -> Response:
        if "csrf_nonce" in g:
            response.set_cookie(
                CSRF_COOKIE,
                g.csrf_nonce,
                httponly=True,
                samesite="Strict",
                secure=current_request.is_secure,
            )
        return response

    app.jinja_env.globals["csrf_field"] = csrf_field
    app.after_request(keep_nonce)


def require_own_form(request: Request, settings: Settings) -> None:
    """Refuse a form that was not posted from this server's own page, by somebody logged in.

    The browser has to say that the page is of the same origin (``Sec-Fetch-Site``, or else
    ``Origin``), and the form has to carry the token that `protect_forms` put there, which fits the
    cookie and can be made by nobody who does not know the server's secrets.

    Parameters
    ----------
    request
        The request, with the form in its body.
    settings
        The server's.

    Raises
    ------
    UnauthorizedError
        If the login is missing or wrong.
    CrossSiteError
        If the form comes from elsewhere, or has no token that fits.
    """
    require_login(request, settings)
    nonce = request.cookies.get(CSRF_COOKIE, "")
    token = request.form.get(CSRF_FIELD, "")
    if (
        not _is_of_same_origin(request)
        or not _NONCE.fullmatch(nonce)
        or not _equal(token, _csrf_token(nonce, settings))
    ):
        raise CrossSiteError(
            "This was not sent from this server's own page.",
            remedy="Open the page again, and press the button there. A proxy in front of the "
            "server has to pass on the header Host as it came, with its port.",
        )


def _is_of_same_origin(request: Request) -> bool:
    """Tell what the browser says; what is no browser says nothing, and needs the token alone."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    # The scheme may differ behind a proxy that ends TLS.
    return origin is None or _equal(origin.partition("://")[2], request.host)


def _csrf_token(nonce: str, settings: Settings) -> str:
    """Sign a nonce with what all workers and replicas of one server know."""
    known = (
        settings.basic_auth_password,
        settings.webhook_secret,
        settings.label_studio_token,
        settings.database_url,
    )
    key = hashlib.sha256(repr([secret.get_secret_value() for secret in known]).encode()).digest()
    return hmac.new(key, nonce.encode(), "sha256").hexdigest()


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
