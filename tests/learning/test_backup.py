from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command

from lidiv_backend.cli import main
from lidiv_backend.learning.backup import (
    DamagedArchiveError,
    Installation,
    OccupiedError,
    back_up,
    restore,
)
from lidiv_backend.learning.files import ASIDE, StorageError
from lidiv_backend.learning.migrations import configuration, known_revisions
from lidiv_backend.learning.registry import SHARED, ModelRegistry
from lidiv_backend.learning.snapshot import take_snapshot
from lidiv_backend.learning.store import Store, StoredAnnotation, StoreError
from lidiv_backend.learning.vault import Vault
from tests import tiny
from tests.learning.conftest import MakeWeights
from tests.learning.lab import PROJECT, Lab
from tests.learning.postgres import postgres_server

NewDatabase = Callable[[], str]
#: The same, with options of CREATE DATABASE.
NewPostgres = Callable[..., str]
#: What one release after another has kept its rows in.
WHEN = "2026-03-04 05:06:07.000000"


@pytest.fixture(scope="module")
def new_postgres() -> Iterator[NewPostgres]:
    """Make empty databases on a PostgreSQL server."""
    with postgres_server() as url:
        made: list[str] = []

        def make(options: str = "") -> str:
            name = f"lidiv{len(made)}"
            engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(sa.text(f"CREATE DATABASE {name} {options}"))
            engine.dispose()
            made.append(name)
            return url.replace("/lidiv?", f"/{name}?")

        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> NewDatabase:
    """Make empty databases of either kind."""
    if request.param == "postgresql":
        make: NewDatabase = request.getfixturevalue("new_postgres")
        return make
    numbers = iter(range(99))
    return lambda: f"sqlite:///{tmp_path / f'database{next(numbers)}' / 'lidiv.sqlite'}"


def here(folder: Path, url: str = "") -> Installation:
    return Installation(state=folder, database=url or f"sqlite:///{folder / 'lidiv.sqlite'}")


def fill(installation: Installation, make_weights: MakeWeights, *, tasks: int = 3) -> None:
    """Let something have happened: annotations, a snapshot of them, two versions of the model."""
    store = Store(installation.database)
    lab = Lab(store)
    for task in range(tasks):
        lab.accept(task)
    vault = Vault(installation.state / "vault")
    take_snapshot(
        store,
        vault,
        installation.state / "snapshots",
        lab.fetch,
        channel=SHARED,
        projects=None,
        holdout=0.25,
    )
    store.close()
    registry = ModelRegistry(installation.state, base="default")
    versions = [registry.add(make_weights(seed), {"seed": seed}) for seed in (1, 2)]
    registry.pin(versions[0])
    registry.promote(SHARED, versions[1])
    run = installation.state / "runs" / "1"
    run.mkdir(parents=True)
    (run / "process.log").write_text("scratch")


def rows(url: str) -> dict[str, list[Any]]:
    """Everything in a database, without our own tables' help."""
    engine = sa.create_engine(url)
    found: dict[str, list[Any]] = {}
    with engine.connect() as connection:
        for name in sa.inspect(connection).get_table_names():
            table = sa.Table(name, sa.MetaData(), autoload_with=connection)
            found[name] = sorted(
                repr([_plain(value) for value in row]) for row in connection.execute(table.select())
            )
    engine.dispose()
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "tzinfo"):  # SQLite keeps UTC, and no zone
        return value.replace(tzinfo=None) if value.utcoffset() is None else value.isoformat()[:26]
    return value


def files(state: Path) -> dict[str, bytes]:
    """Everything that must last in a state folder, besides the database."""
    return {
        path.relative_to(state).as_posix(): path.read_bytes()
        for name in ("models", "channels", "pins", "snapshots", "vault")
        for path in sorted((state / name).rglob("*"))
        if path.is_file()
    }


def leftovers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(f"{ASIDE}*")]


