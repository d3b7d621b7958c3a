from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from gunicorn.http.errors import NoMoreData

from lidiv_backend.server.gunicorn_worker import BoundedUnreader
from tests.server.test_serve import SETTINGS, running

#: The fewest that a server has.
THREADS = 5
HEAD = b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's and the server's end of a connection."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


def test_a_request_that_drips_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    # When it begins, and when each byte is waited for.
    clock = iter([0.0, 4.0, 9.0, 10.0, 10.0, 19.0])
    unreader = BoundedUnreader(
        server, silent_seconds=60, request_seconds=10, clock=lambda: next(clock)
    )
    client.sendall(b"a")
    assert unreader.read() == b"a"
    client.sendall(b"b")
    assert unreader.read() == b"b"
    client.sendall(b"c")
    with pytest.raises(NoMoreData):
        unreader.read()
    # The next request on the connection has all of its time.
    unreader.begin()
    assert unreader.read() == b"c"
    assert server.gettimeout() is None


def test_a_request_that_stops_is_given_up(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    unreader = BoundedUnreader(server, silent_seconds=0.01, request_seconds=60)
    client.sendall(b"half")
    with pytest.raises(NoMoreData):
        unreader.read(8)
    assert server.gettimeout() is None


def test_a_client_that_hangs_up_is_told_from_one_that_stops(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, server = pair
    unreader = BoundedUnreader(server, silent_seconds=60, request_seconds=60)
    client.close()
    assert unreader.read() == b""


@pytest.mark.parametrize(
    ("half", "answer"),
    [
        (HEAD + b"X-A: ", b""),
        (HEAD + b"Content-Length: 1000\r\n\r\n{", b"HTTP/1.1 400 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n100\r\n{", b"HTTP/1.1 400 "),
    ],
)
def test_half_sent_requests_do_not_stop_the_server(
    tmp_path: Path, half: bytes, answer: bytes
) -> None:
    settings = {"LIDIV_THREADS": str(THREADS), "LIDIV_LABEL_STUDIO_URL": "http://127.0.0.1:1"}
    arguments = (
        "-c",
        SETTINGS,
        "-k",
        "tests.server.hasty.HastyWorker",
        "tests.server.served:serve()",
    )
    with running(tmp_path, *arguments, **settings) as url, ExitStack() as stack:
        assert requests.get(f"{url}/ready", timeout=120).status_code == 200
        address = ("127.0.0.1", urlsplit(url).port)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=60))
            for _ in range(2 * THREADS)
        ]
        for client in clients:
            client.sendall(half)
        assert requests.get(f"{url}/health", timeout=60).status_code == 200
        for client in clients:
            answered = b"".join(iter(lambda client=client: client.recv(1 << 16), b""))  # type: ignore[misc]
            assert answered.startswith(answer)
            assert bool(answered) == bool(answer)
    assert "Traceback" not in (tmp_path / "log").read_text()
