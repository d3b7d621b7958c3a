from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect

from lidiv_backend.learning import schema
from lidiv_backend.learning.migrations import configuration
from lidiv_backend.learning.store import (
    MAX_FAILURES,
    Failure,
    Store,
    StoredAnnotation,
    StoredAnswer,
    StoredClick,
    StoredProposal,
    StoreError,
)

ANSWER = StoredAnswer(
    region_id="r1",
    project="1.100",
    task=7,
    first_click="c1",
    interactive=True,
    to_name="image",
    label="Object",
    height=20,
    width=30,
    clicks=(
        StoredClick(id="c1", x=12.5, y=50.0, positive=True, next=False),
        StoredClick(id="c2", x=13.0, y=50.0, positive=True, next=True),
    ),
    proposals=(StoredProposal(score=0.9, head=3), StoredProposal(score=0.5, head=0)),
    shown=1,
    model_version="v1",
)
ANNOTATION = StoredAnnotation(
    project="1.100",
    annotation=5,
    task=7,
    task_data={"image": "/data/upload/1/a.jpg"},
    result=[{"id": "r1", "value": {"rle": [1, 2, 3]}}],
    was_cancelled=False,
    completed_by=2,
    lead_time=3.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "lidiv.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(f"sqlite:///{path}")
    yield opened
    opened.close()


def test_an_accepted_region_finds_its_clicks(store: Store) -> None:
    store.keep_answer(ANSWER)
    found = store.answer("r1")
    assert found is not None
    assert found.created_at is not None
    assert found.created_at.tzinfo is not None
    assert replace(found, created_at=None) == ANSWER
    assert store.answer("unknown") is None


def test_an_answer_sent_twice_is_kept_once(store: Store) -> None:
    store.keep_answer(ANSWER)
    store.keep_answer(replace(ANSWER, model_version="v2"))
    found = store.answer("r1")
    assert found is not None
    assert found.model_version == "v1"


def test_an_interaction_remembers_the_version_it_began_with(store: Store) -> None:
    store.keep_answer(ANSWER)
    store.keep_answer(replace(ANSWER, region_id="r2", model_version="v2"))
    key = {"project": "1.100", "task": 7, "first_click": "c1"}
    assert store.first_version(**key) == "v1"  # type: ignore[arg-type]
    for other in ({"project": "1.200"}, {"task": 8}, {"first_click": "c2"}, {"task": None}):
        assert store.first_version(**(key | other)) is None  # type: ignore[arg-type]


def test_a_batch_pins_nothing(store: Store) -> None:
    store.keep_answer(replace(ANSWER, interactive=False))
    assert store.first_version(project="1.100", task=7, first_click="c1") is None


def test_a_task_without_number_is_a_task_too(store: Store) -> None:
    store.keep_answer(replace(ANSWER, task=None))
    assert store.first_version(project="1.100", task=None, first_click="c1") == "v1"


def test_a_project_that_connects_again_replaces_itself(store: Store) -> None:
    for hostname in ("http://old", "http://new"):
        store.keep_connection(
            project="1.100",
            hostname=hostname,
            access_token="placeholder",
            label_config="<View/>",
            extra_params={"proposals": 3},
        )
    (connection,) = store.connections()
    assert connection == store.connection("1.100")
    assert (connection.hostname, connection.access_token) == ("http://new", "placeholder")
    assert "placeholder" not in repr(connection)
    assert store.connection("2.100") is None


def test_annotations_live_through_changes_and_deletion(store: Store) -> None:
    store.keep_event(
        action="ANNOTATION_CREATED", project="1.100", payload={"n": 1}, annotation=ANNOTATION
    )
    changed = replace(ANNOTATION, result=[], lead_time=9.0)
    store.keep_event(
        action="ANNOTATION_UPDATED", project="1.100", payload={"n": 2}, annotation=changed
    )
    assert store.annotation("1.100", 5) == changed
    # Another Label Studio has an annotation of the same number.
    store.keep_event(action="ANNOTATIONS_DELETED", project="1.200", payload={"n": 3}, deleted=[5])
    assert store.annotation("1.100", 5) == changed
    store.keep_event(
        action="ANNOTATIONS_DELETED", project="1.100", payload={"n": 4}, deleted=[5, 6]
    )
    deleted = store.annotation("1.100", 5)
    assert deleted is not None
    assert deleted.deleted_at is not None
    assert [payload["n"] for _, payload in store.events()] == [4, 3, 2, 1]


def test_failures_are_bounded_and_the_newest_come_first(store: Store) -> None:
    def failure(number: int) -> Failure:
        return Failure(
            kind="bad click",
            message=f"Click {number}.",
            remedy="Click inside.",
            request_id=str(number),
            route="/predict",
            task=number % 3 or None,
        )

    for number in range(MAX_FAILURES + 20):
        store.keep_failure(failure(number))
    kept = store.recent_failures(limit=1000)
    assert len(kept) == MAX_FAILURES
    assert [entry.request_id for entry in kept[:2]] == ["219", "218"]
    assert kept[0].happened_at is not None
    assert store.recent_failures(limit=3) == kept[:3]


def test_the_same_failure_again_moves_to_the_front(store: Store) -> None:
    first = Failure(kind="k", message="m", remedy="r", request_id="1", route="/predict", task=None)
    store.keep_failure(first)
    store.keep_failure(replace(first, message="other", request_id="2"))
    store.keep_failure(replace(first, request_id="3"))
    assert [entry.request_id for entry in store.recent_failures()] == ["3", "2"]


def test_many_threads_write_at_once(store: Store) -> None:
    def work(number: int) -> None:
        store.keep_answer(replace(ANSWER, region_id=f"r{number % 10}"))
        store.keep_event(
            action="ANNOTATION_UPDATED",
            project="1.100",
            payload={"n": number},
            annotation=replace(ANNOTATION, annotation=number % 3),
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    assert len(store.events(limit=100)) == 64
    assert all(store.answer(f"r{number}") for number in range(10))


def test_several_servers_may_open_it_at_once(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(f"sqlite:///{path}"), range(4)))
    stores[0].keep_answer(ANSWER)
    assert stores[3].answer("r1") is not None
    for opened in stores:
        opened.close()


def test_what_was_kept_is_there_after_a_restart(path: Path) -> None:
    first = Store(f"sqlite:///{path}")
    first.keep_answer(ANSWER)
    first.close()
    second = Store(f"sqlite:///{path}")
    assert second.answer("r1") is not None
    second.close()


def test_only_its_owner_reads_it(store: Store, path: Path) -> None:
    store.keep_answer(ANSWER)
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_sqlite_does_not_lock_readers_out(store: Store, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_migrations_make_the_tables_that_the_code_has(path: Path, store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", "lidiv_backend.learning:migrations")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises where they differ
        names = set(inspect(connection).get_table_names())
        assert names == {"alembic_version", *schema.Base.metadata.tables}
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]


#: Brings an older database up to date and is killed between two changes of its tables.
KILLED = """
import os, sys
from alembic import op
from lidiv_backend.learning.store import Store
make, made = op.create_index, []
def make_and_die(*arguments, **options):
    make(*arguments, **options)
    made.append(arguments)
    if len(made) == 2:
        os._exit(9)
op.create_index = make_and_die
Store(sys.argv[1])
"""


@pytest.mark.parametrize("revision", ["base", "0002"])
def test_a_kill_between_two_changes_of_the_tables_leaves_the_older_database(
    path: Path, revision: str
) -> None:
    url = f"sqlite:///{path}"
    store = Store(url)
    store.keep_answer(ANSWER)
    store.close()
    engine = create_engine(url)
    config = configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
        before = set(inspect(connection).get_table_names())
    killed = subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert killed.returncode == 9
    with engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == before
    engine.dispose()
    store = Store(url)
    store.keep_answer(ANSWER)
    kept = store.answer(ANSWER.region_id)
    assert kept is not None
    assert kept.clicks == ANSWER.clicks
    store.close()


def test_a_database_that_cannot_be_opened_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for url in (
        f"sqlite:///{tmp_path}/file/lidiv.sqlite",
        f"sqlite:///{tmp_path}",
        "nonsense://x",
        "not a url",
    ):
        with pytest.raises(StoreError) as caught:
            Store(url)
        assert "LIDIV_DATABASE_URL" in caught.value.remedy


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 100)
    with pytest.raises(StoreError):
        Store(f"sqlite:///{path}")
    assert path.read_text().startswith("Dear reader")


def test_errors_never_show_the_values_of_a_statement(store: Store, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE connections")
    with pytest.raises(StoreError) as caught:
        store.keep_connection(
            project="1", hostname="h", access_token="secret-token", label_config="", extra_params={}
        )
    assert "secret-token" not in str(caught.value)
