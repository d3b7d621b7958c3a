from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, render_template_string, request
from flask.testing import FlaskClient

from lidiv_backend.server.app import backend_of
from lidiv_backend.server.security import CSRF_COOKIE, CSRF_FIELD, require_own_form

LOGIN = {"basic_auth_user": "lab", "basic_auth_password": "password"}
AUTHORIZATION = {"Authorization": "Basic " + base64.b64encode(b"lab:password").decode()}
#: What browsers say of a form of the page itself, over https or to localhost, and over http.
SAME_ORIGIN = ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"})


# --- The page's forms ----------------------------------------------------------------------------


class Form:
    """A page with a form, as a browser sees it."""

    def __init__(self, app: Flask, presses: list[str]) -> None:
        self.client: FlaskClient = app.test_client()
        self.presses = presses

    def open(self) -> str:
        page = self.client.get("/form").get_data(as_text=True)
        found = re.search(rf'<input type="hidden" name="{CSRF_FIELD}" value="([^"]+)">', page)
        assert found is not None
        return found[1]

    def press(self, token: str | None, **headers: str) -> int:
        data = {} if token is None else {CSRF_FIELD: token}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/form", data=data, headers=AUTHORIZATION | named).status_code

    @property
    def cookie(self) -> str:
        kept = self.client.get_cookie(CSRF_COOKIE)
        assert kept is not None
        return kept.value


@pytest.fixture
def make_form(make_app: Callable[..., Flask]) -> Callable[..., Form]:
    def make(**settings: Any) -> Form:
        app = make_app(**(LOGIN | settings))
        presses: list[str] = []

        @app.get("/form")
        def show() -> str:
            return render_template_string("<form>{{ csrf_field() }}</form>")

        @app.post("/form")
        def press() -> str:
            require_own_form(request, backend_of(app).settings)
            presses.append("pressed")
            return ""

        return Form(app, presses)

    return make


@pytest.mark.parametrize("says", [*SAME_ORIGIN, {}])
def test_the_pages_own_form_is_accepted(
    make_form: Callable[..., Form], says: dict[str, str]
) -> None:
    form = make_form()
    first = form.open()
    # A second tab does not spoil the first.
    assert form.open() == first
    assert form.press(first, **says) == 200
    assert form.presses == ["pressed"]


@pytest.mark.parametrize(
    "says",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://evil.example"},
        # Label Studio beside it, on another port, is another origin.
        {"Origin": "http://localhost:8080"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
    ],
)
def test_a_form_of_another_site_is_refused(
    make_form: Callable[..., Form], says: dict[str, str]
) -> None:
    form = make_form()
    assert form.press(form.open(), **says) == 403
    assert form.presses == []


@pytest.mark.parametrize("says", SAME_ORIGIN)
@pytest.mark.parametrize("token", [None, "", "0" * 64, "\u00fc"])
def test_a_form_without_its_token_is_refused(
    make_form: Callable[..., Form], token: str | None, says: dict[str, str]
) -> None:
    form = make_form()
    form.open()
    assert form.press(token, **says) == 403
    assert form.presses == []


def test_a_token_needs_its_cookie(make_form: Callable[..., Form]) -> None:
    form = make_form()
    token = form.open()
    form.client.delete_cookie(CSRF_COOKIE)
    assert form.press(token, **SAME_ORIGIN[0]) == 403
    # One that somebody else got from the same server does not fit this browser's cookie.
    form.open()
    assert form.press(token, **SAME_ORIGIN[0]) == 403


def test_a_cookie_planted_from_elsewhere_needs_the_servers_secrets(
    make_form: Callable[..., Form],
) -> None:
    form, other = make_form(), make_form(basic_auth_password="other")
    form.open()
    other.client.set_cookie(CSRF_COOKIE, form.cookie)
    foreign = other.open()
    assert other.cookie == form.cookie
    assert form.press(foreign, **SAME_ORIGIN[0]) == 403
    # The nonce itself is no token either.
    assert form.press(form.cookie, **SAME_ORIGIN[0]) == 403


def test_replicas_accept_each_others_forms(make_form: Callable[..., Form]) -> None:
    form, replica = make_form(), make_form()
    token = form.open()
    replica.client.set_cookie(CSRF_COOKIE, form.cookie)
    assert replica.press(token, **SAME_ORIGIN[0]) == 200


def test_the_form_needs_the_login_too(make_form: Callable[..., Form]) -> None:
    form = make_form()
    data = {CSRF_FIELD: form.open()}
    response = form.client.post("/form", data=data, headers=SAME_ORIGIN[0])
    assert response.status_code == 401
    assert form.presses == []


@pytest.mark.parametrize("proxies", [1, 2])
def test_the_cookie_is_for_tls_alone_where_a_proxy_ends_it(
    make_form: Callable[..., Form], proxies: int
) -> None:
    form = make_form(proxies=proxies)
    # However many proxies pass it on, the scheme stands there once.
    response = form.client.get("/form", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in response.headers["Set-Cookie"]
    assert "Secure" not in form.client.get("/form").headers["Set-Cookie"]


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    make_form: Callable[..., Form],
) -> None:
    form = make_form()
    response = form.client.get("/form", base_url="https://localhost")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" in cookie
    # Over plain http a browser would not keep it otherwise.
    assert "Secure" not in form.client.get("/form").headers["Set-Cookie"]
