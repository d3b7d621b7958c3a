"""How gunicorn runs the server; ``gunicorn -c python:lidiv_backend.server.gunicorn_settings``.

Addresses and numbers come from `lidiv_backend.server.settings`. One process holds the model, and
threads share it. The application is made in the worker, after the fork: neither torch's threads nor
a GPU survive one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from typing import Any

from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.server import logs
from lidiv_backend.server.settings import Settings
from lidiv_backend.server.worker import WORKER_COMMAND, watch

_settings = Settings.from_environment()
# The worker that learns has so long to write a checkpoint and to give its run back.
_STOP_SECONDS = 25.0
_stop = threading.Event()
_learner: threading.Thread | None = None
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_made_here = ""
if _settings.workers > 1 and _METRICS not in os.environ:
    # Where several processes count together; it has to be there before they know how to count.
    _made_here = os.environ[_METRICS] = tempfile.mkdtemp(prefix="lidiv-metrics-")

bind = _settings.bind
workers = _settings.workers
threads = _settings.threads
worker_class = "lidiv_backend.server.gunicorn_worker.PatientWorker"
wsgi_app = "lidiv_backend.server.app:create_app()"
preload_app = False
# Loading a model can keep a worker busy; this is the time after which it counts as dead.
timeout = 180
graceful_timeout = 30
keepalive = 75
# Nobody uses it, and several servers of one user would share it.
control_socket_disable = True
accesslog = "-"
logger_class = logs.GunicornLog


def post_fork(server: Any, worker: Any) -> None:
    """Let the application's log go where gunicorn's goes."""
    logs.configure(_settings)


def when_ready(server: Any) -> None:
    """Start the worker that learns, if it is wanted beside the server, and watch over it."""
    global _learner
    if LearningSettings.from_environment().worker:
        # The kernel ends the worker with the thread that started it, so this one lasts as long as
        # the server.
        _learner = threading.Thread(
            target=watch, args=(WORKER_COMMAND, _stop), name="watch-worker", daemon=True
        )
        _learner.start()


def on_exit(server: Any) -> None:
    """End the worker that learns with the server."""
    _stop.set()
    if _learner is not None:
        _learner.join(_STOP_SECONDS)
    if _made_here:
        shutil.rmtree(_made_here, ignore_errors=True)


def child_exit(server: Any, worker: Any) -> None:
    """Forget what was only so as long as a process lived; what it has counted stays."""
    if _METRICS in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def worker_exit(server: Any, worker: Any) -> None:
    """Drop what waits in the background, so that the worker ends with its last request."""
    from lidiv_backend.server.app import backend_of

    if worker.wsgi is not None:
        backend_of(worker.wsgi).close()
