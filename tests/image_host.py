"""A web server on the loopback address that says exactly what a test tells it to."""

from __future__ import annotations

import io
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Answer:
    """What is said to one request; `while_sending` runs between the headers and the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None
    while_sending: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Seen:
    """One request that came in."""

    method: str
    path: str
    authorization: str | None
    body: bytes


class ImageHost:
    """Routes by path, the query included; what is not there is 404."""

    def __init__(self, port: int, *, scheme: str = "http") -> None:
        self.port = port
        self.scheme = scheme
        self.routes: dict[str, Answer | Callable[[Seen], Answer]] = {}
        self.seen: list[Seen] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def answer(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        route = self.routes.get(seen.path, Answer(404))
        return route(seen) if callable(route) else route


def self_signed(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that nobody trusts, in one file with its key."""
    path = folder / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    # Newer versions of Python want to be told that it may sign itself.
    usage = ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    key = ["-newkey", "rsa:2048", "-nodes", "-keyout", path]
    made = subprocess.run(
        ["openssl", "req", "-x509", *key, *subject, *usage], check=True, capture_output=True
    )
    with path.open("ab") as file:
        file.write(made.stdout)
    return path


@contextmanager
def image_host(*, certificate: Path | None = None) -> Iterator[ImageHost]:
    """Serve until the block ends; with a certificate by https."""

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            token = self.headers.get("Authorization")
            seen = Seen(self.command, self.path, token, self.rfile.read(length))
            answer = host.answer(seen)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            size = len(answer.body) if answer.announced is None else answer.announced
            self.send_header("Content-Length", str(size))
            self.end_headers()
            answer.while_sending()
            # The other side may have had enough.
            try:
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True

        do_GET = do_POST = _respond  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    host = ImageHost(server.server_port, scheme="https" if certificate else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pixels(height: int = 24, width: int = 32, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(rgb: NDArray[np.uint8], *, kind: str = "PNG", orientation: int | None = None) -> bytes:
    """Bytes of an image file, with an EXIF orientation if one is given."""
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()
