from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from lidiv_backend.learning import retention
from lidiv_backend.learning.retention import Deleted, Retention, tidy_up
from lidiv_backend.learning.schema import (
    AnnotationRow,
    InteractionRow,
    SnapshotRow,
    WebhookEventRow,
    now,
)
from lidiv_backend.learning.snapshot import read_snapshot, take_snapshot
from lidiv_backend.learning.store import Store
from lidiv_backend.learning.vault import Vault
from tests.learning.lab import PROJECT, Lab
from tests.learning.postgres import postgres_server
from tests.learning.test_store import ANNOTATION, ANSWER

KEPT = Retention(events_days=30, clicks_days=90)
NOTHING = Deleted(events=0, answers=0, files=0)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'lidiv.sqlite'}"
        return
    with postgres_server() as url:
        yield url


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """Empty, on either database."""
    opened = Store(database)
    for table in (AnnotationRow, InteractionRow, SnapshotRow, WebhookEventRow):
        opened.write(lambda session, table=table: session.execute(delete(table)))  # type: ignore[misc]
    yield opened
    opened.close()


def age(store: Store, days: float) -> None:
    """Let everything have happened so many days earlier than it says."""

    def write(session: object) -> None:
        for column in (WebhookEventRow.received_at, InteractionRow.created_at):
            for key, when in session.execute(  # type: ignore[attr-defined]
                select(column.class_.__mapper__.primary_key[0], column)
            ):
                session.execute(  # type: ignore[attr-defined]
                    update(column.class_)
                    .where(column.class_.__mapper__.primary_key[0] == key)
                    .values({column.key: when - timedelta(days=days)})
                )

    store.write(write)


def answers(store: Store, *names: str) -> set[str]:
    return set(store.answers(names))


def test_events_go_when_they_are_old(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        store.keep_event(action="OLD", project="1.100", payload={"n": number})
    age(store, 20)
    store.keep_event(action="YOUNGER", project="1.100", payload={})
    age(store, 11)
    store.keep_event(action="NEW", project="1.100", payload={}, annotation=ANNOTATION)
    assert tidy_up(store, tmp_path, KEPT) == replace(NOTHING, events=3)
    assert [action for action, _ in store.events()] == ["NEW", "YOUNGER"]
    # What an event said stays, however old it is.
    age(store, 1000)
    assert tidy_up(store, tmp_path, KEPT).events == 2
    assert store.annotation("1.100", 5) == ANNOTATION


def test_of_events_that_nobody_could_read_the_last_ones_stay(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_UNREAD_EVENTS", 2)
    for number in range(5):
        store.keep_event(action=str(number), project=None, payload={})
    age(store, 1000)
    assert tidy_up(store, tmp_path, KEPT).events == 3
    assert [action for action, _ in store.events()] == ["4", "3"]


def test_answers_go_only_on_tasks_that_nobody_annotated(store: Store, tmp_path: Path) -> None:
    for name, task in {"r1": 7, "r2": 7, "unused": 8}.items():
        store.keep_answer(replace(ANSWER, region_id=name, task=task))
    # The same number in another project is another task.
    store.keep_answer(replace(ANSWER, region_id="elsewhere", project="2.100"))
    store.keep_event(action="A", project="1.100", payload={}, annotation=ANNOTATION)
    assert tidy_up(store, tmp_path, KEPT) == NOTHING
    age(store, 91)
    store.keep_answer(replace(ANSWER, region_id="new", task=9))
    assert tidy_up(store, tmp_path, KEPT).answers == 2
    assert answers(store, "r1", "r2", "unused", "elsewhere", "new") == {"r1", "r2", "new"}


@pytest.mark.parametrize("change", ["deleted", "skipped"])
def test_what_was_annotated_once_may_be_annotated_again(
    store: Store, tmp_path: Path, change: str
) -> None:
    store.keep_answer(ANSWER)
    annotation = replace(ANNOTATION, was_cancelled=change == "skipped")
    gone = [5] if change == "deleted" else []
    store.keep_annotations("1.100", [annotation], deleted=[])
    store.keep_annotations("1.100", [], deleted=gone)
    age(store, 1000)
    assert tidy_up(store, tmp_path, KEPT).answers == 0
    assert answers(store, "r1") == {"r1"}


def test_where_a_task_is_not_known_nothing_is_deleted(store: Store, tmp_path: Path) -> None:
    store.keep_answer(ANSWER)
    store.keep_answer(replace(ANSWER, region_id="r2", task=None, project="2.100"))
    store.keep_annotations("1.100", [replace(ANNOTATION, task=None)], deleted=[])
    store.keep_annotations("2.100", [replace(ANNOTATION, project="2.100")], deleted=[])
    age(store, 1000)
    assert tidy_up(store, tmp_path, KEPT).answers == 0


def test_a_snapshot_reads_the_same_afterwards(store: Store, tmp_path: Path) -> None:
    lab = Lab(store)
    for task in range(3):
        lab.accept(task)
        for number in range(2):
            store.keep_answer(
                replace(
                    ANSWER,
                    project=PROJECT,
                    task=task,
                    region_id=f"region-{task}-{number}",
                    height=60,
                    width=96,
                )
            )
    age(store, 1000)

    def snapshot() -> str:
        return take_snapshot(
            store,
            Vault(tmp_path / "vault"),
            tmp_path / "snapshots",
            lab.fetch,
            channel="shared",
            projects=None,
            holdout=0.3,
        ).digest

    before = snapshot()
    assert tidy_up(store, tmp_path, KEPT).events == 3
    assert snapshot() == before
    kept = read_snapshot(tmp_path / "snapshots", before)
    assert all(mask.clicks for image in kept.images for mask in image.masks)


def test_it_goes_in_small_steps_and_stops_when_asked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 4)
    for number in range(11):
        store.keep_event(action=str(number), project="1.100", payload={})
    age(store, 31)
    stop = threading.Event()
    stop.set()
    assert tidy_up(store, tmp_path, KEPT, stop=stop) == NOTHING
    assert tidy_up(store, tmp_path, KEPT).events == 11
    assert store.events() == []


def test_files_that_a_crash_left_go_and_no_others(store: Store, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    lab = Lab(store)
    digest = vault.put_image(lab.images[0].rgb)
    (shelf,) = (tmp_path / "vault" / "images").iterdir()
    old, young = shelf / ".part-old", shelf / ".part-young"
    for path in (old, young):
        path.write_bytes(b"half a file")
    long_ago = (datetime.now(UTC) - timedelta(days=2)).timestamp()
    for path in (old, next(shelf.glob("*.png"))):
        os.utime(path, (long_ago, long_ago))
    assert tidy_up(store, tmp_path, KEPT) == replace(NOTHING, files=1)
    assert young.exists()
    assert vault.has_image(digest)


def test_the_clock_decides(store: Store, tmp_path: Path) -> None:
    store.keep_event(action="A", project="1.100", payload={})
    later = now() + timedelta(days=31)
    assert tidy_up(store, tmp_path, KEPT, clock=lambda: later).events == 1
