"""What SECURITY.md says must not be possible, tried on a running application."""

from __future__ import annotations

import io
import json
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from lidiv_backend.labelstudio.connect import SECRET_HEADER
from lidiv_backend.server.app import backend_of
from lidiv_backend.server.security import RateLimit
from tests.image_host import Answer, ImageHost, encoded, pixels
from tests.labelstudio import golden
from tests.server.conftest import UPLOAD
from tests.server.test_app import LOGIN, authorization, body, click, failures

LOGGED_IN = authorization("lab", "pässword")


def ask(app: Flask, address: str) -> tuple[int, str]:
    """Click on an image at an address; the status and the kind of the error."""
    content = body(click(50))
    content["tasks"][0]["data"]["image"] = address
    response = app.test_client().post("/predict", json=content)
    return response.status_code, response.get_json().get("error", "")


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://127.0.0.1:22/",
        "http://localhost/",
        "http://0.0.0.0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://10.0.0.1/a.png",
        "http://192.168.1.1/a.png",
        "http://[::1]/a.png",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://127.0.0.1/a.png",
        "gopher://127.0.0.1/",
        "//169.254.169.254/",
        "\\\\169.254.169.254\\share",
        "/etc/passwd",
        "/data/../../etc/passwd",
        "/data/local-files/?d=../../etc/passwd",
        "/data/local-files/?d=%2e%2e%2f%2e%2e%2fetc/passwd",
        "/data/%252e%252e/a.png",
    ],
)
def test_no_address_leads_where_it_must_not(
    app: Flask, label_studio: ImageHost, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    real = socket.socket.connect

    def connect(self: socket.socket, where: Any) -> None:
        connected.append(where)
        real(self, where)

    monkeypatch.setattr(socket.socket, "connect", connect)
    status, kind = ask(app, address)
    assert (status, kind) in [(403, "image address"), (502, "image source")]
    # Label Studio itself may be asked for what looks like a path of its own, and knows no such.
    assert {port for _, port, *_ in connected} <= {label_studio.port}


@pytest.mark.parametrize("target", ["http://169.254.169.254/", "file:///etc/passwd", "//[::1]:22/"])
def test_no_redirect_leads_where_it_must_not(
    app: Flask, label_studio: ImageHost, target: str
) -> None:
    label_studio.routes["/data/upload/1/r.png"] = Answer(302, headers={"Location": target})
    status, kind = ask(app, "/data/upload/1/r.png")
    assert (status, kind) in [(403, "image address"), (502, "image source")]
    assert label_studio.paths() == ["/data/upload/1/r.png"]


def test_a_name_that_changes_its_mind_is_not_asked_twice(
    app: Flask, label_studio: ImageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is a public address, every later one this machine."""
    public = "93.184.215.14"
    answers = iter([public])
    resolved: list[str] = []
    connected: list[str] = []
    real_getaddrinfo, real_connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> list[Any]:
        if host != "rebinding.example":
            return list(real_getaddrinfo(host, port, *rest, **named))
        resolved.append(host)
        address = next(answers, "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))]

    def connect(self: socket.socket, where: Any) -> None:
        if where[1] == label_studio.port:
            return real_connect(self, where)
        connected.append(where[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    # Hosts that tasks name are not asked at all, but those that Label Studio redirects to are.
    assert ask(app, "http://rebinding.example/a.png") == (403, "image address")
    assert resolved == []
    label_studio.routes["/data/upload/1/r.png"] = Answer(
        302, headers={"Location": "http://rebinding.example/a.png"}
    )
    assert ask(app, "/data/upload/1/r.png") == (502, "image source")
    assert resolved == ["rebinding.example"]
    assert connected == [public]


# --- Sizes ---------------------------------------------------------------------------------------


def png_bomb(side: int) -> bytes:
    """A PNG of many gigabytes of pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(3 * 1000 + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**7))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (png_bomb(100_000), 422),
        (png_bomb(2**31 - 1), 422),
        (zip_bomb(), 422),
        (zlib.compress(bytes(10**7)), 422),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 422),
    ],
)
def test_bombs_are_no_images(
    app: Flask, label_studio: ImageHost, content: bytes, status: int
) -> None:
    label_studio.routes["/data/upload/1/bomb.png"] = Answer(body=content)
    assert ask(app, "/data/upload/1/bomb.png")[0] == status


