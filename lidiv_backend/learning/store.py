"""What the server remembers: connections, answers, annotations, webhook events and failures.

SQLite by default, PostgreSQL by its URL. Every method is one short transaction, and may be called
from any thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, delete, event, func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from lidiv_backend.errors import LidivError
from lidiv_backend.learning.migrations import configuration
from lidiv_backend.learning.schema import (
    AnnotationRow,
    ConnectionRow,
    FailureRow,
    ImageRow,
    InteractionRow,
    WebhookEventRow,
    now,
)
from lidiv_backend.learning.usage import forget_accepted, note_accepted

#: Failures that are kept.
MAX_FAILURES = 200
# SQLite waits so long for another writer; Label Studio waits 1 s for a webhook.
_BUSY_MILLISECONDS = 5000
# Any number will do, as long as it is always the same.
_MIGRATION_LOCK = 0x11D1

_Result = TypeVar("_Result")


class StoreError(LidivError):
    """The database cannot be used."""

    status = 503
    kind = "database"


@dataclass(frozen=True, kw_only=True)
class StoredConnection:
    """A project that connected itself.

    Parameters
    ----------
    project
        ``"<id>.<created, seconds since 1970>"``.
    hostname
        What Label Studio calls itself.
    access_token
        Of the project's creator; empty where it is not kept.
    label_config
        The label configuration at that time.
    updated_at
        When it last connected.
    extra_params
        What the project's settings pass to the backend.
    """

    project: str
    hostname: str
    access_token: str
    label_config: str
    updated_at: datetime
    extra_params: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"StoredConnection(project={self.project!r}, hostname={self.hostname!r})"


@dataclass(frozen=True, kw_only=True)
class StoredClick:
    """A click of a stored answer.

    Parameters
    ----------
    id
        Label Studio's id of the point.
    x, y
        Per cent of the upright image's width and height.
    positive
        False for "this does not belong to it".
    next
        Whether it asked for the next proposal, and was no prompt.
    """

    id: str
    x: float
    y: float
    positive: bool
    next: bool


@dataclass(frozen=True, kw_only=True)
class StoredProposal:
    """A proposal of a stored answer: its score, and the head of f that made it."""

    score: float
    head: int


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """A region that was shown, and how it came about.

    Parameters
    ----------
    region_id
        The region's id, which survives acceptance.
    project, task, first_click
        The interaction: project as Label Studio sends it, number of the task, id of the first
        point.
    interactive
        False where Label Studio asked for a whole batch.
    to_name, label
        The image tag, and the label if there is one.
    height, width
        Of the upright image, in pixels.
    clicks
        In order.
    proposals
        Best first.
    shown
        Index of the proposal that was shown.
    model_version
        Of the weights.
    created_at
        When it was first shown; set by the store.
    """

    region_id: str
    project: str
    task: int | None
    first_click: str
    interactive: bool
    to_name: str
    label: str | None
    height: int
    width: int
    clicks: tuple[StoredClick, ...]
    proposals: tuple[StoredProposal, ...]
    shown: int
    model_version: str
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class StoredAnnotation:
    """An annotation as Label Studio tells of it.

    Parameters
    ----------
    project
        As in every request of the project.
    annotation, task
        Label Studio's numbers.
    task_data
        The task's data, with the image's address.
    result
        As it came.
    was_cancelled
        True for a skipped task.
    completed_by
        Number of the annotator.
    lead_time
        Seconds spent.
    deleted_at
        When it was deleted; set by the store.
    """

    project: str
    annotation: int
    task: int | None
    task_data: Mapping[str, Any]
    result: Sequence[Any]
    was_cancelled: bool
    completed_by: int | None
    lead_time: float | None
    deleted_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that went wrong, and what to do about it.

    Parameters
    ----------
    kind, message, remedy
        As in `LidivError`.
    request_id
        Finds the request in the log.
    route
        The request's path, or what was being done.
    task
        Label Studio's number of the task, if there is one.
    happened_at
        Set by the store.
    """

    kind: str
    message: str
    remedy: str
    request_id: str
    route: str
    task: int | None = None
    happened_at: datetime | None = None


