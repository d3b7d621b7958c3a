"""The command `lidiv finetune`: a run by hand."""

from __future__ import annotations

import argparse
import logging
import threading

from lidiv_backend.errors import BadRequestError, LidivError
from lidiv_backend.learning.registry import SHARED, channel_of
from lidiv_backend.learning.runs import RunCause, RunQueue, RunState, TrainingRun
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Store
from lidiv_backend.server.settings import Settings
from lidiv_backend.server.worker import build_worker, stopped_by_signals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Parameters
    ----------
    parser
        Takes them.
    """
    parser.add_argument(
        "--project",
        metavar="ID",
        help="number of the project; needed where projects learn by themselves",
    )
    parser.add_argument(
        "--queue", action="store_true", help="leave it to a worker, and end at once"
    )


def run(args: argparse.Namespace) -> int:
    """Learn now, here, and say what came out; a worker that has the run already is waited for.

    Returns
    -------
    int
        0 if the run was done, whether or not its outcome was promoted.

    Raises
    ------
    LidivError
        If there is no such project, or something is wrong with settings or database.
    """
    settings, learning = Settings.from_environment(), LearningSettings.from_environment()
    logging.basicConfig(level=settings.log_level, format="%(message)s")
    store = Store(settings.database)
    try:
        queue = RunQueue(store, lease_seconds=learning.lease_seconds)
        project = None if args.project is None else find_project(store, args.project)
        if project is None and not learning.shared:
            raise BadRequestError(
                "Projects learn by themselves here.", remedy="Say which, with --project."
            )
        channel = SHARED if learning.shared else channel_of(project or "")
        asked = queue.enqueue(channel, RunCause.COMMAND, project=project)
        if args.queue:
            print(f"Run {asked.id} of {channel} is {asked.state}.")
            return 0
        with stopped_by_signals() as stop:
            done = _done(settings, learning, store, queue, asked, stop)
    finally:
        store.close()
    print(f"Run {done.id} of {done.channel}: {done.state}. {done.message}".rstrip())
    if done.candidate is not None:
        print(f"Version: {done.candidate}{' (in use)' if done.promoted else ''}")
    return 0 if done.state is RunState.DONE else 1


def find_project(store: Store, number: str) -> str:
    """Find a project with annotations by Label Studio's number, or by its whole name.

    Raises
    ------
    BadRequestError
        If there is none, or there are several of different Label Studios.
    """
    projects = store.annotated_projects()
    found = [name for name in projects if number in (name, name.partition(".")[0])]
    if len(found) != 1:
        raise BadRequestError(
            f"{len(found) or 'No'} projects with annotations have the number {number}.",
            remedy=f"Known are {', '.join(projects) or 'none'}; the whole name is taken, too.",
        )
    return found[0]


def _done(
    settings: Settings,
    learning: LearningSettings,
    store: Store,
    queue: RunQueue,
    asked: TrainingRun,
    stop: threading.Event,
) -> TrainingRun:
    worker = build_worker(settings, learning, store, stop)
    while not stop.is_set():
        claimed = queue.claim(worker.owner, run=asked.id)
        if claimed is not None:
            done = worker.process(claimed)
            if done.state is RunState.QUEUED and not stop.is_set():
                continue  # its process was killed, and goes on where it stopped
            return done
        now = queue.run(asked.id)
        if now.state in (RunState.DONE, RunState.FAILED):
            return now
        print(f"The worker {now.owner} is at it: {now.stage} {dict(now.progress)}")
        stop.wait(learning.poll_seconds)
    raise LidivError(f"Run {asked.id} goes on without this command.")