def test_a_compressed_transfer_is_not_unpacked_without_end(
    make_app: Callable[..., Flask], label_studio: ImageHost
) -> None:
    packed = zlib.compressobj(wbits=31)
    content = packed.compress(bytes(50_000_000)) + packed.flush()
    assert len(content) < 100_000
    label_studio.routes["/data/upload/1/a.png"] = Answer(
        body=content, headers={"Content-Encoding": "gzip"}
    )
    app = make_app(max_image_bytes=1_000_000)
    assert ask(app, "/data/upload/1/a.png") == (422, "bad image")
    assert "larger than 1,000,000 bytes" in failures(app)[0][1]


@pytest.mark.parametrize("route", ["/predict", "/setup", "/webhook"])
def test_large_bodies_are_refused_unread(make_app: Callable[..., Flask], route: str) -> None:
    client = make_app(max_body_bytes=1000).test_client()
    response = client.post(route, data=b"{" + b" " * 2000 + b"}", content_type="application/json")
    assert response.status_code == 413
    assert response.get_json()["error"] == "request size"


def test_deeply_nested_json_is_no_defect(app: Flask) -> None:
    response = app.test_client().post(
        "/predict", data=b"[" * 100_000, content_type="application/json"
    )
    assert response.status_code == 400


# --- Who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, authorization("lab", "wrong"), authorization("", "")])
def test_without_the_login_nothing_is_told_or_done(
    make_app: Callable[..., Flask], label_studio: ImageHost, headers: dict[str, str]
) -> None:
    app = make_app(**LOGIN, webhook_secret="webhooks-secret")
    client = app.test_client()
    content = golden.load("backend_webhook_ANNOTATION_CREATED")["body"]
    answers = [
        client.post("/predict", json=body(click(50)), headers=headers),
        client.post("/setup", json=golden.load("backend_setup")["body"], headers=headers),
        client.post("/webhook", json=content, headers=headers),
        client.post("/webhook", json=content, headers={SECRET_HEADER: "wrong", **headers}),
        client.get("/metrics", headers=headers),
        client.get("/versions", headers=headers),
        client.get("/", headers=headers),
    ]
    assert {answer.status_code for answer in answers} == {401}
    store = backend_of(app).store
    assert store.events() == []
    assert store.connections() == []
    assert label_studio.paths() == []


def limit(app: Flask, per_second: float) -> None:
    """Let each client ask so often, with a clock that stands still."""
    app.extensions["lidiv_limit"] = RateLimit(per_second, clock=lambda: 0.0)


def test_passwords_are_guessed_slowly(make_app: Callable[..., Flask]) -> None:
    # So few a second that no time passes, as far as this test goes.
    app = make_app(**LOGIN, requests_per_second=0.001)
    limit(app, 100.0)
    client = app.test_client()
    statuses = [
        client.post("/predict", json={}, headers=authorization("lab", str(number))).status_code
        for number in range(100)
    ]
    assert statuses[0] == 401
    assert 10 < statuses.count(401) < 40
    limited = client.post("/predict", json={}, headers=LOGGED_IN)
    assert limited.status_code == 429
    assert int(limited.headers["Retry-After"]) > 0
    # Others are not concerned, nor is whoever looks after the server.
    other = client.get("/versions", headers=LOGGED_IN, environ_base={"REMOTE_ADDR": "10.0.0.9"})
    assert other.status_code == 200
    assert client.get("/health").status_code == 200
    # Nor does a flood fill the page with its failures.
    assert {kind for kind, _ in failures(app)} == {"unauthorized"}


def test_events_of_label_studio_are_not_limited(make_app: Callable[..., Flask]) -> None:
    app = make_app(webhook_secret="placeholder")
    limit(app, 1.0)
    client = app.test_client()

    def status(secret: str) -> int:
        body = {"action": "PROJECT_UPDATED", "project": {"id": 1}}
        headers = {"X-LiDiv-Secret": secret}
        return client.post("/webhook", json=body, headers=headers).status_code

    assert {status("placeholder") for _ in range(20)} == {201}
    # Who does not know it is held to the limit, and so are the others' requests.
    assert [status("guess") for _ in range(6)][-1] == 429
    assert client.get("/versions").status_code == 429


