"""An application in a process of its own, so that its memory can be told from the test's."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
from flask import Flask
from werkzeug.test import run_wsgi_app

#: What a process may be asked besides requests.
_MEMORY, _LOOK = "memory", "look"


@dataclass(frozen=True)
class Elsewhere:
    """A WSGI application that hands requests on."""

    connection: Connection

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        plain = {key: value for key, value in environ.items() if isinstance(value, str)}
        self.connection.send((plain, environ["wsgi.input"].read()))
        status, headers, data = self.connection.recv()
        start_response(status, headers)
        return [data]

    def memory(self) -> tuple[int, int]:
        """Resident bytes of the process, and its threads."""
        return self._ask(_MEMORY)

    def look(self) -> Any:
        """What the function says that was given for looking inside."""
        return self._ask(_LOOK)

    def _ask(self, what: str) -> Any:
        self.connection.send((what, b""))
        return self.connection.recv()


@contextmanager
def elsewhere(
    make: Callable[..., Flask],
    *,
    after: Callable[[Flask], None],
    look: Callable[[Flask], Any],
    **options: Any,
) -> Iterator[Elsewhere]:
    """Run an application in another process until the block ends.

    Parameters
    ----------
    make
        Makes it, there, from the options.
    after
        Called with it after each request.
    look
        Called with it for `Elsewhere.look`; what it returns is handed back.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, after, look, options))
    process.start()
    there.close()
    try:
        yield Elsewhere(here)
    finally:
        here.close()
        process.join()


def _serve(
    connection: Connection,
    make: Callable[..., Flask],
    after: Callable[[Flask], None],
    look: Callable[[Flask], Any],
    options: dict[str, Any],
) -> None:
    app, process = make(**options), psutil.Process()
    while True:
        try:
            asked, body = connection.recv()
        except EOFError:
            return
        if asked == _MEMORY:
            connection.send((process.memory_info().rss, process.num_threads()))
        elif asked == _LOOK:
            connection.send(look(app))
        else:
            environ = asked | {"wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO()}
            answer, status, headers = run_wsgi_app(app, environ, buffered=True)
            connection.send((status, list(headers), b"".join(answer)))
            after(app)
