"""The command `lidiv worker`: learns from accepted annotations, beside the servers.

A small process watches over the one that works, and starts it again if it is killed.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from lidiv_backend.errors import LidivError
from lidiv_backend.learning.process import end_with_parent
from lidiv_backend.learning.retention import Retention, tidy_up
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Failure, Store
from lidiv_backend.server import logs
from lidiv_backend.server.connections import find_connection, image_source
from lidiv_backend.server.settings import Settings

if TYPE_CHECKING:
    from lidiv_backend.learning.worker import Worker

#: The worker that is watched over.
WORKER_COMMAND = (sys.executable, "-m", "lidiv_backend.cli", "worker", "--unwatched")

_LOG = logging.getLogger(__name__)
# A process that is forked while another one is being started would keep the pipe open by which
# `Popen` hears that the other has begun, and `Popen` would wait for as long as it lives. gunicorn
# forks its workers whenever it likes.
_STARTING = threading.Lock()
os.register_at_fork(
    before=_STARTING.acquire,
    after_in_parent=_STARTING.release,
    after_in_child=_STARTING.release,
)
# A worker that ends by itself is started again after so long, doubled each time up to the second.
_RESTART_SECONDS = (1.0, 60.0)
_Result = TypeVar("_Result")
# Old rows and files are looked for so often.
_TIDY_SECONDS = 6 * 3600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument(
        "--unwatched", action="store_true", help="work in this process, and end if it is killed"
    )
    parser.add_argument(
        "--once", action="store_true", help="do what is due, and end (with --unwatched)"
    )
    parser.add_argument("--with-parent", type=int, metavar="PID", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Work until asked to stop.

    Raises
    ------
    LidivError
        If a setting is wrong, or the database cannot be opened.
    """
    if args.with_parent is not None:
        end_with_parent(signal.SIGTERM, args.with_parent)
    settings, learning = Settings.from_environment(), LearningSettings.from_environment()
    logs.configure(settings)
    with stopped_by_signals() as stop:
        if args.unwatched or args.once:
            return _work(settings, learning, stop, once=args.once)
        return watch(WORKER_COMMAND, stop)


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that Ctrl+C and SIGTERM set."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(
    settings: Settings, learning: LearningSettings, stop: threading.Event, *, once: bool
) -> int:
    store = Store(settings.database)
    try:
        worker = build_worker(settings, learning, store, stop)
        _LOG.info("The worker begins; it learns after %d annotations.", learning.after)
        retention = Retention(
            events_days=learning.keep_events_days, clicks_days=learning.keep_clicks_days
        )
        rounds(
            worker.step,
            lambda: reconcile_all(settings, store),
            learning,
            stop,
            tidy=lambda: tidy_up(store, settings.state_folder, retention, stop=stop),
            once=once,
        )
    finally:
        store.close()
    return 0


def watch(command: Sequence[str], stop: threading.Event) -> int:
    """Run a command again and again until asked to stop.

    Parameters
    ----------
    command
        What to run; it ends with the thread that calls this.
    stop
        Set to end it.
    """
    pause, longest = _RESTART_SECONDS
    while not stop.is_set():
        started = time.monotonic()
        words = [*command, "--with-parent", str(os.getpid())]
        with _STARTING:
            child = subprocess.Popen(words)  # noqa: S603 - our own command
        while child.poll() is None and not stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.5)
        if stop.is_set():
            child.terminate()
            child.wait()
            break
        _LOG.error("The worker ended with status %s and is started again.", child.returncode)
        pause = _RESTART_SECONDS[0] if time.monotonic() - started > longest else pause
        stop.wait(pause)
        pause = min(2 * pause, longest)
    return 0


def build_worker(
    settings: Settings, learning: LearningSettings, store: Store, stop: threading.Event
) -> Worker:
    """Put a worker together.

    Parameters
    ----------
    settings, learning
        From the environment.
    store
        The database.
    stop
        Set to end it.
    """
    # Imported here: the process that only watches needs no model, nor the memory for its library.
    from lidiv_backend.learning.registry import ModelRegistry
    from lidiv_backend.learning.runs import RunQueue
    from lidiv_backend.learning.worker import StateFolders, Worker

    images = image_source(settings)
    return Worker(
        store=store,
        queue=RunQueue(store, lease_seconds=learning.lease_seconds),
        registry=ModelRegistry(settings.state_folder, base=settings.preset, keep=learning.keep),
        folders=StateFolders(state=settings.state_folder),
        settings=learning,
        fetch=lambda project, task, address: images.rgb(
            address, find_connection(settings, store, project), task=task
        ),
        stop=stop,
        lease_seconds=learning.lease_seconds,
    )


def rounds(
    step: Callable[[], bool],
    compare: Callable[[], None],
    learning: LearningSettings,
    stop: threading.Event,
    *,
    tidy: Callable[[], object] = lambda: None,
    once: bool = False,
) -> None:
    """Reconcile, work and tidy up, again and again; what fails is logged, and tried again.

    Parameters
    ----------
    step
        Does one run if there is any; says whether there was.
    compare
        Compares with Label Studio.
    learning
        How often.
    stop
        Set to end it.
    tidy
        Deletes what nobody needs any more.
    once
        End when nothing is due any more.
    """
    next_comparison = next_tidying = 0.0
    while not stop.is_set():
        if time.monotonic() >= next_comparison:
            next_comparison = time.monotonic() + 60 * learning.reconcile_minutes
            _attempt(compare)
        if _attempt(step):
            continue
        if time.monotonic() >= next_tidying:
            next_tidying = time.monotonic() + _TIDY_SECONDS
            _attempt(tidy)
        if once:
            return
        stop.wait(learning.poll_seconds)


def _attempt(work: Callable[[], _Result]) -> _Result | None:
    """Do something; give None where that fails: the database or the disk may come back."""
    try:
        return work()
    except LidivError as error:
        _LOG.error("%s", error)
    except Exception:
        _LOG.exception("The worker goes on after something unexpected.")
    return None


def reconcile_all(settings: Settings, store: Store) -> None:
    """Make good, for all connected projects, what no webhook told.

    Only the Label Studio that the operator named is asked: one that merely said so itself, by
    ``/setup``, could be anything.
    """
    if not settings.label_studio_url:
        _LOG.warning("LIDIV_LABEL_STUDIO_URL is not set: what webhooks did not tell stays unknown.")
        return
    from lidiv_backend.labelstudio.connect import open_client
    from lidiv_backend.learning.reconcile import reconcile

    for stored in store.connections():
        connection = find_connection(settings, store, stored.project)
        if connection is None or not stored.project.partition(".")[0].isdigit():
            continue
        try:
            client = open_client(
                connection.url,
                connection.token.get_secret_value(),
                ca_bundle=settings.ca_bundle,
            )
            made_good = reconcile(store, client, stored.project)
        except LidivError as error:
            _LOG.error("%s", error)
            with suppress(LidivError):
                store.keep_failure(
                    Failure(
                        kind=error.kind,
                        message=error.message,
                        remedy=error.remedy,
                        request_id=str(os.getpid()),
                        route="reconcile",
                    )
                )
            continue
        if made_good.changed or made_good.deleted:
            _LOG.info(
                "Project %s: %d annotations were new or changed, %d were gone.",
                stored.project,
                made_good.changed,
                made_good.deleted,
            )
