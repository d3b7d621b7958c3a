from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from lidiv_backend.errors import BadImageError, LidivError
from lidiv_backend.labelstudio import guarded_http
from lidiv_backend.labelstudio.images import (
    Connection,
    FetchLimits,
    ImageAccessError,
    ImageAddressError,
    ImageFetchError,
    ImageSource,
)
from tests.image_host import Answer, ImageHost, Seen, encoded, image_host, pixels

RGB = pixels()
PNG = encoded(RGB)
UPLOAD = "/data/upload/1/5c502c72-astronaut.jpg"
LIMITS = FetchLimits(connect_seconds=5, read_seconds=5)


@pytest.fixture
def host() -> Iterator[ImageHost]:
    with image_host() as found:
        yield found


@pytest.fixture
def elsewhere() -> Iterator[ImageHost]:
    with image_host() as found:
        yield found


def connection(
    host: ImageHost,
    token: str = "legacy",  # noqa: S107 - a placeholder
    **fields: Any,
) -> Connection:
    return Connection(url=host.url, token=SecretStr(token), **fields)


def fetch(address: str, at: Connection | None, *, task: int | None = 7, **how: Any) -> Any:
    return ImageSource(limits=how.pop("limits", LIMITS), **how).rgb(address, at, task=task)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (UPLOAD, UPLOAD),
        ("upload/1/a.jpg", "/data/upload/1/a.jpg"),
        ("/upload/1/a.jpg", "/data/upload/1/a.jpg"),
        ("/data/local-files/?d=proj/a.jpg", "/data/local-files/?d=proj/a.jpg"),
        ("/data/local-files/?d=my%20folder/a.jpg", "/data/local-files/?d=my%20folder/a.jpg"),
        (
            "/storage-data/uploaded/?filepath=upload/1/a.jpg",
            "/storage-data/uploaded/?filepath=upload/1/a.jpg",
        ),
        ("/tasks/7/resolve/?fileuri=czM6Ly9i", "/tasks/7/resolve/?fileuri=czM6Ly9i"),
    ],
)
def test_files_of_label_studio_come_with_the_token(
    host: ImageHost, address: str, path: str
) -> None:
    host.routes[path] = Answer(body=PNG)
    np.testing.assert_array_equal(fetch(address, connection(host)), RGB)
    assert [(seen.path, seen.authorization) for seen in host.seen] == [(path, "Token legacy")]


def test_label_studio_may_live_below_a_path(host: ImageHost) -> None:
    host.routes["/labels/data/upload/1/a.jpg"] = Answer(body=PNG)
    at = Connection(url=host.url + "/labels/", token=SecretStr("legacy"))
    fetch("/data/upload/1/a.jpg", at)
    fetch(host.url + "/labels/data/upload/1/a.jpg", at)
    assert [seen.authorization for seen in host.seen] == ["Token legacy"] * 2


