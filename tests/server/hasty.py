"""The server's worker, which gives up on clients after the shortest time."""

from __future__ import annotations

from lidiv_backend.server.gunicorn_worker import PatientWorker


class HastyWorker(PatientWorker):
    silent_seconds = 1.0
