"""Everything that must last in one file, made while servers serve, and put back from it.

The archive is a plain tar::

    lidiv.sqlite                              the database, whatever it was kept in
    models/ channels/ pins/ snapshots/ vault/ as in the state folder
    manifest.json                             size and sha256 of each of these files
    manifest.sha256                           sha256 of the manifest

The database is always SQLite in there: an archive of one kind of database can be put back into the
other. Files are written before rows refer to them, and only versions of the model are ever deleted,
so the database is read first, and the versions are locked until they are read as well. Then no row
refers to a file that the archive lacks. Folders of single runs are left out: a run that was under
way begins anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, create_engine, func, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from lidiv_backend.errors import BadRequestError, DataError
from lidiv_backend.learning.files import (
    ASIDE,
    encode_json,
    explained,
    read_json,
    sync_folder,
)
from lidiv_backend.learning.migrations import known_revisions
from lidiv_backend.learning.registry import BASE, ModelRegistry
from lidiv_backend.learning.schema import Base
from lidiv_backend.learning.store import Store, StoreError, server_engine, unusable

_FORMAT = 1
_DATABASE = "lidiv.sqlite"
#: Ends of the names of what SQLite keeps beside a database that is in use.
_LOGS = ("-wal", "-shm", "-journal")
_MANIFEST, _SEAL = "manifest.json", "manifest.sha256"
#: Versions can be deleted; these are read while they are locked.
_VERSIONS = ("models", "channels", "pins")
#: Only ever grow.
_GROWING = ("snapshots", "vault")
_NAME = re.compile(
    rf"{re.escape(_DATABASE)}|(?:{'|'.join((*_VERSIONS, *_GROWING))})(?:/[A-Za-z0-9][\w.+-]*)+"
)
_BLOCK = 1 << 20
_ROWS = 200
# A database that somebody writes to is waited for so long.
_BUSY_SECONDS = 5.0

#: Told of bytes as they pass.
Progress = Callable[[int], object]


class DamagedArchiveError(DataError):
    """An archive is incomplete, changed, or none."""

    kind = "archive"


class OccupiedError(BadRequestError):
    """There is something already where something is to be written."""

    status = 409
    kind = "occupied"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Where an installation keeps what must last.

    Parameters
    ----------
    state
        The state folder.
    database
        SQLAlchemy's URL of the database.
    """

    state: Path
    database: str

    @property
    def url(self) -> URL:
        """The database's URL, parsed."""
        return make_url(self.database)

    @property
    def sqlite(self) -> Path | None:
        """File of the database; None where it is on a server."""
        is_file = self.url.get_backend_name() == "sqlite"
        return Path(self.url.database or "") if is_file else None


@dataclass(frozen=True, kw_only=True)
class ArchiveContent:
    """What an archive holds.

    Parameters
    ----------
    created
        When the backup began; ISO 8601.
    release
        Of LiDiv.
    revision
        Of the database's tables.
    rows
        Table -> number of rows.
    files
        Name -> size in bytes and sha256.
    missing
        Files that rows or pointers named, and that were not there when the backup was made.
    """

    created: str
    release: str
    revision: str
    rows: Mapping[str, int]
    files: Mapping[str, tuple[int, str]]
    missing: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


