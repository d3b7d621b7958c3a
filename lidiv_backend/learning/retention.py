"""What is kept for a while only, so that a server that is left on does not fill its disk.

Nothing goes that learning may still need: annotations, masks, images and snapshots stay, and so do
the answers to clicks on every task that was ever annotated, since an accepted region finds its
clicks there. Snapshots hold the clicks that they learn from themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from lidiv_backend.learning.files import ASIDE, explained
from lidiv_backend.learning.schema import AnnotationRow, InteractionRow, WebhookEventRow, now
from lidiv_backend.learning.store import Store

#: Events that could not be understood are kept for people to look at: the last so many.
MAX_UNREAD_EVENTS = 1000
#: Rows that one transaction deletes: webhooks wait for it.
BATCH = 200
# A file that is being written is not older than this.
_ASIDE_SECONDS = 24 * 3600.0
# Folders whose files are written aside, with those below them.
_FOLDERS = ("vault", "snapshots", "channels", "pins", "runs")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How long things are kept.

    Parameters
    ----------
    events_days
        Webhook events that took effect.
    clicks_days
        Answers to clicks on tasks without any annotation.
    """

    events_days: float
    clicks_days: float


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """How many rows and files were deleted."""

    events: int
    answers: int
    files: int


def tidy_up(
    store: Store,
    state: Path,
    retention: Retention,
    *,
    stop: threading.Event | None = None,
    clock: Callable[[], datetime] = now,
) -> Deleted:
    """Delete what has been kept for long enough, a few rows at a time.

    Parameters
    ----------
    store
        The database.
    state
        The state folder, where a crash may have left files that were being written.
    retention
        How long things are kept.
    stop
        Set to end early; the rest is deleted next time.
    clock
        The time; for tests.

    Returns
    -------
    Deleted

    Raises
    ------
    StoreError, StorageError
        If the database or the disk fails.
    """
    stop = stop or threading.Event()
    events = _delete(
        store,
        WebhookEventRow.id,
        [
            select(WebhookEventRow.id).where(
                WebhookEventRow.project.is_not(None),
                WebhookEventRow.received_at < clock() - timedelta(days=retention.events_days),
            ),
            _unread_events(),
        ],
        stop,
    )
    answers = _delete(
        store,
        InteractionRow.region_id,
        [_unused_answers(clock() - timedelta(days=retention.clicks_days))],
        stop,
    )
    deleted = Deleted(events=events, answers=answers, files=_sweep(state))
    if deleted != Deleted(events=0, answers=0, files=0):
        _LOG.info(
            "Deleted %d old events, %d answers on tasks that nobody annotated, %d leftover files.",
            deleted.events,
            deleted.answers,
            deleted.files,
        )
    return deleted


def _unread_events() -> Select[Any]:
    unread = select(WebhookEventRow.id).where(WebhookEventRow.project.is_(None))
    kept = unread.order_by(WebhookEventRow.id.desc()).limit(MAX_UNREAD_EVENTS)
    return unread.where(WebhookEventRow.id.not_in(kept))


def _unused_answers(before: datetime) -> Select[Any]:
    """Answers that no annotation can refer to; where an annotation's task is unknown, none is."""
    annotated = exists().where(
        AnnotationRow.project == InteractionRow.project,
        or_(
            AnnotationRow.task == InteractionRow.task,
            AnnotationRow.task.is_(None),
            InteractionRow.task.is_(None),
        ),
    )
    return select(InteractionRow.region_id).where(InteractionRow.created_at < before, ~annotated)


def _delete(
    store: Store,
    key: InstrumentedAttribute[Any],
    wanted: Sequence[Select[Any]],
    stop: threading.Event,
) -> int:
    """Delete the rows with the keys that queries give, in batches."""
    count = 0
    for query in wanted:
        while not stop.is_set():

            def write(session: Session, query: Select[Any] = query) -> int:
                keys = session.scalars(query.limit(BATCH)).all()
                session.execute(
                    # Asked again: an annotation may have come meanwhile.
                    delete(key.class_).where(key.in_(keys), key.in_(query)),
                    execution_options={"synchronize_session": False},
                )
                return len(keys)

            found = store.write(write)
            count += found
            if found < BATCH:
                break
    return count


def _sweep(state: Path) -> int:
    """Delete files that were being written when a process was killed, long ago."""
    count = 0
    before = time.time() - _ASIDE_SECONDS
    with explained(f"Tidying up {state}"):
        for folder in _FOLDERS:
            for path in (state / folder).rglob(f"{ASIDE}*"):
                if path.is_file() and path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)
                    count += 1
    return count
