"""gunicorn's worker with threads, not held up by clients that are slow to hang up."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import TConn, ThreadWorker


class PatientWorker(ThreadWorker):
    """Waits for a client to close its end of a connection in the thread that answered it.

    gunicorn does so, for up to two seconds, in the loop that takes new connections: a single client
    that is slow to read its answer would keep everybody else waiting.
    """

    def handle(self, conn: TConn) -> Any:
        """Answer a request; whether the connection stays open."""
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