def test_the_full_address_of_a_file_in_label_studio_is_one_too(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(body=PNG)
    fetch(host.url + UPLOAD, connection(host))
    assert host.seen[0].authorization == "Token legacy"


def test_other_pages_of_label_studio_never_see_the_token(host: ImageHost) -> None:
    host.routes["/static/logo.png"] = Answer(body=PNG)
    fetch(host.url + "/static/logo.png", connection(host))
    assert host.seen[0].authorization is None


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_cloud_storage_goes_through_label_studio(host: ImageHost, scheme: str) -> None:
    address = f"{scheme}://bucket/folder/a.jpg"
    path = f"/tasks/7/presign/?fileuri={base64.urlsafe_b64encode(address.encode()).decode()}"
    host.routes[path] = Answer(303, headers={"Location": f"{host.url}/data/upload/x"})
    host.routes["/data/upload/x"] = Answer(body=PNG)
    np.testing.assert_array_equal(fetch(address, connection(host)), RGB)


def test_a_presigned_address_gets_no_token(
    host: ImageHost, elsewhere: ImageHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The storage stands for one on the open internet.
    monkeypatch.setattr(guarded_http._Public, "permits", staticmethod(lambda _: True))
    signed = "/bucket/a.jpg?X-Amz-Signature=abc"
    address = "s3://bucket/a.jpg"
    path = f"/tasks/7/presign/?fileuri={base64.urlsafe_b64encode(address.encode()).decode()}"
    host.routes[path] = Answer(303, headers={"Location": elsewhere.url + signed})
    elsewhere.routes[signed] = Answer(body=PNG)
    np.testing.assert_array_equal(fetch(address, connection(host)), RGB)
    assert elsewhere.seen[0].authorization is None
    assert host.seen[0].authorization == "Token legacy"


def test_storage_in_a_private_network_must_be_allowed(
    host: ImageHost, elsewhere: ImageHost
) -> None:
    host.routes[UPLOAD] = Answer(302, headers={"Location": elsewhere.url + "/a.jpg"})
    elsewhere.routes["/a.jpg"] = Answer(body=PNG)
    with pytest.raises(ImageAddressError, match="private network"):
        fetch(UPLOAD, connection(host))
    assert elsewhere.seen == []
    fetch(UPLOAD, connection(host), allowed_hosts=[f"127.0.0.1:{elsewhere.port}"])


def test_uploads_in_cloud_storage_are_found_where_label_studio_proxies_them(
    host: ImageHost,
) -> None:
    host.routes["/storage-data/uploaded/?filepath=upload/1/a%20b.jpg"] = Answer(body=PNG)
    np.testing.assert_array_equal(fetch("/data/upload/1/a%20b.jpg", connection(host)), RGB)
    assert host.seen[-1].authorization == "Token legacy"


def test_an_allowed_host_is_fetched_from_without_token(
    host: ImageHost, elsewhere: ImageHost
) -> None:
    elsewhere.routes["/a.jpg"] = Answer(body=PNG)
    address = elsewhere.url + "/a.jpg"
    allowed = [f"127.0.0.1:{elsewhere.port}"]
    np.testing.assert_array_equal(fetch(address, connection(host), allowed_hosts=allowed), RGB)
    assert elsewhere.seen[0].authorization is None


@pytest.mark.parametrize(
    "address",
    [
        "http://evil.test/a.jpg",
        "https://127.0.0.1/a.jpg",
        "http://127.0.0.1:1/a.jpg",
        "http://localhost/a.jpg",
        "http://[::1]/a.jpg",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/a.jpg",
        "http://0x7f.1/a.jpg",
        "//evil.test/data/upload/1/a.jpg",
        "/\\evil.test/data/upload/1/a.jpg",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://evil.test/a.jpg",
        "gopher://evil.test/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "/etc/passwd",
        "etc/passwd",
        "",
        "   ",
        "/api/users",
        "/admin/",
        "/tasks/7/",
        "/data/../api/users",
        "/data/upload/../../api/users",
        "/data/upload/1/%2e%2e/%2e%2e/api/users",
        "/data/upload/1/%252e%252e/a.jpg",
        "/data/upload/1/..\\..\\a.jpg",
        "/data/local-files/?d=../../etc/passwd",
        "/data/local-files/?d=proj/%2e%2e/%2e%2e/etc/passwd",
        "/data/local-files/?d=..%5c..%5cetc",
        "/data/\t../api/users",
        "/data/upload/1/a\r\nX-Injected: 1",
        "http://user:password@HOST/data/upload/1/a.jpg",
        "http://HOST@evil.test/data/upload/1/a.jpg",
        "http://evil.test#@HOST/data/upload/1/a.jpg",
        "http://HOST.evil.test/data/upload/1/a.jpg",
        "http://evil.test:99999/a.jpg",
        "http://[evil/a.jpg",
    ],
)
def test_no_other_address_is_fetched(host: ImageHost, address: str) -> None:
    address = address.replace("HOST", f"127.0.0.1:{host.port}")
    with pytest.raises(ImageAddressError) as caught:
        fetch(address, connection(host, configured=True))
    assert host.seen == []
    assert caught.value.status == 403
    assert "password" not in caught.value.message.replace("user name or password", "")


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=40)
    | st.from_regex(r"(https?:|file:|s3:|//|/data/)[ -~]{0,30}", fullmatch=True)
    | st.from_regex(r"/data/[./\\%25eEuU?=&d#]{0,20}", fullmatch=True)
)
def test_whatever_the_address_is_nothing_leaves_for_elsewhere(address: str) -> None:
    asked: list[str] = []

    def refuse(host: str, *_: Any, **__: Any) -> None:
        asked.append(host)
        raise OSError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded_http.socket, "getaddrinfo", refuse)
        with pytest.raises(LidivError):
            fetch(address, Connection(url="http://labels.test", token=SecretStr("legacy")))
    assert set(asked) <= {"labels.test"}


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.from_regex(r"(https?:/?/?|//|/|\?|)[!-~]{0,25}", fullmatch=True))
def test_whatever_a_redirect_says_it_is_an_error_or_label_studio(
    host: ImageHost, location: str
) -> None:
    host.routes[UPLOAD] = Answer(302, headers={"Location": location})
    resolved = socket.getaddrinfo

    def only_here(name: str, *rest: Any, **more: Any) -> Any:
        if name != "127.0.0.1":
            raise OSError
        return resolved(name, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guarded_http.socket, "getaddrinfo", only_here)
        with pytest.raises(LidivError):
            fetch(UPLOAD, connection(host))


