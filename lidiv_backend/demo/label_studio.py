"""Label Studio in an environment of its own: its dependencies do not mix with ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lidiv_backend.demo.credentials import Credentials
from lidiv_backend.demo.services import Service
from lidiv_backend.errors import LidivError
from lidiv_backend.learning.files import write_file

#: The version whose behaviour the backend was checked against.
VERSION = "1.23.2"
#: What Label Studio calls its SQLite database.
DATABASE = "label_studio.sqlite3"
#: In the virtual environment: a database with all its tables and nothing in them. Making one takes
#: most of a first start.
EMPTY_DATABASE = "empty-label-studio.sqlite3"
#: Nothing leaves the machine.
_SILENT = {
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


def is_installed(environment: Path) -> bool:
    """Tell whether a virtual environment has the right Label Studio."""
    python = environment / "bin" / "python"
    if not python.exists():
        return False
    # pip installs a package after those that it depends on, so its version is there last.
    question = "import importlib.metadata as m; print(m.version('label-studio'))"
    answer = subprocess.run(  # noqa: S603 - our own command
        (str(python), "-c", question), capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() == VERSION


def install(environment: Path) -> None:
    """Make a virtual environment, if there is none, and install Label Studio into it.

    An empty database is made, too, that first starts begin with.

    Parameters
    ----------
    environment
        Folder of the virtual environment.

    Raises
    ------
    LidivError
        If it cannot be installed.
    """
    python = environment / "bin" / "python"
    steps = (
        (sys.executable, "-m", "venv", str(environment)),
        (str(python), "-m", "pip", "install", "--quiet", f"label-studio=={VERSION}"),
    )
    for step in steps:
        _require(step, environment)
    with tempfile.TemporaryDirectory() as made:
        (manage,) = environment.glob("lib/python*/site-packages/label_studio/manage.py")
        _require(
            (str(python), "-W", "ignore", str(manage), "migrate", "--verbosity", "0"),
            environment,
            LABEL_STUDIO_BASE_DATA_DIR=made,
            **_SILENT,
        )
        empty = environment / EMPTY_DATABASE
        write_file(empty, (Path(made) / DATABASE).read_bytes())
        # Whoever may use the environment may begin with it.
        empty.chmod(0o644)


def _require(step: tuple[str, ...], environment: Path, **variables: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own commands
        step, env=_inherited() | variables, check=False
    )
    if done.returncode != 0:
        raise LidivError(
            f"Label Studio {VERSION} could not be installed into {environment}.",
            remedy="The reason is printed above; PyPI must be reachable by pip.",
        )


def _inherited() -> dict[str, str]:
    # HOST is a common shell variable, and Label Studio would take it for its own address.
    return {name: value for name, value in os.environ.items() if name != "HOST"}


def service(*, environment: Path, folder: Path, port: int, credentials: Credentials) -> Service:
    """Describe a Label Studio that asks nothing and reaches a backend on this machine.

    Parameters
    ----------
    environment
        Virtual environment with Label Studio, see `install`; a folder without a database gets a
        copy of its empty one.
    folder
        Keeps the SQLite database; files below it can be served as images.
    port
        Port on the loopback address.
    credentials
        The user that is made at the first start.
    """
    folder = folder.resolve()
    data = folder / "label-studio"
    data.mkdir(parents=True, exist_ok=True)
    empty = environment / EMPTY_DATABASE
    if empty.exists() and not (data / DATABASE).exists():
        write_file(data / DATABASE, empty.read_bytes())
    return Service(
        name="Label Studio",
        command=(
            str(environment.absolute() / "bin" / "label-studio"),
            "start",
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            str(port),
            "--data-dir",
            str(data),
            "--enable-legacy-api-token",
        ),
        environment=_inherited()
        | _SILENT
        | {
            "LABEL_STUDIO_USERNAME": credentials.email,
            "LABEL_STUDIO_PASSWORD": credentials.password,
            "LABEL_STUDIO_USER_TOKEN": credentials.token,
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(folder),
            # Both are needed for a backend on a private address.
            "ML_BLOCK_LOCAL_IP": "false",
            "SSRF_PROTECTION_ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
        },
        log_path=folder / "logs" / "label-studio.log",
        ready_url=f"http://127.0.0.1:{port}/health",
    )
