"""gunicorn's worker with threads, not held up by clients that are slow to ask or to hang up."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from gunicorn import util
from gunicorn.http import RequestParser
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker


class BoundedUnreader(SocketUnreader):
    """Reads requests from a connection for so long, and then takes the client to be gone.

    Parameters
    ----------
    sock
        The connection's.
    silent_seconds
        How long nothing may come in the midst of a request.
    request_seconds
        How long a request may take to arrive, its body included.
    clock
        Seconds that only grow; for tests.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        silent_seconds: float,
        request_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(sock)
        self._silent_seconds = silent_seconds
        self._request_seconds = request_seconds
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Count from now on, for the next request."""
        self._deadline = self._clock() + self._request_seconds

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return what comes next, at most as much as is wanted.

        Raises
        ------
        NoMoreData
            If it takes too long. An end would do for a head, but after a body that is cut short the
            connection would be used again.
        """
        left = self._deadline - self._clock()
        if left <= 0:
            raise NoMoreData
        before = self.sock.gettimeout()
        bounds = [left, self._silent_seconds, *([] if before is None else [before])]
        self.sock.settimeout(min(bounds))
        try:
            return super().chunk(size_hint)  # type: ignore[call-arg]
        except TimeoutError as error:
            raise NoMoreData from error
        finally:
            self.sock.settimeout(before)


class PatientWorker(ThreadWorker):
    """Lets no client hold up the others.

    gunicorn waits without end for what follows a request's first bytes, in a thread: as many
    clients as there are threads, silent in the midst of a request, would stop the server. And it
    waits for a client to close its end of a connection, for up to two seconds, in the loop that
    takes new ones: a single client that is slow to read its answer would keep everybody else
    waiting. Here the thread that answered does.
    """

    #: As `BoundedUnreader` takes them; far more than Label Studio needs for its largest requests.
    silent_seconds = 15.0
    request_seconds = 120.0

    def handle(self, conn: TConn) -> Any:
        """Answer a request; whether the connection stays open."""
        # With TLS, gunicorn makes the parser once it has shaken hands.
        if conn.parser is None and not self.cfg.is_ssl:
            conn.parser = RequestParser(self.cfg, conn.sock, conn.client)
            conn.parser.unreader = BoundedUnreader(
                conn.sock,
                silent_seconds=self.silent_seconds,
                request_seconds=self.request_seconds,
            )
        unreader = getattr(conn.parser, "unreader", None)
        if isinstance(unreader, BoundedUnreader):
            unreader.begin()
        stays = super().handle(conn)
        if stays is False:
            util.close_graceful(conn.sock)
        return stays

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Hand back a connection, after its request."""
        if not fs.cancelled() and fs.exception() is None and fs.result() is False:
            self.nr_conns -= 1
            return
        super().finish_request(conn, fs)