def test_everything_is_there_again_elsewhere(tmp_path: Path, make_weights: MakeWeights) -> None:
    old, new = here(tmp_path / "old"), here(tmp_path / "new")
    fill(old, make_weights)
    before = rows(old.database), files(old.state)
    assert len(before[0]["annotations"]) == 3
    assert {name.partition("/")[0] for name in before[1]} == {
        "models",
        "channels",
        "pins",
        "snapshots",
        "vault",
    }
    archive = tmp_path / "lidiv.tar"
    content = back_up(old, archive)
    assert (rows(old.database), files(old.state)) == before
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert content.rows["annotations"] == 3
    assert content.missing == ()
    shutil.rmtree(old.state)
    assert restore(archive, new) == content
    assert (rows(new.database), files(new.state)) == before
    assert not (new.state / "runs").exists()
    assert stat.S_IMODE((new.state / "lidiv.sqlite").stat().st_mode) == 0o600
    # What was in use is in use.
    registry = ModelRegistry(new.state, base="default")
    assert Path(registry.source(registry.pointer(SHARED).version)).is_dir()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_a_server_is_backed_up_and_put_back_into_either(
    tmp_path: Path, make_weights: MakeWeights, new_postgres: NewDatabase, to: str
) -> None:
    old = here(tmp_path / "old", new_postgres())
    fill(old, make_weights)
    before = rows(old.database)
    back_up(old, tmp_path / "lidiv.tar")
    new = here(tmp_path / "new", new_postgres() if to == "postgresql" else "")
    restore(tmp_path / "lidiv.tar", new)
    store = Store(new.database)
    lab = Lab(store)
    for number in range(3):
        found = store.annotation(PROJECT, 1000 + number)
        assert found == lab.annotation(number)
    if to == "postgresql":
        assert rows(new.database) == before
    assert {name: len(found) for name, found in rows(new.database).items()} == {
        name: len(found) for name, found in before.items()
    }
    assert files(new.state) == files(old.state)
    # Numbers that the database gives go on where they were.
    lab.accept(7)
    assert store.annotation(PROJECT, 1007) is not None
    store.close()


def test_a_server_without_an_encoding_keeps_every_letter(
    tmp_path: Path, new_postgres: NewPostgres
) -> None:
    bytes_only = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    old, new = here(tmp_path / "old", new_postgres(bytes_only)), here(tmp_path / "new")
    result = [{"id": "r1", "value": {"brushlabels": ["Bär ざる"], "rle": [1, 2, 3]}}]

    def read(installation: Installation) -> StoredAnnotation | None:
        with contextlib.closing(Store(installation.database)) as store:
            return store.annotation(PROJECT, 1000)

    with contextlib.closing(Store(old.database)) as store:
        Lab(store).accept(0, result)
    kept = read(old)
    assert kept is not None
    assert kept.result == result
    back_up(old, tmp_path / "lidiv.tar")
    restore(tmp_path / "lidiv.tar", new)
    assert read(new) == kept
    back_up(new, tmp_path / "again.tar")
    again = here(tmp_path / "again", new_postgres(bytes_only))
    restore(tmp_path / "again.tar", again)
    assert read(again) == kept


def test_an_installation_on_sqlite_moves_to_a_server(
    tmp_path: Path, make_weights: MakeWeights, new_postgres: NewDatabase
) -> None:
    old, new = here(tmp_path / "old"), here(tmp_path / "new", new_postgres())
    fill(old, make_weights)
    back_up(old, tmp_path / "lidiv.tar")
    restore(tmp_path / "lidiv.tar", new)
    back_up(new, tmp_path / "again.tar")
    restore(tmp_path / "again.tar", again := here(tmp_path / "again"))
    assert rows(again.database) == rows(old.database)


def test_nothing_is_torn_while_servers_and_workers_go_on(
    tmp_path: Path, make_weights: MakeWeights, new_database: NewDatabase
) -> None:
    """Between any two pieces that are read, somebody writes; in each archive all fits together."""
    old = here(tmp_path / "old", new_database())
    fill(old, make_weights, tasks=1)
    store, vault = Store(old.database), Vault(old.state / "vault")
    lab = Lab(store)
    registry = ModelRegistry(old.state, base="default", keep=1)
    pruned = threading.Thread(target=registry.prune)
    written = 0

    def somebody_writes(_: int) -> None:
        nonlocal written
        if not pruned.ident:
            registry.unpin(registry.versions()[0].version)
            pruned.start()  # waits for the lock
        if written == 15 * (number + 1):
            return
        written += 1
        lab.accept(written % 40)
        digest = vault.put_image(tiny.photo(8, 8, seed=written))
        store.keep_image(PROJECT, written, "/data/upload/7/new.png", digest)

    for number in range(2):
        archive = tmp_path / f"{number}.tar"
        content = back_up(old, archive, progress=somebody_writes)
        assert content.missing == ()
        new = here(tmp_path / f"new{number}")
        restore(archive, new)
        refers_to_what_is_there(new)
    pruned.join()
    assert written == 30
    store.close()


