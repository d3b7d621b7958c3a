"""Child processes that are started, waited for and stopped without leaving anything behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from lidiv_backend.errors import LidivError
from lidiv_backend.server.settings import SECRETS

#: Seconds between two looks at a service that is not ready yet.
POLL_SECONDS = 0.2
#: Seconds that a service gets to end by itself before it is killed.
STOP_SECONDS = 15.0
#: Lines of a log that are shown when its service fails.
TAIL_LINES = 25
# What a backend needs in order to be an installation's own.
_INSTALLATION = ("LIDIV_BASIC_AUTH_USER", *(f"LIDIV_{name.upper()}" for name in SECRETS))


class ServiceError(LidivError):
    """A service that was started here ended, or did not become ready."""

    kind = "service"


class PortBusyError(LidivError):
    """A port that a service needs is taken."""

    kind = "port"


@dataclass(frozen=True, kw_only=True)
class Service:
    """What is started, and how to see that it is ready.

    Parameters
    ----------
    name
        What a person calls it.
    command
        Program and arguments.
    environment
        The whole environment of the process; secrets travel here, not in `command`, which every
        user of the machine can read.
    log_path
        Where its output goes; what an earlier run left there is overwritten.
    ready_url
        Answers 200 once the service can be used.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    ready_url: str


def throwaway_environment() -> dict[str, str]:
    """Give this process's environment for a backend that is to be apart from any installation.

    The database, the login, the token and the secret that were exported for an installation's own
    server are left out, and so are the files of them.
    """
    left_out = {*_INSTALLATION, *(f"{name}_FILE" for name in _INSTALLATION)}
    return {name: value for name, value in os.environ.items() if name not in left_out}


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file; an empty string if there is none."""
    if not path.exists():
        return ""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def require_free_port(port: int, *, option: str) -> None:
    """Refuse a port on the loopback address that something else listens on.

    Parameters
    ----------
    port
        The port.
    option
        The command-line option that chooses another one, for the message.

    Raises
    ------
    PortBusyError
        If it is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: a port whose last connections are still winding down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise PortBusyError(
                f"Port {port} cannot be used: {error}.",
                remedy=f"Stop what listens there, or choose another port with {option}.",
            ) from error


class RunningService:
    """A service in a process group of its own.

    A terminal's Ctrl+C therefore does not reach it: whoever started it decides when it ends, and
    ends everything that it started in turn.

    Parameters
    ----------
    service
        What to start.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        service.log_path.parent.mkdir(parents=True, exist_ok=True)
        with service.log_path.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the commands are our own
                service.command,
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process, which leads its group."""
        return self._process.pid

    def wait_until_ready(self, *, seconds: float) -> None:
        """Wait until the service answers at its `ready_url`.

        Raises
        ------
        ServiceError
            If it ends before, or is not ready after `seconds`; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        last = "it never answered"
        while True:
            try:
                answer = requests.get(self.service.ready_url, timeout=5)
                if answer.status_code == 200:
                    return
                last = f"its last answer was {answer.status_code} {answer.text.strip()}"
            except requests.RequestException:
                pass  # not listening yet
            if self._wait(POLL_SECONDS):
                raise self.ended()
            if time.monotonic() > deadline:
                raise self._error(
                    f"{self.service.name} was not ready after {seconds:.0f} s: {last}."
                )

    def has_ended(self) -> bool:
        """Tell whether the process has ended by itself."""
        return self._process.poll() is not None

    def ended(self) -> ServiceError:
        """Make the error that says how the process ended."""
        return self._error(
            f"{self.service.name} ended with exit status {self._process.returncode}."
        )

    def stop(self) -> None:
        """End the process and everything that it started; harmless when it has ended."""
        try:
            self._signal(signal.SIGTERM)
            self._wait(STOP_SECONDS)
        finally:
            # Whatever of the group outlived its leader goes too, also on a second Ctrl+C.
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole group is gone
            os.killpg(self._process.pid, number)

    def _wait(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _error(self, message: str) -> ServiceError:
        log = self.service.log_path
        return ServiceError(f"{message}\nThe end of {log}:\n{tail(log)}\n")


def watch(services: Iterable[RunningService]) -> None:
    """Return never; raise as soon as one of the services ends by itself.

    Raises
    ------
    ServiceError
        With the end of the log of the service that ended.
    """
    watched = list(services)
    while True:
        for service in watched:
            if service.has_ended():
                raise service.ended()
        time.sleep(1)
