from __future__ import annotations

import base64
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.server import logs
from lidiv_backend.server.background import BackgroundPool
from lidiv_backend.server.settings import Settings
from tests.image_host import Answer, ImageHost
from tests.labelstudio import golden
from tests.server.test_app import body, click
from tests.server.test_serve import SETTINGS, running

SECRETS = {
    "LIDIV_LABEL_STUDIO_TOKEN": "operators-token",
    "LIDIV_WEBHOOK_SECRET": "webhooks-secret",
    "LIDIV_BASIC_AUTH_USER": "lab",
    "LIDIV_BASIC_AUTH_PASSWORD": "servers-password",
}
#: What must not be found, in whatever form.
HUSH = (
    "operators-token",
    "webhooks-secret",
    "servers-password",
    base64.b64encode(b"lab:servers-password").decode(),
    "wrong-password",
    base64.b64encode(b"lab:wrong-password").decode(),
    "setups-token",
    "signed-away",
    "iVBORw0KGgo",
)


def settings(**values: Any) -> Settings:
    return Settings(
        label_studio_url="http://label-studio",
        label_studio_token="operators-token",
        webhook_secret="webhooks-secret",
        basic_auth_user="lab",
        basic_auth_password="servers-password",
        database_url="postgresql://lidiv:databases-password@db/lidiv",
        **values,
    )


def line(form: str, message: str, *arguments: object, **values: Any) -> str:
    record = logging.LogRecord("lidiv", logging.INFO, "", 0, message, arguments, None)
    record.__dict__.update(values)
    return logs.formatter(settings(log_format=form)).format(record)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_says_when_who_which_request_and_what(form: str) -> None:
    with logs.request_named("abc123"):
        written = line(form, "Served %d.", 5, created=0.25)
    if form == "json":
        assert json.loads(written) == {
            "time": "1970-01-01T00:00:00.250Z",
            "level": "INFO",
            "logger": "lidiv",
            "message": "Served 5.",
            "request_id": "abc123",
        }
    else:
        assert written == "1970-01-01T00:00:00.250Z INFO lidiv [abc123]: Served 5."
    assert "abc123" not in line(form, "Later.")


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_brings_its_traceback_without_secrets(form: str) -> None:
    try:
        raise ValueError("https://bucket/a.png?X-Amz-Signature=signed-away")
    except ValueError as error:
        written = line(form, "Failed.", exc_info=(ValueError, error, error.__traceback__))
    traceback = json.loads(written)["exception"] if form == "json" else written
    assert "Traceback" in traceback
    assert "ValueError: https://bucket/a.png?***" in traceback
    assert "signed-away" not in written


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ("operators-token", "operators-token"),
        ("it is webhooks-secret!", "webhooks-secret"),
        ("postgresql://lidiv:databases-password@db/lidiv", "databases-password"),
        ("login " + base64.b64encode(b"lab:servers-password").decode(), "c2VydmVycy1"),
        ("Authorization: Basic bGFiOndyb25nLXBhc3N3b3Jk", "bGFiOndyb25n"),
        ("{'Authorization': 'Token 0123456789abcdef0123'}", "0123456789"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJ"),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "eyJ"),
        ("{'access_token': 'abc', 'project': '1.2'}", "abc"),
        ('{"password": "a b"}', "a b"),
        ("api_key=abc", "abc"),
        ("given 0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "0a1b2c"),
        ("http://user:pass@host/a.png", "pass"),
        ("GET /data/a.png?token=abc&b=c HTTP/1.1", "abc"),
        ("/presign/?fileuri=czM6Ly9idWNrZXQvYQ==", "czM6"),
        ("data:image/png;base64,iVBORw0KGgo=", "iVBOR"),
        ("data:image/svg+xml,%3Csvg", "svg%"),
        ("data:;base64,iVBORw0KGgo=", "iVBOR"),
    ],
)
def test_what_must_not_be_seen_is_left_out(form: str, message: str, secret: str) -> None:
    written = line(form, "%s", message)
    assert secret not in written
    assert "***" in written