def back_up(
    installation: Installation,
    archive: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> ArchiveContent:
    """Write an archive; servers and workers may go on meanwhile.

    Parameters
    ----------
    installation
        What is backed up; nothing of it is changed.
    archive
        Where to; written aside and renamed, readable by its owner alone, as it may hold tokens.
    overwrite
        Replace an archive that is there.
    progress
        Told how many bytes were written.

    Returns
    -------
    ArchiveContent

    Raises
    ------
    OccupiedError
        If there is such a file already.
    StoreError
        If the database cannot be read.
    StorageError
        If a file cannot be read, or there is no room.
    """
    if archive.exists() and not overwrite:
        raise OccupiedError(
            f"{archive} is there already.", remedy="Choose another name, or add --overwrite."
        )
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with explained(f"Writing {archive}"), _aside(archive.absolute().parent) as folder:
        part = folder / "archive"
        database = folder / _DATABASE
        with part.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            writer = _ArchiveWriter(file, progress)
            # The state folder is made by its first user; the lock needs it.
            with ModelRegistry(installation.state, base=BASE).locked():
                _save_database(installation, database)
                writer.add(database, _DATABASE)
                writer.add_folders(installation.state, _VERSIONS)
            writer.add_folders(installation.state, _GROWING)
            content = ArchiveContent(
                created=created,
                release=importlib.metadata.version("lidiv-backend"),
                revision=_revision(database),
                rows=_count_rows(database),
                files=writer.files,
                missing=_missing(database, installation.state, writer.files),
            )
            writer.finish(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(archive)
        sync_folder(archive.absolute().parent)
    return content


def restore(
    archive: Path,
    installation: Installation,
    *,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> ArchiveContent:
    """Put back what an archive holds, and bring its database up to date.

    Nothing is changed before the whole archive was found good.

    Parameters
    ----------
    archive
        As `back_up` wrote it, from either kind of database.
    installation
        Where to. No server or worker may be using it.
    overwrite
        Replace what is there.
    progress
        Told how many bytes were read.

    Returns
    -------
    ArchiveContent
        What the archive says of itself.

    Raises
    ------
    DamagedArchiveError
        If the archive is incomplete or changed; then nothing was changed.
    OccupiedError
        If there is something already, or somebody is using it.
    StoreError
        If the database cannot be written, or is of a newer version of LiDiv.
    StorageError
        If a file cannot be written.
    """
    state = installation.state
    with explained(f"Restoring {archive}"):
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _aside(state) as folder:
            content = _unpack(archive, folder, progress)
            if content.revision not in known_revisions():
                raise StoreError(
                    f"{archive} is of a newer version of LiDiv, {content.release}.",
                    remedy="Install that version, and restore again.",
                )
            database = folder / _DATABASE
            # Opening it brings it up to date, here where nobody uses it yet.
            Store(f"sqlite:///{database}").close()
            if not overwrite:
                _require_vacant(installation)
            with ModelRegistry(state, base=BASE).locked():
                _put_in_place(installation, folder, database)
    return content


def read_content(archive: Path) -> ArchiveContent:
    """Read what an archive says of itself, without checking the files in it.

    Raises
    ------
    DamagedArchiveError
        If it says nothing.
    """
    with _opened(archive) as tar:
        return _content(tar, archive)


class _ArchiveWriter:
    """Adds files to a tar, and notes what went in."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self.files: dict[str, tuple[int, str]] = {}
        self._tar = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115 - closed by `finish`
        self._progress = progress

    def add_folders(self, base: Path, names: Iterable[str]) -> None:
        """Add whatever lies under folders, but for what is being written aside."""
        for name in names:
            for folder, folders, files in os.walk(base / name):
                folders[:] = sorted(each for each in folders if not each.startswith(ASIDE))
                for each in sorted(files):
                    path = Path(folder) / each
                    known = path.relative_to(base).as_posix()
                    if _NAME.fullmatch(known):
                        self.add(path, known)

    def add(self, path: Path, name: str) -> None:
        """Add a file; one that is gone by now is left out."""
        try:
            opened = path.open("rb")
        except FileNotFoundError:  # unpinned meanwhile
            return
        with opened as file:
            size = os.fstat(file.fileno()).st_size
            read = _Hashing(file, self._progress)
            self._add(name, size, read)
            self.files[name] = (size, read.digest)

    def finish(self, content: ArchiveContent) -> None:
        """Say what is in it, seal that, and close."""
        manifest = encode_json(
            {
                "format": _FORMAT,
                "created": content.created,
                "release": content.release,
                "revision": content.revision,
                "rows": content.rows,
                "files": content.files,
                "missing": content.missing,
            }
        )
        seal = hashlib.sha256(manifest).hexdigest().encode()
        for name, what in ((_MANIFEST, manifest), (_SEAL, seal)):
            self._add(name, len(what), io.BytesIO(what))
        self._tar.close()

    def _add(self, name: str, size: int, source: Any) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        self._tar.addfile(info, source)


class _Hashing:
    """Reads from a file and digests what passes."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._progress = progress

    @property
    def digest(self) -> str:
        """sha256 of what was read so far."""
        return self._hash.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """Read as a file does."""
        block = self._file.read(size)
        self._hash.update(block)
        self._progress(len(block))
        return block


def _save_database(installation: Installation, target: Path) -> None:
    """Write the database as it is at one moment into an SQLite file."""
    source = installation.sqlite
    if source is None:
        _save_server(installation.database, target)
        return
    if not source.is_file():
        raise StoreError(
            f"There is no database at {source}.",
            remedy="Is LIDIV_STATE the folder of the server that is to be backed up?",
        )
    try:
        with (
            closing(sqlite3.connect(source, timeout=_BUSY_SECONDS)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            # All at once: a copy in steps would begin anew with every write of the server.
            reading.backup(writing, pages=-1)
            writing.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise unusable(error) from error


def _save_server(url: str, target: Path) -> None:
    Store(f"sqlite:///{target}").close()
    try:
        # One transaction sees the database as it was when it began.
        source = server_engine(url, isolation_level="REPEATABLE READ")
        copy = create_engine(f"sqlite:///{target}")
        with source.connect() as reading, copy.begin() as writing:
            found = reading.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if found != known_revisions()[0]:
                raise StoreError(
                    f"The database's tables are of revision {found}, and this version of LiDiv has "
                    f"{known_revisions()[0]}.",
                    remedy="Back up with the version that serves.",
                )
            _copy_rows(reading, writing)
        with copy.connect() as connection:
            connection.execute(text("PRAGMA journal_mode=DELETE"))
        source.dispose()
        copy.dispose()
    except SQLAlchemyError as error:
        raise unusable(error) from error


def _copy_rows(source: Connection, target: Connection) -> None:
    for table in Base.metadata.sorted_tables:
        rows = source.execution_options(yield_per=_ROWS).execute(select(table))
        for block in rows.mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in block])


def _revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error as error:
            raise unusable(error) from error
    return str(found[0]) if found else ""


def _count_rows(database: Path) -> dict[str, int]:
    with closing(sqlite3.connect(database)) as connection:
        return {
            table: connection.execute(
                f"SELECT count(*) FROM {table}"  # noqa: S608 - a name of the database's own
            ).fetchone()[0]
            for table in _tables(connection)
        }


def _tables(connection: sqlite3.Connection) -> list[str]:
    """Names of our tables that a database has; an older one lacks some."""
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    return [table for table in Base.metadata.tables if table in present]


def _missing(database: Path, state: Path, files: Mapping[str, object]) -> tuple[str, ...]:
    """Files that rows and pointers name and that the archive lacks."""
    named = set()
    with closing(sqlite3.connect(database)) as connection:
        tables = _tables(connection)
        if "images" in tables:
            digests = connection.execute("SELECT digest FROM images")
            named |= {f"vault/images/{digest[:2]}/{digest}.png" for (digest,) in digests}
        if "snapshots" in tables:
            digests = connection.execute("SELECT digest FROM snapshots")
            named |= {f"snapshots/{digest}.json" for (digest,) in digests}
    for pointer in files:
        if pointer.startswith("channels/"):
            version = read_json(state / pointer).get("version", BASE)
            named |= {f"models/{version}/model.json"} if version != BASE else set()
    return tuple(sorted(named - set(files)))


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, "r:") as tar:
            yield tar
    except FileNotFoundError as error:
        raise DamagedArchiveError(
            f"There is no archive {archive}.", remedy="Check the name."
        ) from error
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(archive, str(error)) from error


def _content(tar: tarfile.TarFile, archive: Path) -> ArchiveContent:
    try:
        manifest, seal = (_bytes(tar, name) for name in (_MANIFEST, _SEAL))
    except KeyError as error:
        raise _damaged(archive, "its end is missing") from error
    if hashlib.sha256(manifest).hexdigest().encode() != seal:
        raise _damaged(archive, "its list of files was changed")
    values = json.loads(manifest)
    if values.pop("format") != _FORMAT:
        raise DamagedArchiveError(
            f"{archive} has a form that this version of LiDiv does not read.",
            remedy="Install the version that wrote it, or a later one.",
        )
    files = {name: (size, digest) for name, (size, digest) in values.pop("files").items()}
    missing = tuple(values.pop("missing"))
    return ArchiveContent(**values, files=files, missing=missing)


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _unpack(archive: Path, folder: Path, progress: Progress) -> ArchiveContent:
    """Write an archive's files into a folder, checking each."""
    with _opened(archive) as tar:
        content = _content(tar, archive)
        members = {member.name: member for member in tar.getmembers()}
        if set(members) != {*content.files, _MANIFEST, _SEAL} or len(members) != len(
            tar.getmembers()
        ):
            raise _damaged(archive, "it does not hold the files that it lists")
        for name, (size, digest) in content.files.items():
            member = members[name]
            if not (member.isreg() and _NAME.fullmatch(name) and member.size == size):
                raise _damaged(archive, f"{name} is not what it should be")
            source = tar.extractfile(member)
            if source is None:
                raise _damaged(archive, f"{name} cannot be read")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            read = _Hashing(source, progress)
            with source, target.open("wb") as file:
                shutil.copyfileobj(read, file, _BLOCK)
                file.flush()
                os.fsync(file.fileno())
            if read.digest != digest:
                raise _damaged(archive, f"{name} was changed")
    return content


def _require_vacant(installation: Installation) -> None:
    """Refuse where anything that must last would be replaced."""
    found = [
        name
        for name in (*_VERSIONS, *_GROWING)
        if any(path.is_file() for path in (installation.state / name).rglob("*"))
    ]
    if installation.sqlite is None:
        Store(installation.database).close()
        engine = server_engine(installation.database)
        with engine.connect() as connection:
            for table in Base.metadata.sorted_tables:
                if connection.scalar(select(func.count()).select_from(table)):
                    found.append(f"rows in {table.name}")
        engine.dispose()
    elif not installation.sqlite.is_file():
        logs = (Path(f"{installation.sqlite}{end}") for end in _LOGS)
        found.extend(str(log) for log in logs if log.is_file() and log.stat().st_size)
    elif any(_count_rows(installation.sqlite).values()):
        found.append(str(installation.sqlite))
    if found:
        raise OccupiedError(
            f"There is something already: {', '.join(found)}.",
            remedy="Add --overwrite to replace it, or set LIDIV_STATE to an empty folder.",
        )


def _put_in_place(installation: Installation, folder: Path, database: Path) -> None:
    """Exchange what is there for what was unpacked; all of it or, on an error, nothing."""
    # The lock on the versions keeps workers out; its file stays.
    moves = [(folder / name, installation.state / name) for name in (*_VERSIONS, *_GROWING)]
    with ExitStack() as cleanup:
        if installation.sqlite is not None:
            _require_unused(installation.sqlite)
            # It may lie elsewhere than the state folder; renaming needs the same file system.
            beside = cleanup.enter_context(_aside(installation.sqlite.parent)) / _DATABASE
            shutil.copyfile(database, beside)
            beside.chmod(0o600)
            # A killed server's log would be applied to the file that comes in its database's place.
            moves.extend(
                (Path(f"{beside}{end}"), Path(f"{installation.sqlite}{end}")) for end in _LOGS
            )
            moves.append((beside, installation.sqlite))
        with _exchanged(moves, folder / "before"):
            if installation.sqlite is None:
                _load_server(installation.database, database)
    sync_folder(installation.state)


@contextmanager
def _exchanged(moves: Iterable[tuple[Path, Path]], before: Path) -> Iterator[None]:
    """Rename new files and folders into place; back again if the block fails."""
    done: list[tuple[Path, Path | None]] = []
    before.mkdir()
    try:
        for number, (new, place) in enumerate(moves):
            kept = None
            if place.exists():
                kept = before / f"{number}-{place.name}"
                shutil.move(place, kept)
            done.append((place, kept))
            if new.exists():
                new.rename(place)
        yield
    except BaseException:
        for place, kept in reversed(done):
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            if kept is not None:
                shutil.move(kept, place)
        raise


def _require_unused(database: Path) -> None:
    """Refuse an SQLite file that a server has open, and leave no log beside it."""
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(database, timeout=1.0)) as connection:
            # Only whoever has the file alone may leave the mode that servers use.
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as error:
        raise OccupiedError(
            f"Somebody is using {database}: {error}.",
            remedy="Stop `lidiv serve` and `lidiv worker`, and restore again.",
        ) from error
    except sqlite3.DatabaseError:
        pass  # damaged: all the more reason to replace it


def _load_server(url: str, database: Path) -> None:
    Store(url).close()
    try:
        target, source = server_engine(url), create_engine(f"sqlite:///{database}")
        with source.connect() as reading, target.begin() as writing:
            tables = Base.metadata.sorted_tables
            names = ", ".join(table.name for table in tables)
            writing.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
            for table in reversed(tables):
                writing.execute(table.delete())
            _copy_rows(reading, writing)
            for table in tables:
                _continue_numbers(writing, table.name, [column.name for column in table.columns])
        target.dispose()
        source.dispose()
    except SQLAlchemyError as error:
        raise unusable(error) from error


def _continue_numbers(connection: Connection, table: str, columns: Iterable[str]) -> None:
    """Let a table's own numbers go on behind those that were put in."""
    if "id" not in columns:
        return
    highest = f"SELECT coalesce(max(id), 0) + 1 FROM {table}"  # noqa: S608 - our own table
    sequence = f"pg_get_serial_sequence('{table}', 'id')"
    connection.execute(text(f"SELECT setval({sequence}, ({highest}), false)"))


@contextmanager
def _aside(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=ASIDE))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _damaged(archive: Path, reason: str) -> DamagedArchiveError:
    return DamagedArchiveError(
        f"{archive} is no archive of LiDiv, or damaged: {reason}.",
        remedy="Nothing was changed. Take another archive.",
    )
