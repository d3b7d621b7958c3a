"""A PostgreSQL server of its own for the tests, where Debian's package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Who runs the server where the tests run as root, which PostgreSQL refuses.
_USER = "postgres"


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a server on a socket in a folder of its own; gives SQLAlchemy's URL of a database."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    as_root = os.geteuid() == 0
    # Sockets have short paths, so it is not one of pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="lidiv-pg-", dir="/tmp"))
    try:
        if as_root:
            shutil.chown(folder, _USER, _USER)
        before = ["runuser", "-u", _USER, "--"] if as_root else []

        def run(*words: str) -> None:
            subprocess.run([*before, *words], check=True, capture_output=True, cwd="/", timeout=120)

        data = str(folder / "data")
        made = ("-D", data, "-A", "trust", "-U", "lidiv", "-E", "UTF8", "--no-sync")
        run(str(binaries / "initdb"), *made)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        control = str(binaries / "pg_ctl")
        log = str(folder / "log")
        run(control, "-D", data, "-o", options, "-l", log, "-w", "start")
        try:
            run(str(binaries / "createdb"), "-h", str(folder), "-U", "lidiv", "lidiv")
            yield f"postgresql+psycopg://lidiv@/lidiv?host={folder}"
        finally:
            run(control, "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
