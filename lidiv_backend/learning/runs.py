"""The queue of training runs: a table, a lease, and nothing else that could survive a crash alone.

A worker claims a run for a while and says again and again that it still lives. When it stops saying
so, another worker takes the run over. On PostgreSQL a claim skips what another worker is just
claiming; on SQLite it is one conditional UPDATE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Select, and_, or_, select, update
from sqlalchemy.orm import Session

from lidiv_backend.errors import BadRequestError
from lidiv_backend.learning.schema import ModelVersionRow, SnapshotRow, TrainingRunRow, now
from lidiv_backend.learning.store import Store

if TYPE_CHECKING:
    from lidiv_backend.learning.snapshot import Snapshot

#: Without a sign of life for so long, a worker counts as dead.
LEASE_SECONDS = 90.0
#: A run that killed its worker so often is given up.
MAX_ATTEMPTS = 3


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class RunCause(StrEnum):
    """What set a run off."""

    ANNOTATIONS = "annotations"
    BUTTON = "button"
    COMMAND = "command"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A row of the queue.

    Parameters
    ----------
    id
        Its number.
    channel
        What it learns for.
    project
        Whose annotations or button set it off; None if that is not one project.
    cause, state, stage
        What set it off, where it stands, and what it is at.
    progress
        Numbers for people.
    owner
        The worker that has it.
    attempts
        How often a worker has taken it up.
    snapshot
        Digest of what it learns from.
    base_version
        What was in use when it began.
    candidate
        The version that came out.
    promoted
        Whether the gate put it in use.
    verdict
        The gate's, as `lidiv_backend.learning.gate.Verdict.to_json` gives it; empty before.
    message
        The verdict, or why it failed, in words.
    created_at, started_at, finished_at
        When.
    """

    id: int
    channel: str
    project: str | None
    cause: str
    state: RunState
    stage: str
    progress: Mapping[str, Any]
    owner: str | None
    attempts: int
    snapshot: str | None
    base_version: str | None
    candidate: str | None
    promoted: bool
    verdict: Mapping[str, Any]
    message: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunQueue:
    """The training runs of a store.

    Parameters
    ----------
    store
        The database.
    lease_seconds
        How long a claim holds without a sign of life.
    clock
        The time; for tests.
    """

    def __init__(
        self,
        store: Store,
        *,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._lease = timedelta(seconds=lease_seconds)
        self._clock = clock

    def enqueue(self, channel: str, cause: RunCause, *, project: str | None = None) -> TrainingRun:
        """Ask for a run.

        Returns
        -------
        TrainingRun
            The new one, or the one of this channel that waits or runs already.
        """

        def write(session: Session) -> TrainingRun:
            active = session.scalar(
                select(TrainingRunRow).where(
                    TrainingRunRow.channel == channel,
                    TrainingRunRow.state.in_((RunState.QUEUED, RunState.RUNNING)),
                )
            )
            if active is not None:
                return _run(active)
            row = TrainingRunRow(
                channel=channel,
                project=project,
                cause=cause.value,
                state=RunState.QUEUED.value,
                stage="",
                progress={},
                attempts=0,
                promoted=False,
                verdict={},
                message="",
                created_at=self._clock(),
            )
            session.add(row)
            session.flush()
            return _run(row)

        return self._store.write(write)

    def claim(self, owner: str, *, run: int | None = None) -> TrainingRun | None:
        """Take up the oldest run that waits, or whose worker is dead.

        Parameters
        ----------
        owner
            Who takes it.
        run
            Only this one; None for any.

        Returns
        -------
        TrainingRun or None
            None if there is none. A run that was taken up too often is failed instead.
        """
        while True:
            claimed = self._store.write(lambda session: self._claim_one(session, owner, run))
            if claimed is None or claimed.state is RunState.RUNNING:
                return claimed

    def _claim_one(self, session: Session, owner: str, run: int | None) -> TrainingRun | None:
        time = self._clock()
        found: TrainingRunRow | None = session.scalar(self._claimable(time, run))
        if found is None:
            return None
        given_up = found.attempts >= MAX_ATTEMPTS
        values: dict[str, Any] = {
            "state": RunState.RUNNING.value,
            "owner": owner,
            "lease_until": time + self._lease,
            "attempts": found.attempts + 1,
            "started_at": found.started_at or time,
        }
        if given_up:
            values = {
                "state": RunState.FAILED.value,
                "owner": None,
                "lease_until": None,
                "finished_at": time,
                "message": f"Given up: {found.attempts} workers ended while they were at it. "
                "Perhaps the machine has too little memory.",
            }
        # Only if nobody else was quicker, which nothing but this condition says on SQLite.
        same = [
            TrainingRunRow.id == found.id,
            TrainingRunRow.state == found.state,
            TrainingRunRow.attempts == found.attempts,
            _is(TrainingRunRow.lease_until, found.lease_until),
        ]
        changed = session.execute(
            update(TrainingRunRow)
            .where(*same)
            .values(**values)
            .execution_options(synchronize_session=False)
        )
        if getattr(changed, "rowcount", 0) != 1:
            return None
        session.expire(found)
        return _run(found)

    def _claimable(self, time: datetime, run: int | None) -> Select[Any]:
        dead = and_(
            TrainingRunRow.state == RunState.RUNNING.value, TrainingRunRow.lease_until < time
        )
        wanted = select(TrainingRunRow).where(
            or_(TrainingRunRow.state == RunState.QUEUED.value, dead)
        )
        if run is not None:
            wanted = wanted.where(TrainingRunRow.id == run)
        return wanted.order_by(TrainingRunRow.id).limit(1).with_for_update(skip_locked=True)

    def beat(self, run: int, owner: str, **values: Any) -> bool:
        """Say that the worker lives, and how far it is.

        Parameters
        ----------
        run, owner
            Which run, and whose.
        **values
            Columns of the row that change, such as ``stage`` and ``progress``.

        Returns
        -------
        bool
            False if the run is no longer this worker's: then it must leave it alone.
        """
        return self._change(run, owner, lease_until=self._clock() + self._lease, **values)

    def release(self, run: int, owner: str, *, counts: bool = False) -> bool:
        """Put a run back into the queue, to be resumed.

        Parameters
        ----------
        run, owner
            Which run, and whose.
        counts
            Whether it was an attempt: one that was only asked to stop was none.
        """
        return self._change(
            run,
            owner,
            state=RunState.QUEUED.value,
            owner_=None,
            lease_until=None,
            attempts=TrainingRunRow.attempts - (0 if counts else 1),
        )

    def finish(
        self,
        run: int,
        owner: str,
        *,
        state: RunState,
        message: str,
        **values: Any,
    ) -> bool:
        """Note how a run ended.

        Returns
        -------
        bool
            False if the run is no longer this worker's.
        """
        return self._change(
            run,
            owner,
            state=state.value,
            owner_=None,
            lease_until=None,
            message=message,
            finished_at=self._clock(),
            stage="",
            **values,
        )

    def _change(self, run: int, owner: str, **values: Any) -> bool:
        if "owner_" in values:
            values["owner"] = values.pop("owner_")

        def write(session: Session) -> bool:
            changed = session.execute(
                update(TrainingRunRow)
                .where(
                    TrainingRunRow.id == run,
                    TrainingRunRow.owner == owner,
                    TrainingRunRow.state == RunState.RUNNING.value,
                )
                .values(**values)
            )
            return bool(getattr(changed, "rowcount", 0) == 1)

        return self._store.write(write)

    def run(self, number: int) -> TrainingRun:
        """Find a run by its number.

        Raises
        ------
        BadRequestError
            If there is none.
        """
        with self._store.reading() as session:
            row = session.get(TrainingRunRow, number)
            if row is None:
                raise BadRequestError(f"There is no training run {number}.")
            return _run(row)

    def runs(self, *, limit: int = 20) -> list[TrainingRun]:
        """Give the latest runs, newest first."""
        with self._store.reading() as session:
            rows = session.scalars(
                select(TrainingRunRow).order_by(TrainingRunRow.id.desc()).limit(limit)
            )
            return [_run(row) for row in rows]

    def last(self, channel: str, *, state: RunState | None = None) -> TrainingRun | None:
        """Find the latest run of a channel.

        Parameters
        ----------
        channel
            Which.
        state
            Only of this state; None for any.
        """
        wanted = select(TrainingRunRow).where(TrainingRunRow.channel == channel)
        if state is not None:
            wanted = wanted.where(TrainingRunRow.state == state.value)
        with self._store.reading() as session:
            row = session.scalar(wanted.order_by(TrainingRunRow.id.desc()).limit(1))
            return None if row is None else _run(row)

    def versions_in_work(self) -> set[str]:
        """Versions that runs which wait or run need."""
        with self._store.reading() as session:
            rows = session.execute(
                select(TrainingRunRow.base_version, TrainingRunRow.candidate).where(
                    TrainingRunRow.state.in_((RunState.QUEUED, RunState.RUNNING))
                )
            )
            return {version for row in rows for version in row if version is not None}

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Note a snapshot."""
        train, held_out = snapshot.part(held_out=False), snapshot.part(held_out=True)

        def write(session: Session) -> None:
            session.merge(
                SnapshotRow(
                    digest=snapshot.digest,
                    channel=snapshot.channel,
                    train_images=len(train),
                    train_masks=sum(len(image.masks) for image in train),
                    held_out_images=len(held_out),
                    held_out_masks=sum(len(image.masks) for image in held_out),
                    problems=list(snapshot.problems),
                )
            )

        self._store.write(write)

    def keep_version(self, version: str, run: TrainingRun, *, promoted: bool) -> None:
        """Note a version that came out of a run."""

        def write(session: Session) -> None:
            session.merge(
                ModelVersionRow(
                    version=version,
                    channel=run.channel,
                    run=run.id,
                    parent=run.base_version or "",
                    promoted_at=self._clock() if promoted else None,
                )
            )

        self._store.write(write)


def _is(column: Any, value: Any) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = column.is_(None) if value is None else column == value
    return condition


def _run(row: TrainingRunRow) -> TrainingRun:
    return TrainingRun(
        id=row.id,
        channel=row.channel,
        project=row.project,
        cause=row.cause,
        state=RunState(row.state),
        stage=row.stage,
        progress=row.progress,
        owner=row.owner,
        attempts=row.attempts,
        snapshot=row.snapshot,
        base_version=row.base_version,
        candidate=row.candidate,
        promoted=row.promoted,
        verdict=row.verdict,
        message=row.message,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