@pytest.mark.parametrize(
    "message",
    [
        "The image '/data/upload/1/a.png' is redirected more than 6 times.",
        "The user name or the password is missing or wrong.",
        "Is it there? Really=so.",
        "Set LIDIV_LABEL_STUDIO_TOKEN to an access token of a user.",
        "Serving the model default-0a1b2c3d.",
        "127.0.0.1 POST /predict 200, 5 bytes, 3 ms",
    ],
)
def test_ordinary_lines_are_left_alone(message: str) -> None:
    assert line("text", "%s", message).endswith(message)


@hypothesis_settings(deadline=None)
@given(st.text())
def test_a_line_is_one_line_whatever_a_request_says(message: str) -> None:
    assert len(line("text", "%s", message).splitlines()) == 1
    assert len(line("json", "%s", message).split("\n")) == 1
    json.loads(line("json", "%s", message))


def test_long_messages_are_cut() -> None:
    assert len(line("text", "%s", "x" * 10**6)) < 2 * logs.MAX_MESSAGE


def test_work_in_the_background_bears_the_name_of_its_request() -> None:
    pool, seen = BackgroundPool(), []
    with logs.request_named("abc123"):
        pool.submit(lambda: seen.append(logs.current_request()))
    pool.submit(lambda: seen.append(logs.current_request()))
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(30)
    pool.close()
    assert seen == ["abc123", ""]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_run_with_secrets_leaves_none_in_the_log(
    tmp_path: Path, label_studio: ImageHost, form: str
) -> None:
    """All that comes with a secret is asked of a real server, well and wrong."""
    label_studio.routes["/data/upload/1/a.png"] = Answer(
        302, headers={"Location": "/data/upload/1/b.png?X-Amz-Signature=signed-away"}
    )
    label_studio.routes["/data/upload/1/b.png?X-Amz-Signature=signed-away"] = Answer(body=b"no")
    environment = SECRETS | {
        "LIDIV_LABEL_STUDIO_URL": label_studio.url,
        "LIDIV_LOG_FORMAT": form,
        "LIDIV_LOG_LEVEL": "DEBUG",
    }
    right, wrong = ("lab", "servers-password"), ("lab", "wrong-password")

    def image(address: str) -> dict[str, Any]:
        content = body(click(50))
        content["tasks"][0]["data"]["image"] = address
        return content

    setup = golden.load("backend_setup")["body"] | {"access_token": "setups-token"}
    created = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    requested = []
    with running(tmp_path, "-c", SETTINGS, "tests.server.served:serve()", **environment) as url:

        def post(route: str, content: Any, **options: Any) -> None:
            answer = requests.post(url + route, json=content, timeout=300, **options)
            requested.append(answer.headers["X-Request-ID"])

        for login in (right, wrong):
            post("/setup", setup, auth=login)
            for address in (
                "/data/upload/1/a.png",
                "https://bucket.example/a.png?X-Amz-Signature=signed-away",
                "http://lab:wrong-password@elsewhere.example/a.png",
                "data:image/png;base64,iVBORw0KGgo=",
                "/data/../a.png?token=signed-away",
            ):
                post("/predict", image(address), auth=login)
        for secret in ("webhooks-secret", "wrong-password"):
            post("/webhook", created, headers={SECRET_HEADER: secret})
        probes = {
            path: requests.get(url + path, timeout=300).status_code
            for path in ("/health", "/metrics")
        }
        post("/predict?token=signed-away", {"access_token": "setups-token"}, auth=right)
    written = (tmp_path / "log").read_text()
    for secret in HUSH:
        assert secret not in written
    for request in requested:
        assert request in written
    if form == "json":
        lines = [json.loads(one) for one in written.splitlines()]
        accesses = [one for one in lines if one["logger"] == "gunicorn.access"]
        assert {one["request_id"] for one in accesses} >= set(requested)
        assert accesses[-1]["path"] == "/predict"
        assert accesses[-1]["status"] == 400
        # Without the password nobody reads the metrics; that is told, a server in good health not.
        assert probes == {"/health": 200, "/metrics": 401}
        logged = {(one["path"], one["status"]) for one in accesses}
        assert ("/metrics", 401) in logged
        assert "/health" not in dict(logged)
    else:
        assert "POST /predict 400" in written
        assert "GET /metrics 401" in written
        assert "GET /health" not in written


def test_the_worker_writes_in_the_same_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        logs.configure(settings(log_format="json"))
        logging.getLogger("any").warning("operators-token")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(False)
    assert json.loads(capsys.readouterr().err)["message"] == "***"