def test_what_setup_says_may_be_no_address_at_all(elsewhere: ImageHost) -> None:
    elsewhere.routes["/a.jpg"] = Answer(body=PNG)
    for url in ("labels.test", "labels.test:8080", "ftp://x", "x"):
        allowed = [f"127.0.0.1:{elsewhere.port}"]
        fetch(elsewhere.url + "/a.jpg", Connection(url=url), allowed_hosts=allowed)
    assert len(elsewhere.seen) == 4


@pytest.mark.parametrize(
    "target", ["http://evil.test/", "//evil.test/", "https://127.0.0.1/", "file:///etc/passwd"]
)
def test_an_allowed_host_redirects_to_itself_alone(elsewhere: ImageHost, target: str) -> None:
    allowed = [f"127.0.0.1:{elsewhere.port}"]
    elsewhere.routes["/a.jpg"] = Answer(302, headers={"Location": target})
    with pytest.raises(ImageAddressError, match="redirected to"):
        fetch(elsewhere.url + "/a.jpg", None, allowed_hosts=allowed)
    elsewhere.routes["/a.jpg"] = Answer(302, headers={"Location": "/b.jpg"})
    elsewhere.routes["/b.jpg"] = Answer(body=PNG)
    np.testing.assert_array_equal(fetch(elsewhere.url + "/a.jpg", None, allowed_hosts=allowed), RGB)


def test_a_redirect_of_label_studio_into_the_machine_itself_is_refused(host: ImageHost) -> None:
    for target in ("http://127.0.0.1:1/a", "http://169.254.169.254/a", "http://localhost:1/a"):
        host.routes[UPLOAD] = Answer(302, headers={"Location": target})
        with pytest.raises(ImageAddressError, match="private network"):
            fetch(UPLOAD, connection(host))


def test_a_label_studio_that_named_itself_is_not_followed_to_link_local_addresses() -> None:
    at = Connection(url="http://169.254.169.254", token=SecretStr("x"))
    with pytest.raises(ImageAddressError, match="private network"):
        fetch(UPLOAD, at)


def test_an_allowed_host_does_not_get_the_token_by_redirecting_to_label_studio(
    host: ImageHost, elsewhere: ImageHost
) -> None:
    elsewhere.routes["/a.jpg"] = Answer(302, headers={"Location": host.url + "/api/users"})
    host.routes["/api/users"] = Answer(body=PNG)
    allowed = [f"127.0.0.1:{elsewhere.port}"]
    fetch(elsewhere.url + "/a.jpg", connection(host), allowed_hosts=allowed)
    assert host.seen[0].authorization is None


def test_a_redirect_in_utf_8_is_understood(host: ImageHost) -> None:
    target = "/data/upload/1/ümlaut.jpg"
    host.routes[UPLOAD] = Answer(302, headers={"Location": target.encode().decode("latin-1")})
    host.routes["/data/upload/1/%C3%BCmlaut.jpg"] = Answer(body=PNG)
    fetch(UPLOAD, connection(host))


def test_the_body_of_a_redirect_is_not_read(host: ImageHost) -> None:
    endless = Answer(302, headers={"Location": "/data/upload/x"}, announced=10**15)
    host.routes[UPLOAD] = endless
    host.routes["/data/upload/x"] = Answer(body=PNG)
    fetch(UPLOAD, connection(host))