@pytest.mark.parametrize(("proxies", "alike"), [(0, True), (1, False)])
def test_clients_behind_a_proxy_are_told_apart_where_it_is_named(
    make_app: Callable[..., Flask], proxies: int, alike: bool
) -> None:
    app = make_app(proxies=proxies)
    limit(app, 1.0)
    client = app.test_client()

    def status(address: str) -> int:
        # What a client says of itself stands before what the proxy adds.
        headers = {"X-Forwarded-For": f"1.2.3.4, {address}"}
        return client.get("/versions", headers=headers).status_code

    assert [status("10.0.0.1") for _ in range(6)] == [200] * 5 + [429]
    assert status("10.0.0.2") == (429 if alike else 200)


@pytest.mark.parametrize(
    "says",
    [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {},
    ],
)
def test_other_sites_post_nothing_to_the_page(
    make_app: Callable[..., Flask], says: dict[str, str]
) -> None:
    """Every route that takes forms, with the login that the browser sends along by itself."""
    app = make_app(**LOGIN)
    client = app.test_client()
    forms = [
        rule
        for rule in app.url_map.iter_rules()
        if "POST" in (rule.methods or ()) and not rule.endpoint.startswith("lidiv.")
    ]
    assert forms
    for rule in forms:
        with app.test_request_context():
            path = rule.build(dict.fromkeys(rule.arguments, "shared"))
        assert path is not None
        response = client.post(path[1], data={"version": "x"}, headers=says | LOGGED_IN)
        assert response.status_code == 403, path


#: What browsers let any page post anywhere, without asking first.
SIMPLE = (None, "text/plain", "text/plain;charset=application/json", "multipart/form-data")


@pytest.mark.parametrize(
    ("says", "content_type", "status"),
    [
        *[({"Origin": "https://evil.example"}, content_type, 415) for content_type in SIMPLE],
        ({}, "application/x-www-form-urlencoded", 415),
        ({"Sec-Fetch-Site": "same-origin"}, "text/plain", 415),
        ({"Sec-Fetch-Site": "cross-site"}, "application/json", 403),
        ({"Sec-Fetch-Site": "same-site"}, "application/json", 403),
        ({"Sec-Fetch-Site": ""}, "application/json", 403),
    ],
)
@pytest.mark.parametrize("login", [LOGIN, {}])
def test_other_sites_post_no_json(
    make_app: Callable[..., Flask],
    label_studio: ImageHost,
    login: dict[str, str],
    says: dict[str, str],
    content_type: str | None,
    status: int,
) -> None:
    """A browser sends the login along; without one, it reaches what only this machine reaches."""
    app = make_app(**login, webhook_secret="webhooks-secret" if login else "")
    client = app.test_client()
    for name in golden.POSTED:
        recorded = golden.load(name)
        response = client.post(
            recorded["path"],
            data=json.dumps(recorded["body"]),
            content_type=content_type,
            headers=says | LOGGED_IN,
        )
        assert response.status_code == status, name
        assert response.get_json()["remedy"]
    store = backend_of(app).store
    assert store.events() == []
    assert store.connections() == []
    assert label_studio.paths() == []


@pytest.mark.parametrize(
    "says", [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}]
)
def test_json_of_no_other_site_is_taken(app: Flask, says: dict[str, str]) -> None:
    for name in golden.POSTED:
        recorded = golden.load(name)
        response = app.test_client().post(
            recorded["path"],
            data=json.dumps(recorded["body"]),
            content_type="application/json; charset=utf-8",
            headers=says,
        )
        assert response.status_code in (200, 201), name


def test_browsers_that_ask_first_are_told_no(app: Flask) -> None:
    asked = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    for route in ("/predict", "/setup", "/webhook"):
        response = app.test_client().options(route, headers=asked)
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


# --- What browsers may do ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "status"), [("/", 200), ("/health", 200), ("/nothing", 404), ("/metrics", 200)]
)
def test_every_answer_tells_browsers_what_not_to_do(app: Flask, route: str, status: int) -> None:
    response = app.test_client().get(route)
    assert response.status_code == status
    headers = response.headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    # With "no-referrer", browsers would send the page's own forms with the origin "null".
    assert headers["Referrer-Policy"] == "same-origin"
    policy = dict(
        part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert "script-src" not in policy
    assert "Access-Control-Allow-Origin" not in headers


def test_an_ordinary_image_is_still_fetched(app: Flask, label_studio: ImageHost) -> None:
    """Otherwise all of the above would be true of a server that does nothing."""
    label_studio.routes["/data/upload/1/good.png"] = Answer(body=encoded(pixels(512, 512)))
    assert ask(app, "/data/upload/1/good.png")[0] == 200
    assert ask(app, UPLOAD)[0] == 200
