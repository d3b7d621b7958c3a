"""The tables. A change here needs a migration, see `lidiv_backend/learning/migrations`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    DateTime,
    Dialect,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


def now() -> datetime:
    """Return the time, with UTC as its zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with zone; SQLite, which has none, keeps UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn a time into UTC on its way in."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give a time its zone on its way out."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    # Names of constraints are fixed, so that migrations can refer to them on every database.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - as SQLAlchemy wants it
        datetime: UtcDateTime,
        date: Date,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class ConnectionRow(Base):
    """A project that connected itself by ``/setup``."""

    __tablename__ = "connections"

    #: ``"<id>.<created, seconds since 1970>"``, as in every request of the project.
    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    hostname: Mapped[str] = mapped_column(Text)
    #: Empty where the operator has set a token.
    access_token: Mapped[str] = mapped_column(Text)
    label_config: Mapped[str] = mapped_column(Text)
    extra_params: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class InteractionRow(Base):
    """An answer to clicks: what was shown, and how it came about."""

    __tablename__ = "interactions"
    __table_args__ = (Index("ix_interactions_key", "project", "task", "first_click"),)

    #: Id of the region; it survives acceptance.
    region_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    task: Mapped[int | None] = mapped_column(BigInteger)
    first_click: Mapped[str] = mapped_column(String(64))
    interactive: Mapped[bool]
    to_name: Mapped[str] = mapped_column(Text)
    label: Mapped[str | None] = mapped_column(Text)
    height: Mapped[int]
    width: Mapped[int]
    #: In order: ``{"id", "x", "y", "positive", "next"}``; x and y in per cent, ``next`` true where
    #: the click asked for the next proposal.
    clicks: Mapped[list[Any]]
    #: Best first: ``{"score", "head"}``.
    proposals: Mapped[list[Any]]
    #: Index of the proposal that was shown.
    shown: Mapped[int]
    model_version: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(default=now)


class WaitingBoxesRow(Base):
    """The rectangles that an annotator has on a task, and that wait for clicks."""

    __tablename__ = "waiting_boxes"
    __table_args__ = (Index("ix_waiting_boxes_place", "project", "task"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    task: Mapped[int | None] = mapped_column(BigInteger)
    #: `lidiv_backend.labelstudio.results.Prompt`, as JSON.
    boxes: Mapped[list[Any]]
    placed_at: Mapped[datetime] = mapped_column(default=now, index=True)


class BeginningRow(Base):
    """What an interaction began with: a rectangle, or an accepted region."""

    __tablename__ = "beginnings"

    #: Digest of the project, the task and the first click.
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: ``{"box", "others", "region"}``: rectangles, and the region's id or nothing.
    content: Mapped[dict[str, Any]]
    begun_at: Mapped[datetime] = mapped_column(default=now, index=True)


class AnnotationRow(Base):
    """An annotation as Label Studio last told of it."""

    __tablename__ = "annotations"
    __table_args__ = (
        UniqueConstraint("project", "annotation"),
        # Counting accepted annotations must not read their masks.
        Index("ix_annotations_accepted", "was_cancelled", "deleted_at", "project", "created_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    #: Label Studio's number.
    annotation: Mapped[int] = mapped_column(BigInteger)
    task: Mapped[int | None] = mapped_column(BigInteger, index=True)
    #: The task's data, with the image's address.
    task_data: Mapped[dict[str, Any]]
    result: Mapped[list[Any]]
    was_cancelled: Mapped[bool]
    completed_by: Mapped[int | None] = mapped_column(BigInteger)
    lead_time: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)
    deleted_at: Mapped[datetime | None]


class AcceptedMaskRow(Base):
    """A mask of an accepted annotation that this backend made, and what it cost."""

    __tablename__ = "accepted_masks"

    project: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: Label Studio's number of the annotation.
    annotation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: Also the id of the interaction's last answer.
    region_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(128))
    #: All clicks, those that asked for the next proposal among them.
    clicks: Mapped[int]
    #: Clicks that asked for the next proposal.
    steps: Mapped[int]
    #: From the first click until it was saved; None where that was not seen.
    seconds: Mapped[int | None]
    #: When it was last clicked, in UTC.
    day: Mapped[date] = mapped_column(index=True)


class WebhookEventRow(Base):
    """An event as it arrived, without its secrets."""

    __tablename__ = "webhook_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str] = mapped_column(String(64), index=True)
    project: Mapped[str | None] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    received_at: Mapped[datetime] = mapped_column(default=now)


class FailureRow(Base):
    """One of the recent failures."""

    __tablename__ = "failures"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    remedy: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(64))
    route: Mapped[str] = mapped_column(String(128))
    task: Mapped[int | None] = mapped_column(BigInteger)
    happened_at: Mapped[datetime] = mapped_column(default=now)


class ImageRow(Base):
    """An image of a task that was fetched and is kept."""

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("project", "address_digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    #: sha256 of the task's number and the address in its data, which may be long.
    address_digest: Mapped[str] = mapped_column(String(64))
    #: Names the image in the content-addressed folder.
    digest: Mapped[str] = mapped_column(String(64))
    fetched_at: Mapped[datetime] = mapped_column(default=now)


class SnapshotRow(Base):
    """A frozen set of accepted annotations."""

    __tablename__ = "snapshots"

    #: sha256 of what it holds; also the name of its file.
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    channel: Mapped[str] = mapped_column(String(128), index=True)
    train_images: Mapped[int]
    train_masks: Mapped[int]
    held_out_images: Mapped[int]
    held_out_masks: Mapped[int]
    #: What was left out, a sentence each.
    problems: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(default=now)


class TrainingRunRow(Base):
    """A run of the worker; the table is its queue."""

    __tablename__ = "training_runs"
    __table_args__ = (
        # One run of a channel waits or runs at a time.
        Index(
            "uq_training_runs_active",
            "channel",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    channel: Mapped[str] = mapped_column(String(128), index=True)
    #: Whose annotations or button set it off.
    project: Mapped[str | None] = mapped_column(String(64))
    #: ``annotations``, ``button`` or ``command``.
    cause: Mapped[str] = mapped_column(String(32))
    #: ``queued``, ``running``, ``done`` or ``failed``.
    state: Mapped[str] = mapped_column(String(16), index=True)
    #: What it is at: ``snapshot``, ``training``, ``gate``.
    stage: Mapped[str] = mapped_column(String(32))
    #: Numbers for people, such as steps done and wanted.
    progress: Mapped[dict[str, Any]]
    #: Which worker has it, until when unless it says that it still lives.
    owner: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int]
    snapshot: Mapped[str | None] = mapped_column(String(64))
    #: The version in use when it began, and what came out.
    base_version: Mapped[str | None] = mapped_column(String(128))
    candidate: Mapped[str | None] = mapped_column(String(128))
    promoted: Mapped[bool]
    #: The gate's numbers.
    verdict: Mapped[dict[str, Any]]
    #: The verdict, or why it failed, in words.
    message: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class ModelVersionRow(Base):
    """A version of the model that came out of a run."""

    __tablename__ = "model_versions"

    version: Mapped[str] = mapped_column(String(128), primary_key=True)
    channel: Mapped[str] = mapped_column(String(128), index=True)
    run: Mapped[int]
    #: The version that it was trained from, and measured against.
    parent: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(default=now)
    promoted_at: Mapped[datetime | None]
