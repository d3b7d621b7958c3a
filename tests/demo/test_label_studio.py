from __future__ import annotations

import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lidiv_backend.demo import label_studio
from lidiv_backend.demo.credentials import load_or_create
from lidiv_backend.errors import LidivError

#: Takes the place of Label Studio's own: writes what it was asked to a database where it was told.
MANAGE = """
import os, pathlib, sqlite3, sys
assert sys.argv[1] == "migrate"
folder = pathlib.Path(os.environ["LABEL_STUDIO_BASE_DATA_DIR"])
database = sqlite3.connect(folder / "label_studio.sqlite3")
database.execute("CREATE TABLE task (id INTEGER)")
database.close()
sys.exit(int(os.environ["MIGRATE_STATUS"]))
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment in which pip has installed the package, but for the network."""
    environment = tmp_path / "environment"
    manage = environment / "lib" / "python3.11" / "site-packages" / "label_studio" / "manage.py"
    manage.parent.mkdir(parents=True)
    manage.write_text(MANAGE)
    (environment / "bin").mkdir()
    python = environment / "bin" / "python"
    # `-m venv` and `-m pip` have been done.
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("MIGRATE_STATUS", "0")
    return environment


def tables(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as opened:
        return [name for (name,) in opened.execute("SELECT name FROM sqlite_master")]


def describe(environment: Path, folder: Path) -> None:
    label_studio.service(
        environment=environment, folder=folder, port=8080, credentials=load_or_create(folder)
    )


def test_a_first_start_begins_with_the_database_that_was_installed(
    environment: Path, tmp_path: Path
) -> None:
    label_studio.install(environment)
    describe(environment, tmp_path / "demo")
    made = tmp_path / "demo" / "label-studio" / label_studio.DATABASE
    assert tables(made) == ["task"]
    # What is in use stays.
    with closing(sqlite3.connect(made)) as database:
        database.execute("CREATE TABLE annotation (id INTEGER)")
    describe(environment, tmp_path / "demo")
    assert tables(made) == ["task", "annotation"]


def test_an_environment_without_one_leaves_it_to_label_studio(tmp_path: Path) -> None:
    describe(tmp_path / "environment", tmp_path / "demo")
    assert list((tmp_path / "demo" / "label-studio").iterdir()) == []


def test_tables_that_cannot_be_made_are_told_and_not_kept(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATE_STATUS", "1")
    with pytest.raises(LidivError, match="could not be installed"):
        label_studio.install(environment)
    assert not (environment / label_studio.EMPTY_DATABASE).exists()