class Store:
    """The database.

    Parameters
    ----------
    url
        SQLAlchemy's form: ``sqlite:////folder/lidiv.sqlite``, ``postgresql+psycopg://…``.

    Raises
    ------
    StoreError
        If it cannot be opened, or its tables cannot be brought up to date.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _open(url)
            _migrate(self._engine)
        except CommandError as error:
            raise StoreError(
                f"The database is of a newer version of LiDiv: {error}.",
                remedy="Install that version again, or restore a backup of this one.",
            ) from error
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise StoreError(
                f"The database cannot be opened: {_reason(error)}.",
                remedy="Check LIDIV_DATABASE_URL and LIDIV_STATE, that the folder is writable, and "
                "that the disk is not full.",
            ) from error
        # SQLite lets one write at a time, and of many that wait it forgets some for too long.
        is_sqlite = self._engine.dialect.name == "sqlite"
        self._turn = threading.RLock() if is_sqlite else contextlib.nullcontext()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def keep_connection(
        self,
        *,
        project: str,
        hostname: str,
        access_token: str,
        label_config: str,
        extra_params: Mapping[str, Any],
    ) -> None:
        """Keep what ``/setup`` sent, in place of what the project sent before."""

        def write(session: Session) -> None:
            session.merge(
                ConnectionRow(
                    project=project,
                    hostname=hostname,
                    access_token=access_token,
                    label_config=label_config,
                    extra_params=dict(extra_params),
                    updated_at=now(),
                )
            )

        self.write(write)

    def connection(self, project: str) -> StoredConnection | None:
        """Find what a project sent by ``/setup``."""
        with self.reading() as session:
            row = session.get(ConnectionRow, project)
            return None if row is None else _connection(row)

    def connections(self) -> list[StoredConnection]:
        """Give all projects that connected, the latest first."""
        with self.reading() as session:
            rows = session.scalars(select(ConnectionRow).order_by(ConnectionRow.updated_at.desc()))
            return [_connection(row) for row in rows]

    def keep_answer(self, answer: StoredAnswer) -> None:
        """Keep an answer; one with the same region id is the same answer, sent again."""

        def write(session: Session) -> None:
            if session.get(InteractionRow, answer.region_id) is not None:
                return
            session.add(
                InteractionRow(
                    region_id=answer.region_id,
                    project=answer.project,
                    task=answer.task,
                    first_click=answer.first_click,
                    interactive=answer.interactive,
                    to_name=answer.to_name,
                    label=answer.label,
                    height=answer.height,
                    width=answer.width,
                    clicks=[
                        {
                            "id": click.id,
                            "x": click.x,
                            "y": click.y,
                            "positive": click.positive,
                            "next": click.next,
                        }
                        for click in answer.clicks
                    ],
                    proposals=[
                        {"score": proposal.score, "head": proposal.head}
                        for proposal in answer.proposals
                    ],
                    shown=answer.shown,
                    model_version=answer.model_version,
                )
            )

        self.write(write)

    def answer(self, region_id: str) -> StoredAnswer | None:
        """Find how a region came about, by its id."""
        with self.reading() as session:
            row = session.get(InteractionRow, region_id)
            return None if row is None else _answer(row)

    def first_version(self, *, project: str, task: int | None, first_click: str) -> str | None:
        """Find the model version that an interaction began with; None if it is new."""
        with self.reading() as session:
            return session.scalar(
                select(InteractionRow.model_version)
                .where(
                    InteractionRow.project == project,
                    InteractionRow.task == task,
                    InteractionRow.first_click == first_click,
                    InteractionRow.interactive,
                )
                .order_by(InteractionRow.created_at)
                .limit(1)
            )

    def keep_event(
        self,
        *,
        action: str,
        project: str | None,
        payload: Mapping[str, Any],
        annotation: StoredAnnotation | None = None,
        deleted: Sequence[int] = (),
    ) -> None:
        """Keep a webhook's event and what it says about annotations, in one transaction.

        Parameters
        ----------
        action
            What Label Studio calls it.
        project
            The project, if the event names one.
        payload
            The body.
        annotation
            The annotation that was made or changed.
        deleted
            Numbers of annotations that were deleted.
        """

        def write(session: Session) -> None:
            session.add(WebhookEventRow(action=action, project=project, payload=dict(payload)))
            if annotation is not None:
                note_accepted(session, _merge_annotation(session, annotation), live=True)
            if project is not None:
                _mark_deleted(session, project, deleted)

        self.write(write)

    def annotation(self, project: str, number: int) -> StoredAnnotation | None:
        """Find an annotation by its project and Label Studio's number."""
        with self.reading() as session:
            row = _find_annotation(session, project, number)
            return None if row is None else _annotation(row)

    def accepted_annotations(self, projects: Collection[str] | None) -> Iterator[StoredAnnotation]:
        """Give the annotations to learn from, oldest first: neither skipped nor deleted.

        Parameters
        ----------
        projects
            Whose; None for all.
        """
        accepted = (
            select(AnnotationRow)
            .where(AnnotationRow.deleted_at.is_(None), AnnotationRow.was_cancelled.is_(False))
            .order_by(AnnotationRow.id)
            .execution_options(yield_per=20)
        )
        if projects is not None:
            accepted = accepted.where(AnnotationRow.project.in_(projects))
        with self.reading() as session:
            for row in session.scalars(accepted):
                yield _annotation(row)

    def count_accepted(self, project: str | None, *, since: datetime | None) -> int:
        """Count annotations that were made and neither skipped nor deleted.

        Parameters
        ----------
        project
            Whose; None for all.
        since
            Only those made later; None for all.
        """
        wanted = select(func.count()).where(
            AnnotationRow.deleted_at.is_(None), AnnotationRow.was_cancelled.is_(False)
        )
        if project is not None:
            wanted = wanted.where(AnnotationRow.project == project)
        if since is not None:
            wanted = wanted.where(AnnotationRow.created_at > since)
        with self.reading() as session:
            return session.scalar(wanted) or 0

    def annotated_projects(self) -> list[str]:
        """Give the projects that have annotations, in order."""
        with self.reading() as session:
            found = select(AnnotationRow.project).distinct().order_by(AnnotationRow.project)
            return list(session.scalars(found))

    def keep_annotations(
        self, project: str, annotations: Sequence[StoredAnnotation], *, deleted: Sequence[int]
    ) -> None:
        """Keep what Label Studio says of annotations, without an event.

        Parameters
        ----------
        project
            Whose.
        annotations
            Those that were made or changed.
        deleted
            Numbers of those that are gone.
        """

        def write(session: Session) -> None:
            for annotation in annotations:
                row = _merge_annotation(session, annotation)
                row.deleted_at = None
                note_accepted(session, row, live=False)
            _mark_deleted(session, project, deleted)

        self.write(write)

    def known_annotations(self, project: str) -> dict[int, str]:
        """Give the annotations of a project that are not deleted: number -> digest of its content.

        See `annotation_digest`.
        """
        with self.reading() as session:
            rows = session.scalars(
                select(AnnotationRow)
                .where(AnnotationRow.project == project, AnnotationRow.deleted_at.is_(None))
                .execution_options(yield_per=20)
            )
            return {row.annotation: annotation_digest(_annotation(row)) for row in rows}

    def answers(self, region_ids: Collection[str]) -> dict[str, StoredAnswer]:
        """Find how regions came about, by their ids."""
        with self.reading() as session:
            rows = session.scalars(
                select(InteractionRow).where(InteractionRow.region_id.in_(region_ids))
            )
            return {row.region_id: _answer(row) for row in rows}

    def image_digest(self, project: str, task: int | None, address: str) -> str | None:
        """Find an image that was fetched before: its name in the content-addressed folder."""
        with self.reading() as session:
            return session.scalar(
                select(ImageRow.digest).where(
                    ImageRow.project == project,
                    ImageRow.address_digest == _address_digest(task, address),
                )
            )

    def keep_image(self, project: str, task: int | None, address: str, digest: str) -> None:
        """Note that an image was fetched."""

        def write(session: Session) -> None:
            known = {"project": project, "address_digest": _address_digest(task, address)}
            row = session.scalar(select(ImageRow).filter_by(**known))
            if row is None:
                session.add(ImageRow(**known, digest=digest))
            else:
                row.digest, row.fetched_at = digest, now()

        self.write(write)

    def events(self, *, limit: int = 50) -> list[tuple[str, dict[str, Any]]]:
        """Give the latest events, newest first: action and body."""
        with self.reading() as session:
            rows = session.scalars(
                select(WebhookEventRow).order_by(WebhookEventRow.id.desc()).limit(limit)
            )
            return [(row.action, row.payload) for row in rows]

    def keep_failure(self, failure: Failure) -> None:
        """Keep a failure in place of earlier ones that say the same, and forget the oldest."""

        def write(session: Session) -> None:
            session.execute(
                delete(FailureRow).where(
                    FailureRow.kind == failure.kind,
                    FailureRow.message == failure.message,
                    FailureRow.route == failure.route,
                    FailureRow.task.is_(None)
                    if failure.task is None
                    else FailureRow.task == failure.task,
                )
            )
            session.add(
                FailureRow(
                    kind=failure.kind,
                    message=failure.message,
                    remedy=failure.remedy,
                    request_id=failure.request_id,
                    route=failure.route,
                    task=failure.task,
                )
            )
            session.flush()
            kept = select(FailureRow.id).order_by(FailureRow.id.desc()).limit(MAX_FAILURES)
            session.execute(delete(FailureRow).where(FailureRow.id.not_in(kept)))

        self.write(write)

    def recent_failures(self, *, limit: int = 50) -> list[Failure]:
        """Give the latest failures, newest first."""
        with self.reading() as session:
            rows = session.scalars(select(FailureRow).order_by(FailureRow.id.desc()).limit(limit))
            return [
                Failure(
                    kind=row.kind,
                    message=row.message,
                    remedy=row.remedy,
                    request_id=row.request_id,
                    route=row.route,
                    task=row.task,
                    happened_at=row.happened_at,
                )
                for row in rows
            ]

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session to read from.

        Raises
        ------
        StoreError
            If the database cannot be used.
        """
        try:
            with Session(self._engine) as session:
                yield session
        except SQLAlchemyError as error:
            raise unusable(error) from error

    def write(self, work: Callable[[Session], _Result]) -> _Result:
        """Run a transaction; a second time where another one wrote the same row in between.

        Raises
        ------
        StoreError
            If the database cannot be used.
        """
        try:
            with self._turn:
                try:
                    with Session(self._engine) as session, session.begin():
                        return work(session)
                except IntegrityError:
                    with Session(self._engine) as session, session.begin():
                        return work(session)
        except SQLAlchemyError as error:
            raise unusable(error) from error


def _open(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return server_engine(url, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        # It may hold tokens: nobody else reads it. SQLite's other files take over its mode.
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(_private(parsed.database, os.O_CREAT | os.O_RDWR))
    engine = create_engine(parsed)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return engine


def server_engine(url: str, **options: Any) -> Engine:
    """Connect to a database server; ``options`` are SQLAlchemy's.

    A PostgreSQL cluster that was made in the locale C has no encoding of its own, and gives bytes
    where text is expected; asked for UTF-8, it gives what was written.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql" and "client_encoding" not in parsed.query:
        options["connect_args"] = {"client_encoding": "utf8"}
    return create_engine(parsed, **options)


