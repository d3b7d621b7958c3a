"""The worker: takes runs from the queue, trains in a process of its own, and promotes.

It can be killed at any moment. What it did is in the database and in the folder of the run, written
so that the next worker resumes it: the snapshot is frozen, the training has its checkpoints, the
candidate's name says what it holds, and the pointer is renamed into place.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidiv_backend.errors import LidivError
from lidiv_backend.learning.files import StorageError, explained
from lidiv_backend.learning.gate import Verdict
from lidiv_backend.learning.process import (
    TRAINING,
    UNWRITABLE,
    Job,
    Outcome,
    forget_outcome,
    read_outcome,
    stage_of,
    thread_environment,
)
from lidiv_backend.learning.registry import SHARED, ModelRegistry, channel_of
from lidiv_backend.learning.runs import (
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    RunCause,
    RunQueue,
    RunState,
    TrainingRun,
)
from lidiv_backend.learning.schema import now
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.snapshot import Fetch, Snapshot, read_snapshot, take_snapshot
from lidiv_backend.learning.store import Store, StoreError
from lidiv_backend.learning.vault import Vault
from lidiv_backend.training.checkpoints import RunLog

_LOG = logging.getLogger(__name__)
#: A run's process gets so long to end by itself.
_STOP_SECONDS = 20.0

#: Does the run in a folder, and gives the process.
Spawn = Callable[[Path, LearningSettings], "subprocess.Popen[bytes]"]


class RunLostError(LidivError):
    """Another worker has taken the run over."""

    kind = "lost run"


class StoppedError(LidivError):
    """The worker was asked to stop."""

    kind = "stopped"


class TrainingKilledError(LidivError):
    """The process of a run was killed; it may be resumed."""

    kind = "killed training"


@dataclass(frozen=True, kw_only=True)
class StateFolders:
    """Where learning keeps its files.

    Parameters
    ----------
    state
        The state folder.
    """

    state: Path

    @property
    def vault(self) -> Path:
        """Images and masks."""
        return self.state / "vault"

    @property
    def snapshots(self) -> Path:
        """Snapshots."""
        return self.state / "snapshots"

    def run(self, number: int) -> Path:
        """Folder of a run."""
        return self.state / "runs" / str(number)


def spawn_process(folder: Path, settings: LearningSettings) -> subprocess.Popen[bytes]:
    """Start the process of a run; what it says goes into its folder."""
    with explained(f"Writing into {folder}"), (folder / "process.log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                sys.executable,
                "-m",
                "lidiv_backend.learning.process",
                str(folder),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **thread_environment(settings.threads)},
        )


class Worker:
    """Works off the queue.

    Parameters
    ----------
    store, queue, registry
        The database, the runs in it, and the versions.
    folders
        Where files go.
    settings
        Of learning.
    fetch
        Fetches images for snapshots.
    stop
        Set to end it; a run that is under way goes back into the queue.
    spawn
        Starts the process of a run; for tests.
    lease_seconds
        As the queue's.
    """

    def __init__(
        self,
        *,
        store: Store,
        queue: RunQueue,
        registry: ModelRegistry,
        folders: StateFolders,
        settings: LearningSettings,
        fetch: Fetch,
        stop: threading.Event | None = None,
        spawn: Spawn = spawn_process,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._store = store
        self._queue = queue
        self._registry = registry
        self._folders = folders
        self._settings = settings
        self._fetch = fetch
        self._stop = stop or threading.Event()
        self._spawn = spawn
        self._lease_seconds = lease_seconds
        self.owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"

    def step(self) -> bool:
        """Ask for the runs that are due, and do one if there is any.

        Returns
        -------
        bool
            Whether there was one.

        Raises
        ------
        StoreError
            If the database cannot be used.
        """
        self.enqueue_due()
        run = self._queue.claim(self.owner)
        if run is None:
            return False
        self.process(run)
        return True

    def enqueue_due(self) -> list[TrainingRun]:
        """Ask for a run in every channel with enough newly accepted annotations."""
        asked = []
        for channel, project in self._channels():
            after, minutes = self._settings.thresholds(project)
            last = self._queue.last(channel)
            if last is not None and now() - last.created_at < timedelta(minutes=minutes):
                continue
            learnt = self._queue.last(channel, state=RunState.DONE)
            count = self._store.count_accepted(
                project, since=None if learnt is None else learnt.created_at
            )
            if count >= after:
                asked.append(self._queue.enqueue(channel, RunCause.ANNOTATIONS, project=project))
        return asked

    def _channels(self) -> list[tuple[str, str | None]]:
        """Channels, and whose annotations may start a run there; None for all together."""
        projects = self._store.annotated_projects()
        if not self._settings.shared:
            return [(channel_of(project), project) for project in projects]
        own = [project for project in projects if self._settings.own_thresholds(project)]
        return [(SHARED, None), *((SHARED, project) for project in own)]

    def process(self, run: TrainingRun) -> TrainingRun:
        """Do a run that this worker has claimed.

        Returns
        -------
        TrainingRun
            As it is afterwards: done, failed, or back in the queue if the worker was stopped.
        """
        _LOG.info("Run %d of %s begins.", run.id, run.channel)
        with _SignsOfLife(self, run) as alive:
            try:
                self._process(run, alive)
            except StoppedError:
                self._queue.release(run.id, self.owner)
            except RunLostError as error:
                _LOG.warning("%s", error)
            except TrainingKilledError as error:
                _LOG.error("%s", error)
                if run.attempts < MAX_ATTEMPTS:
                    self._queue.release(run.id, self.owner, counts=True)
                else:
                    self._fail(run, str(error))
            except Exception as error:
                told = error if isinstance(error, LidivError) else None
                if told is None:
                    _LOG.exception("Run %d failed.", run.id)
                message = str(told) if told else f"Something unexpected: {type(error).__name__}."
                self._fail(run, message)
        after = self._queue.run(run.id)
        _LOG.info("Run %d is %s. %s", run.id, after.state, after.message)
        return after

    def _fail(self, run: TrainingRun, message: str) -> None:
        """Note that a run failed; a run whose row cannot be written is taken up again later."""
        with suppress(LidivError):
            if self._queue.finish(run.id, self.owner, state=RunState.FAILED, message=message):
                # Failed again and again, their checkpoints would fill the disk.
                self._tidy(self._folders.run(run.id))

    def _process(self, run: TrainingRun, alive: _SignsOfLife) -> None:
        snapshot, base_version = self._frozen(run, alive)
        folder = self._folders.run(run.id)
        outcome = read_outcome(folder)
        if outcome is None or outcome.error:
            forget_outcome(folder)
            self._write_job(snapshot, base_version, folder)
            outcome = self._trained(folder, alive)
        if outcome.error or outcome.weights is None:
            raise LidivError(outcome.error or "The training gave no weights.")
        verdict = Verdict.from_json(outcome.verdict)
        version = self._registry.add(
            Path(outcome.weights),
            {
                "run": run.id,
                "channel": run.channel,
                "parent": base_version,
                "snapshot": snapshot.digest,
                "verdict": verdict.to_json(),
            },
        )
        alive.tell(stage="promotion", candidate=version)
        promoted = verdict.passed and self._registry.promote(
            run.channel, version, expected=base_version
        )
        message = verdict.text
        if verdict.passed and not promoted:
            message = (
                "Kept, not promoted: another version was put in use meanwhile, and this one was "
                f"not compared with it. {message}"
            )
        self._queue.keep_version(version, run, promoted=promoted)
        self._queue.finish(
            run.id,
            self.owner,
            state=RunState.DONE,
            message=message,
            promoted=promoted,
            verdict=verdict.to_json(),
        )
        self._tidy(folder)

    def _frozen(self, run: TrainingRun, alive: _SignsOfLife) -> tuple[Snapshot, str]:
        """The snapshot of a run, and the version it begins with; the same after a crash."""
        if run.snapshot is not None and run.base_version is not None:
            with suppress(LidivError):
                self._registry.source(run.base_version)
                return read_snapshot(self._folders.snapshots, run.snapshot), run.base_version
        alive.tell(stage="snapshot")
        shutil.rmtree(self._folders.run(run.id), ignore_errors=True)
        snapshot = take_snapshot(
            self._store,
            Vault(self._folders.vault),
            self._folders.snapshots,
            lambda project, task, address: self._fetched(alive, project, task, address),
            channel=run.channel,
            projects=None if run.channel == SHARED or not run.project else [run.project],
            holdout=self._settings.holdout,
        )
        self._queue.keep_snapshot(snapshot)
        base_version = self._registry.pointer(run.channel).version
        alive.tell(stage="training", snapshot=snapshot.digest, base_version=base_version)
        return snapshot, base_version

    def _fetched(
        self, alive: _SignsOfLife, project: str, task: int | None, address: str
    ) -> NDArray[np.uint8]:
        alive.check()
        return self._fetch(project, task, address)

    def _write_job(self, snapshot: Snapshot, base_version: str, folder: Path) -> None:
        # Not the last run's, whose version may have been kept back: what it learnt is new again.
        learnt = self._registry.report(base_version).get("snapshot")
        Job(
            in_use=str(self._registry.source(base_version)),
            base=str(self._registry.base),
            vault=str(self._folders.vault),
            snapshots=str(self._folders.snapshots),
            snapshot=snapshot.digest,
            earlier=learnt,
            settings=self._settings,
        ).write(folder)

    def _trained(self, folder: Path, alive: _SignsOfLife) -> Outcome:
        """Wait for the process of a run, telling how far it is."""
        process = self._spawn(folder, self._settings)
        log = RunLog(folder / TRAINING)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=self._settings.poll_seconds)
                    break
                row: dict[str, Any] = next(reversed(log.rows()), {})
                progress = {key: row[key] for key in ("step", "seconds", "loss") if key in row}
                try:
                    alive.tell(stage=stage_of(folder), progress=progress)
                except StoreError as error:
                    # It trains on: the lease outlasts a short failure of the database.
                    _LOG.warning("How far run %s is cannot be told. %s", folder.name, error)
        finally:
            _end(process)
        outcome = read_outcome(folder)
        if outcome is not None:
            return outcome
        if process.returncode == UNWRITABLE:
            raise StorageError(
                "There was no room left even for the result of the run.",
                remedy="Make room in LIDIV_STATE.",
            )
        ended = f"The process of the run ended with status {process.returncode} and no result."
        if process.returncode < 0:
            raise TrainingKilledError(ended, remedy="Perhaps the machine has too little memory.")
        raise LidivError(ended, remedy=f"{folder / 'process.log'} says more.")

    def _tidy(self, folder: Path) -> None:
        """Delete what nobody needs any more."""
        for name in ("checkpoint", "checkpoint.part", "checkpoint.old", "weights"):
            shutil.rmtree(folder / TRAINING / name, ignore_errors=True)
        self._registry.prune(protected=self._queue.versions_in_work())

    def beat(self, run: int, **values: object) -> bool:
        """Say that this worker still has a run."""
        return self._queue.beat(run, self.owner, **values)

    @property
    def beat_seconds(self) -> float:
        """Time between two signs of life."""
        return self._lease_seconds / 4

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()


class _SignsOfLife:
    """Says again and again that a run is worked on, from a thread of its own."""

    def __init__(self, worker: Worker, run: TrainingRun) -> None:
        self._worker = worker
        self._run = run
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="signs-of-life", daemon=True)

    def __enter__(self) -> _SignsOfLife:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """End what is being done if it is no longer this worker's to do.

        Raises
        ------
        RunLostError
            If another worker has the run.
        StoppedError
            If the worker was asked to stop.
        """
        if self._lost:
            raise RunLostError(f"Run {self._run.id} was taken over by another worker.")
        if self._worker.is_stopping:
            raise StoppedError(f"Run {self._run.id} goes back into the queue.")

    def tell(self, **values: object) -> None:
        """Write down how far it is; raises as `check`."""
        self.check()
        if not self._worker.beat(self._run.id, **values):
            self._lost = True
        self.check()

    def _beat(self) -> None:
        while not self._ended.wait(self._worker.beat_seconds):
            try:
                if not self._worker.beat(self._run.id):
                    self._lost = True
                    return
            except LidivError as error:
                # The lease outlasts a short failure; after a long one the run is another's.
                _LOG.warning("No sign of life could be given. %s", error)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs: first kindly, so that it writes a checkpoint."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