def test_redirects_end(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(302, headers={"Location": UPLOAD})
    with pytest.raises(ImageFetchError, match="redirected more than"):
        fetch(UPLOAD, connection(host))
    assert len(host.seen) <= 10


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:PORT", True),
        ("127.0.0.1:1", False),
        ("*.0.0.1", True),
        ("*.1.1.1", False),
        ("27.0.0.1", False),
        ("*", False),
        ("", False),
    ],
)
def test_patterns_of_allowed_hosts(elsewhere: ImageHost, pattern: str, fits: bool) -> None:
    elsewhere.routes["/a.jpg"] = Answer(body=PNG)
    allowed = [pattern.replace("PORT", str(elsewhere.port))]
    if fits:
        fetch(elsewhere.url + "/a.jpg", None, allowed_hosts=allowed)
    else:
        with pytest.raises(ImageAddressError):
            fetch(elsewhere.url + "/a.jpg", None, allowed_hosts=allowed)


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of hosts that are looked for; none but this machine is found."""
    names: list[str] = []
    resolve = socket.getaddrinfo

    def only_here(name: str, *rest: Any, **more: Any) -> Any:
        names.append(name)
        if name != "127.0.0.1":
            raise OSError
        return resolve(name, *rest, **more)

    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", only_here)
    return names


# urllib3 ends a host at a backslash.
BEHIND_A_BACKSLASH = "http://169.254.169.254\\x.images.test/latest/meta-data/a.png"


def test_a_pattern_does_not_fit_another_host(resolved: list[str]) -> None:
    with pytest.raises(ImageAddressError, match="malformed"):
        fetch(BEHIND_A_BACKSLASH, None, allowed_hosts=["*.images.test"])
    assert resolved == []


def test_a_redirect_to_another_host_does_not_fit_a_pattern(
    elsewhere: ImageHost, resolved: list[str]
) -> None:
    elsewhere.routes["/a.jpg"] = Answer(302, headers={"Location": BEHIND_A_BACKSLASH})
    allowed = ["*.images.test", "127.0.0.1"]
    with pytest.raises(ImageAddressError, match="malformed"):
        fetch(elsewhere.url + "/a.jpg", None, allowed_hosts=allowed)
    assert set(resolved) == {"127.0.0.1"}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.from_regex(r"[!-~]{0,12}", fullmatch=True) | st.text(max_size=12))
def test_whatever_stands_before_it_only_the_domain_is_looked_for(
    resolved: list[str], before: str
) -> None:
    with pytest.raises(LidivError):
        fetch(f"http://{before}.images.test/a.jpg", None, allowed_hosts=["*.images.test"])
    assert all(name.endswith(".images.test") for name in resolved)


def personal_token(kind: str = "refresh") -> str:
    return jwt.encode({"token_type": kind, "exp": 4_000_000_000}, "k" * 32, algorithm="HS256")


def test_a_personal_access_token_is_exchanged_once(host: ImageHost) -> None:
    refresh = personal_token()
    host.routes["/api/token/refresh/"] = lambda seen: Answer(
        body=json.dumps({"access": "short-lived"}).encode()
    )
    host.routes[UPLOAD] = host.routes["/data/upload/1/b.jpg"] = Answer(body=PNG)
    source = ImageSource(limits=LIMITS)
    for address in (UPLOAD, "/data/upload/1/b.jpg"):
        source.rgb(address, connection(host, refresh), task=1)
    assert [(seen.method, seen.path, seen.authorization) for seen in host.seen] == [
        ("POST", "/api/token/refresh/", None),
        ("GET", UPLOAD, "Bearer short-lived"),
        ("GET", "/data/upload/1/b.jpg", "Bearer short-lived"),
    ]
    assert json.loads(host.seen[0].body) == {"refresh": refresh}


def test_an_access_token_is_renewed_when_it_is_old_or_refused(host: ImageHost) -> None:
    now = [0.0]
    issued = iter(["first", "second", "third"])
    good = {"Bearer first"}
    host.routes["/api/token/refresh/"] = lambda seen: Answer(
        body=json.dumps({"access": next(issued)}).encode()
    )
    host.routes[UPLOAD] = lambda seen: (
        Answer(body=PNG) if seen.authorization in good else Answer(401)
    )
    source = ImageSource(limits=LIMITS, cache_bytes=0, clock=lambda: now[0])
    source.rgb(UPLOAD, connection(host, personal_token()), task=1)
    now[0] = 290.0  # it lasts 300 seconds
    good.clear()
    good.add("Bearer second")
    source.rgb(UPLOAD, connection(host, personal_token()), task=1)
    good.clear()
    good.add("Bearer third")
    source.rgb(UPLOAD, connection(host, personal_token()), task=1)
    assert [seen.authorization for seen in host.seen if seen.method == "GET"] == [
        "Bearer first",
        "Bearer second",
        "Bearer second",
        "Bearer third",
    ]


def test_an_access_token_is_sent_as_it_is(host: ImageHost) -> None:
    access = personal_token("access")
    host.routes[UPLOAD] = Answer(body=PNG)
    fetch(UPLOAD, connection(host, access))
    assert host.seen[0].authorization == f"Bearer {access}"


@pytest.mark.parametrize("answer", [Answer(401), Answer(200, b"{}"), Answer(200, b"<html>")])
def test_a_personal_access_token_that_is_refused_says_so(host: ImageHost, answer: Answer) -> None:
    host.routes["/api/token/refresh/"] = answer
    with pytest.raises(ImageAccessError, match="token"):
        fetch(UPLOAD, connection(host, personal_token()))


@pytest.mark.parametrize(
    "answer", [Answer(401), Answer(403), Answer(302, headers={"Location": "/user/login?next=/"})]
)
def test_a_wrong_token_says_so_and_is_not_shown(host: ImageHost, answer: Answer) -> None:
    host.routes[UPLOAD] = answer
    with pytest.raises(ImageAccessError, match="token") as caught:
        fetch(UPLOAD, connection(host, "very-secret"))
    assert "LIDIV_LABEL_STUDIO_TOKEN" in caught.value.remedy
    assert "very-secret" not in str(caught.value)
    assert "very-secret" not in repr(connection(host, "very-secret"))


def test_a_missing_image_says_so(host: ImageHost) -> None:
    with pytest.raises(ImageFetchError, match="404"):
        fetch("/data/local-files/?d=gone.jpg", connection(host))


def test_a_source_that_refuses_the_connection_says_so() -> None:
    with image_host() as gone:
        at = connection(gone)
    with pytest.raises(ImageFetchError, match="cannot be reached"):
        fetch(UPLOAD, at)


def test_a_source_that_stops_in_the_middle_is_given_up(host: ImageHost) -> None:
    release = threading.Event()
    host.routes[UPLOAD] = Answer(body=PNG, while_sending=lambda: release.wait(30))
    try:
        with pytest.raises(ImageFetchError, match="in time"):
            fetch(UPLOAD, connection(host), limits=FetchLimits(read_seconds=0.1))
    finally:
        release.set()


def test_a_source_that_trickles_is_given_up(host: ImageHost) -> None:
    ticks = iter(range(0, 10_000, 40))
    host.routes[UPLOAD] = Answer(body=bytes(1_000_000))
    with pytest.raises(ImageFetchError, match="longer than 60 s"):
        fetch(UPLOAD, connection(host), clock=lambda: float(next(ticks)))


@contextlib.contextmanager
def dripping(head: bytes, now: list[float]) -> Iterator[str]:
    """Serve an answer that goes on byte by byte, one a second, and stops; gives its address."""
    done = threading.Event()

    def drip() -> None:
        connected, _ = server.accept()
        # The other side may have had enough.
        with connected, contextlib.suppress(OSError):
            connected.recv(1 << 16)
            connected.sendall(head)
            for _ in range(1000):
                now[0] += 1
                connected.sendall(b"x")
            done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Endless: ",
        b"HTTP/1.1 200 ",
    ],
)
@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("token", ["legacy", "refresh"])
def test_a_source_that_drips_is_given_up(head: bytes, configured: bool, token: str) -> None:
    now = [0.0]
    secret = SecretStr(personal_token() if token == "refresh" else token)
    with dripping(head, now) as url:
        at = Connection(url=url, token=secret, configured=configured)
        with pytest.raises(ImageFetchError, match="longer than 60 s"):
            fetch(UPLOAD, at, clock=lambda: now[0])


def test_redirects_take_no_longer_than_one_answer_may(host: ImageHost) -> None:
    now = [0.0]

    def slowly(seen: Seen) -> Answer:
        now[0] += 40
        return Answer(302, headers={"Location": UPLOAD})

    host.routes[UPLOAD] = slowly
    with pytest.raises(ImageFetchError, match="longer than 60 s"):
        fetch(UPLOAD, connection(host), clock=lambda: now[0])
    assert len(host.seen) == 2


def test_nobody_waits_for_a_piece_when_the_time_is_up(host: ImageHost) -> None:
    release = threading.Event()
    host.routes[UPLOAD] = Answer(body=PNG, while_sending=lambda: release.wait(30))
    limits = FetchLimits(read_seconds=5, total_seconds=0.1)
    try:
        with pytest.raises(ImageFetchError, match=r"longer than 0\.1 s"):
            fetch(UPLOAD, connection(host), limits=limits)
    finally:
        release.set()


def test_a_file_over_the_limit_is_not_read_to_its_end(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(body=bytes(3_000_000))
    with pytest.raises(BadImageError, match="larger than 1,000,000 bytes"):
        fetch(UPLOAD, connection(host), limits=FetchLimits(max_bytes=1_000_000))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(body=encoded(np.zeros((500, 500, 3), np.uint8)))
    with pytest.raises(BadImageError, match="500 x 500"):
        fetch(UPLOAD, connection(host), limits=FetchLimits(max_pixels=249_999))


@pytest.mark.parametrize("body", [b"", b"<html>not an image</html>", PNG[:60], PNG[:-200]])
def test_what_is_no_image_says_so(host: ImageHost, body: bytes) -> None:
    host.routes[UPLOAD] = Answer(body=body)
    with pytest.raises(BadImageError):
        fetch(UPLOAD, connection(host))


def test_a_truncated_transfer_is_no_image(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(body=PNG[:100], announced=len(PNG))
    with pytest.raises((ImageFetchError, BadImageError)):
        fetch(UPLOAD, connection(host))


def test_images_arrive_upright(host: ImageHost) -> None:
    host.routes[UPLOAD] = Answer(body=encoded(RGB, orientation=6))
    np.testing.assert_array_equal(fetch(UPLOAD, connection(host)), np.rot90(RGB, -1))


def test_without_a_label_studio_its_files_cannot_be_fetched() -> None:
    for at in (None, Connection(url=""), Connection(url="ftp://x")):
        with pytest.raises(ImageFetchError, match="LIDIV_LABEL_STUDIO_URL"):
            fetch(UPLOAD, at)


def test_cloud_storage_needs_a_task(host: ImageHost) -> None:
    with pytest.raises(ImageAddressError, match="which task"):
        fetch("s3://b/a.jpg", connection(host), task=None)


def test_a_click_does_not_fetch_again(host: ImageHost) -> None:
    now = [0.0]
    host.routes[UPLOAD] = Answer(body=PNG)
    source = ImageSource(limits=LIMITS, cache_seconds=10, clock=lambda: now[0])
    for _ in range(3):
        source.rgb(UPLOAD, connection(host), task=1)
    assert len(host.seen) == 1
    now[0] = 11.0
    source.rgb(UPLOAD, connection(host), task=1)
    assert len(host.seen) == 2


def test_images_of_two_label_studios_are_not_mixed_up(
    host: ImageHost, elsewhere: ImageHost
) -> None:
    host.routes[UPLOAD] = Answer(body=PNG)
    elsewhere.routes[UPLOAD] = Answer(body=encoded(pixels(seed=1)))
    source = ImageSource(limits=LIMITS)
    np.testing.assert_array_equal(source.rgb(UPLOAD, connection(host), task=1), RGB)
    np.testing.assert_array_equal(source.rgb(UPLOAD, connection(elsewhere), task=1), pixels(seed=1))


def test_clicks_that_come_together_fetch_once(host: ImageHost) -> None:
    both_asked, release = threading.Event(), threading.Event()

    def slowly(seen: Seen) -> Answer:
        both_asked.set()
        assert release.wait(30)
        return Answer(body=PNG)

    host.routes[UPLOAD] = slowly
    source = ImageSource(limits=FetchLimits())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.rgb, UPLOAD, connection(host), task=1)
        assert both_asked.wait(30)
        second = pool.submit(source.rgb, UPLOAD, connection(host), task=1)
        release.set()
        np.testing.assert_array_equal(first.result(30), second.result(30))
    assert len(host.seen) == 1


def test_a_failure_is_not_kept(host: ImageHost) -> None:
    source = ImageSource(limits=LIMITS)
    with pytest.raises(ImageFetchError):
        source.rgb("/data/local-files/?d=a.jpg", connection(host), task=1)
    host.routes["/data/local-files/?d=a.jpg"] = Answer(body=PNG)
    np.testing.assert_array_equal(
        source.rgb("/data/local-files/?d=a.jpg", connection(host), task=1), RGB
    )