@contextlib.contextmanager
def _migration_lock(engine: Engine) -> Iterator[None]:
    """Let one process at a time change the tables."""
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            lock = {"lock": _MIGRATION_LOCK}
            connection.execute(text("SELECT pg_advisory_lock(:lock)"), lock)
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), lock)
        return
    database = engine.url.database
    if not database or database == ":memory:":
        yield
        return
    with open(f"{database}.lock", "w", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _migrate(engine: Engine) -> None:
    config = configuration()
    with _migration_lock(engine), _whole_transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def _whole_transaction(engine: Engine) -> Iterator[Connection]:
    """Do all of what changes the tables, or nothing, also where the process is killed."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        # By itself Python's sqlite3 begins no transaction for statements that change tables.
        before, driver.isolation_level = driver.isolation_level, None
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection
            connection.commit()
        finally:
            connection.rollback()
            driver.isolation_level = before


def _reason(error: BaseException) -> str:
    """Give the first line; SQLAlchemy appends the statement, whose values nobody should see."""
    original = getattr(error, "orig", None) or error
    return (str(original).splitlines() or [type(original).__name__])[0]


def unusable(error: Exception) -> StoreError:
    """Say that the database cannot be used, without the values of a statement."""
    return StoreError(
        f"The database cannot be used: {_reason(error)}.",
        remedy="Is the disk full, or the database server gone?",
    )


def _connection(row: ConnectionRow) -> StoredConnection:
    return StoredConnection(
        project=row.project,
        hostname=row.hostname,
        access_token=row.access_token,
        label_config=row.label_config,
        updated_at=row.updated_at,
        extra_params=row.extra_params,
    )


def _answer(row: InteractionRow) -> StoredAnswer:
    return StoredAnswer(
        region_id=row.region_id,
        project=row.project,
        task=row.task,
        first_click=row.first_click,
        interactive=row.interactive,
        to_name=row.to_name,
        label=row.label,
        height=row.height,
        width=row.width,
        clicks=tuple(StoredClick(**click) for click in row.clicks),
        proposals=tuple(StoredProposal(**proposal) for proposal in row.proposals),
        shown=row.shown,
        model_version=row.model_version,
        created_at=row.created_at,
    )


def _find_annotation(session: Session, project: str, number: int) -> AnnotationRow | None:
    return session.scalar(
        select(AnnotationRow).where(
            AnnotationRow.project == project, AnnotationRow.annotation == number
        )
    )


def _merge_annotation(session: Session, annotation: StoredAnnotation) -> AnnotationRow:
    row = _find_annotation(session, annotation.project, annotation.annotation)
    if row is None:
        row = AnnotationRow(project=annotation.project, annotation=annotation.annotation)
        session.add(row)
    row.task = annotation.task
    if annotation.task_data or row.task_data is None:  # not every event brings the task
        row.task_data = dict(annotation.task_data)
    row.result = list(annotation.result)
    row.was_cancelled = annotation.was_cancelled
    row.completed_by = annotation.completed_by
    row.lead_time = annotation.lead_time
    row.updated_at = now()
    return row


def _mark_deleted(session: Session, project: str, numbers: Sequence[int]) -> None:
    if numbers:
        session.execute(
            update(AnnotationRow)
            .where(AnnotationRow.project == project, AnnotationRow.annotation.in_(numbers))
            .values(deleted_at=now())
        )
        forget_accepted(session, project, numbers)


def _annotation(row: AnnotationRow) -> StoredAnnotation:
    return StoredAnnotation(
        project=row.project,
        annotation=row.annotation,
        task=row.task,
        task_data=row.task_data,
        result=row.result,
        was_cancelled=row.was_cancelled,
        completed_by=row.completed_by,
        lead_time=row.lead_time,
        deleted_at=row.deleted_at,
    )


def annotation_digest(annotation: StoredAnnotation) -> str:
    """Name what an annotation says, so that two of them can be compared."""
    content = [annotation.task, list(annotation.result), annotation.was_cancelled]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _address_digest(task: int | None, address: str) -> str:
    return hashlib.sha256(f"{task} {address}".encode()).hexdigest()
