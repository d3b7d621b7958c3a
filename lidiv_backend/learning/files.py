"""Files that are there whole or not at all, also after a crash or on a full disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lidiv_backend.errors import LidivError

#: What is written aside is named so; whatever has this name may be deleted after a crash.
ASIDE = ".part-"


class StorageError(LidivError):
    """The state folder cannot be written, or holds something else than it should."""

    status = 507
    kind = "storage"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the file system into a `StorageError` that names what was being done."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} failed: {error.strerror or error}.",
            remedy="Is the disk full, or LIDIV_STATE not writable? Nothing was half written.",
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file aside, make it durable, and rename it into place.

    Parameters
    ----------
    path
        Its folder is made if missing; a file that is there is replaced.
    content
        What it shall hold.

    Raises
    ------
    StorageError
        If that fails; then what was there before is still there.
    """
    with explained(f"Writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=ASIDE)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write JSON as `write_file` does."""
    write_file(path, encode_json(values))


def encode_json(values: Any) -> bytes:
    """Write values as JSON that is the same for the same values."""
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises
    ------
    StorageError
        If the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}.", remedy="Restore it from a backup, or delete it."
        ) from error


def place_folder(source: Path, target: Path, *, extra: Mapping[str, bytes]) -> None:
    """Copy the files of a folder aside, make them durable, and rename the copy into place.

    Parameters
    ----------
    source
        Only its files are copied.
    target
        Where the copy shall be. If it is there already, nothing happens.
    extra
        Further files: name -> content.

    Raises
    ------
    StorageError
        If that fails; then nothing is left behind.
    """
    if target.exists():
        return
    with explained(f"Copying {source} to {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=ASIDE))
        try:
            for file in sorted(source.iterdir()):
                if file.is_file():
                    shutil.copyfile(file, aside / file.name)
            for name, content in extra.items():
                (aside / name).write_bytes(content)
            for file in aside.iterdir():
                with file.open("rb") as copied:
                    os.fsync(copied.fileno())
            aside.chmod(0o755)
            sync_folder(aside)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