def refers_to_what_is_there(installation: Installation) -> None:
    kept = files(installation.state)
    with closing(sqlite3.connect(installation.state / "lidiv.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for (digest,) in connection.execute("SELECT digest FROM images").fetchall():
            assert f"vault/images/{digest[:2]}/{digest}.png" in kept
        snapshots = connection.execute("SELECT digest FROM snapshots").fetchall()
        for (digest,) in snapshots:
            assert f"snapshots/{digest}.json" in kept
    for name, body in kept.items():
        if name.startswith("channels/"):
            assert f"models/{json.loads(body)['version']}/model.json" in kept


def test_what_was_missing_already_is_said(tmp_path: Path, make_weights: MakeWeights) -> None:
    old = here(tmp_path / "old")
    fill(old, make_weights)
    lost = next((old.state / "vault" / "images").rglob("*.png"))
    lost.unlink()
    (old.state / "vault" / "images" / f"{ASIDE}xyz").write_bytes(b"half")
    content = back_up(old, tmp_path / "lidiv.tar")
    assert content.missing == (lost.relative_to(old.state).as_posix(),)
    assert not any(ASIDE in name for name in content.files)
    restore(tmp_path / "lidiv.tar", here(tmp_path / "new"))


def test_nothing_is_overwritten_without_being_told(
    tmp_path: Path, make_weights: MakeWeights, new_database: NewDatabase
) -> None:
    old, other = here(tmp_path / "old"), here(tmp_path / "other", new_database())
    fill(old, make_weights, tasks=1)
    fill(other, make_weights, tasks=3)
    archive = tmp_path / "lidiv.tar"
    back_up(old, archive)
    written = archive.read_bytes()
    with pytest.raises(OccupiedError, match="there already"):
        back_up(other, archive)
    assert archive.read_bytes() == written
    before = rows(other.database), files(other.state)
    with pytest.raises(OccupiedError, match="There is something already"):
        restore(archive, other)
    assert (rows(other.database), files(other.state)) == before
    restore(archive, other, overwrite=True)
    assert len(rows(other.database)["annotations"]) == 1
    assert files(other.state) == files(old.state)
    back_up(other, archive, overwrite=True)
    assert leftovers(tmp_path) == []


def test_a_database_that_was_only_opened_is_no_obstacle(
    tmp_path: Path, make_weights: MakeWeights, new_database: NewDatabase
) -> None:
    old, new = here(tmp_path / "old"), here(tmp_path / "new", new_database())
    fill(old, make_weights)
    back_up(old, tmp_path / "lidiv.tar")
    Store(new.database).close()
    restore(tmp_path / "lidiv.tar", new)
    assert len(rows(new.database)["annotations"]) == 3


def test_a_database_in_use_is_not_replaced(tmp_path: Path, make_weights: MakeWeights) -> None:
    old = here(tmp_path / "old")
    fill(old, make_weights)
    back_up(old, tmp_path / "lidiv.tar")
    server = Store(old.database)
    assert server.known_annotations(PROJECT)
    before = rows(old.database), files(old.state)
    with pytest.raises(OccupiedError, match="using"):
        restore(tmp_path / "lidiv.tar", old, overwrite=True)
    assert (rows(old.database), files(old.state)) == before
    server.close()
    restore(tmp_path / "lidiv.tar", old, overwrite=True)
    assert (rows(old.database), files(old.state)) == before


#: A server that is killed while its last rows are in the log beside the database only.
KILLED = """
import os, sys
from lidiv_backend.learning.store import Store
store = Store(sys.argv[1])
for number in range(60):
    store.keep_event(action=f"LATER{number}", project="1.0", payload={"text": "y" * 900})
os._exit(9)
"""


def test_what_a_killed_server_left_in_its_log_is_not_applied_to_what_is_restored(
    tmp_path: Path, make_weights: MakeWeights
) -> None:
    old, other = here(tmp_path / "old"), here(tmp_path / "other")
    fill(old, make_weights)
    back_up(old, tmp_path / "lidiv.tar")
    subprocess.run([sys.executable, "-c", KILLED, other.database], check=False)
    assert other.sqlite is not None
    other.sqlite.unlink()
    with pytest.raises(OccupiedError, match="-wal"):
        restore(tmp_path / "lidiv.tar", other)
    restore(tmp_path / "lidiv.tar", other, overwrite=True)
    assert rows(other.database) == rows(old.database)
    with closing(sqlite3.connect(other.sqlite)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert leftovers(tmp_path) == []


def test_a_restore_that_fails_half_way_changes_nothing(
    tmp_path: Path, make_weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = here(tmp_path / "old"), here(tmp_path / "other")
    fill(old, make_weights, tasks=1)
    fill(other, make_weights, tasks=3)
    back_up(old, tmp_path / "lidiv.tar")
    before = rows(other.database), files(other.state)
    rename = Path.rename
    left = 4

    def fails_in_the_end(self: Path, target: Any) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails_in_the_end)
        with pytest.raises(StorageError, match="No space left"):
            restore(tmp_path / "lidiv.tar", other, overwrite=True)
    assert (rows(other.database), files(other.state)) == before
    assert leftovers(tmp_path) == []
    restore(tmp_path / "lidiv.tar", other, overwrite=True)
    assert files(other.state) == files(old.state)


def test_a_damaged_archive_is_refused_and_nothing_changes(
    tmp_path: Path, make_weights: MakeWeights
) -> None:
    old = here(tmp_path / "old")
    fill(old, make_weights)
    archive = tmp_path / "lidiv.tar"
    back_up(old, archive)
    good = archive.read_bytes()
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    draw = np.random.default_rng(0)
    damaged = [b"", b"no archive", good[:1000]]
    damaged += [good[: int(at)] for at in draw.integers(512, members[-1].offset_data, 5)]
    # A flipped bit in the content of every file, and in the names of some.
    for member in (member for member in members if member.size):
        at = member.offset_data + int(draw.integers(member.size))
        damaged.append(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
    for member in members[:: len(members) // 4]:
        at = member.offset + 3
        damaged.append(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    new = here(tmp_path / "new")
    for content in damaged:
        archive.write_bytes(content)
        with pytest.raises(DamagedArchiveError):
            restore(archive, new)
        assert not any(new.state.iterdir())
    with pytest.raises(DamagedArchiveError, match="no archive"):
        restore(tmp_path / "nowhere.tar", new)
    archive.write_bytes(good)
    restore(archive, new)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../escaped"},
        {"name": "models/../../escaped"},
        {"name": "/escaped"},
        {"name": "vault/.hidden"},
        {"name": "other/file"},
        {"name": "models/link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    ],
    ids=lambda change: str(change["name"]),
)
def test_an_archive_that_reaches_elsewhere_is_refused(
    tmp_path: Path, make_weights: MakeWeights, change: Mapping[str, Any]
) -> None:
    """Even where its list of files and its seal are as they should be."""
    old = here(tmp_path / "old")
    fill(old, make_weights, tasks=1)
    archive = tmp_path / "lidiv.tar"
    back_up(old, archive)
    with tarfile.open(archive) as tar:
        kept = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    bodies = {member.name: body for member, body in kept}
    manifest = json.loads(bodies["manifest.json"])
    info = tarfile.TarInfo()
    for attribute, value in change.items():
        setattr(info, attribute, value)
    manifest["files"][info.name] = [0, hashlib.sha256(b"").hexdigest()]
    encoded = json.dumps(manifest).encode()
    bodies["manifest.json"] = encoded
    bodies["manifest.sha256"] = hashlib.sha256(encoded).hexdigest().encode()
    with tarfile.open(archive, "w") as tar:
        tar.addfile(info, io.BytesIO())
        for name, body in bodies.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    with pytest.raises(DamagedArchiveError):
        restore(archive, here(tmp_path / "new"))
    assert not any((tmp_path / "new").iterdir())
    assert not list(tmp_path.rglob("escaped"))


def make_old(url: str, revision: str = "0001") -> None:
    """A database as an earlier release left it, with rows."""
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url)
    config = configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.execute(
            sa.text(
                "INSERT INTO annotations (project, annotation, task, task_data, result, "
                "was_cancelled, completed_by, lead_time, created_at, updated_at) VALUES "
                "(:project, 5, 7, :data, '[]', :no, 2, 1.5, :then, :then)"
            ),
            {
                "project": PROJECT,
                "data": '{"image": "/data/a.jpg"}',
                "no": False,
                "then": WHEN,
            },
        )
        connection.execute(
            sa.text(
                "INSERT INTO interactions VALUES ('r1', :project, 7, 'c1', :yes, 'image', "
                "'Cell', 20, 30, :clicks, :proposals, 0, 'v1', :then)"
            ),
            {
                "project": PROJECT,
                "yes": True,
                "clicks": '[{"id": "c1", "x": 12.5, "y": 50.0, "positive": true, "next": false}]',
                "proposals": '[{"score": 0.9, "head": 3}]',
                "then": WHEN,
            },
        )
    engine.dispose()


def is_up_to_date(url: str) -> None:
    """The old rows can be used, new ones can be written, and the tables are today's."""
    store = Store(url)
    found = store.annotation(PROJECT, 5)
    assert found is not None
    assert (found.task_data, found.lead_time, found.deleted_at) == (
        {"image": "/data/a.jpg"},
        1.5,
        None,
    )
    answer = store.answer("r1")
    assert answer is not None
    assert (answer.clicks[0].x, answer.proposals[0].head, answer.label) == (12.5, 3, "Cell")
    Lab(store).accept(1)
    store.keep_image(PROJECT, 7, "/data/a.jpg", "0" * 64)
    store.close()
    engine = sa.create_engine(url)
    config = configuration()
    with engine.begin() as connection:
        assert (
            connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            == (known_revisions()[0])
        )
        config.attributes["connection"] = connection
        command.check(config)
    engine.dispose()


def test_an_older_database_is_brought_up_to_date_when_it_is_opened(
    new_database: NewDatabase,
) -> None:
    url = new_database()
    make_old(url)
    is_up_to_date(url)


def test_an_older_backup_is_brought_up_to_date_when_it_is_put_back(
    tmp_path: Path, new_database: NewDatabase
) -> None:
    old, new = here(tmp_path / "old"), here(tmp_path / "new", new_database())
    make_old(old.database)
    content = back_up(old, tmp_path / "lidiv.tar")
    assert content.revision == "0001"
    # It was only read.
    with closing(sqlite3.connect(old.state / "lidiv.sqlite")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    restore(tmp_path / "lidiv.tar", new)
    is_up_to_date(new.database)


def test_a_server_of_another_version_is_backed_up_by_that_version(
    tmp_path: Path, new_postgres: NewDatabase
) -> None:
    url = new_postgres()
    make_old(url)
    with pytest.raises(StoreError, match="revision 0001"):
        back_up(here(tmp_path / "old", url), tmp_path / "lidiv.tar")
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "lidiv.tar").exists()


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    old = here(tmp_path / "old")
    Store(old.database).close()
    with closing(sqlite3.connect(old.state / "lidiv.sqlite")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version"):
        Store(old.database)
    back_up(old, tmp_path / "lidiv.tar")
    with pytest.raises(StoreError, match="newer version"):
        restore(tmp_path / "lidiv.tar", here(tmp_path / "new"))


def test_a_folder_without_database_is_no_installation(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database"):
        back_up(here(tmp_path / "nothing"), tmp_path / "lidiv.tar")
    assert not (tmp_path / "lidiv.tar").exists()


def test_the_commands_say_what_they_did(
    tmp_path: Path,
    make_weights: MakeWeights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, archive = here(tmp_path / "old"), str(tmp_path / "lidiv.tar")
    fill(old, make_weights)
    monkeypatch.setenv("LIDIV_STATE", str(old.state))
    assert main(["backup", archive]) == 0
    assert f"rows of revision {known_revisions()[0]}" in capsys.readouterr().out
    assert main(["backup", archive]) == 1
    assert "--overwrite" in capsys.readouterr().err
    monkeypatch.setenv("LIDIV_STATE", str(tmp_path / "new"))
    assert main(["restore", archive]) == 0
    assert str(tmp_path / "new") in capsys.readouterr().out
    assert main(["restore", archive]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["restore", archive, "--overwrite"]) == 0
    assert rows(here(tmp_path / "new").database) == rows(old.database)


def test_an_archive_goes_through_pipes(
    tmp_path: Path, make_weights: MakeWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers need it, which share no folder with whoever runs the command."""
    old, new = here(tmp_path / "old"), here(tmp_path / "new")
    fill(old, make_weights, tasks=1)
    out = io.TextIOWrapper(io.BytesIO())
    with monkeypatch.context() as patched:
        patched.setenv("LIDIV_STATE", str(old.state))
        patched.setattr("sys.stdout", out)
        assert main(["backup", "-"]) == 0
    out.seek(0)
    with monkeypatch.context() as patched:
        patched.setenv("LIDIV_STATE", str(new.state))
        patched.setattr("sys.stdin", out)
        assert main(["restore", "-"]) == 0
    assert (rows(new.database), files(new.state)) == (rows(old.database), files(old.state))
    assert leftovers(tmp_path) == []
