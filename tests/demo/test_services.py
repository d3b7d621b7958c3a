from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from lidiv_backend.demo.services import (
    PortBusyError,
    RunningService,
    Service,
    ServiceError,
    require_free_port,
    watch,
)

#: Answers 200 everywhere, and starts a child that ignores SIGTERM.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child is up", flush=True)
signal.pause()
'''], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    return number


def service(folder: Path, port: int, *command: str) -> Service:
    return Service(
        name="Thing",
        command=(sys.executable, "-c", *command),
        environment=dict(os.environ),
        log_path=folder / "logs" / "thing.log",
        ready_url=f"http://127.0.0.1:{port}/health",
    )


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_ready_then_stopped_with_all_its_children(tmp_path: Path, port: int) -> None:
    running = RunningService(service(tmp_path, port, SERVER, str(port), "200"))
    try:
        running.wait_until_ready(seconds=60)
        child = int((tmp_path / "logs" / "thing.log").read_text().split()[1])
        assert is_running(child)
        assert not running.has_ended()
    finally:
        running.stop()
    assert running.has_ended()
    # The kernel has sent the signal by now; the process may still be on its way out.
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=30)
    assert not is_running(child)
    running.stop()
    require_free_port(port, option="--port")


def test_service_that_ends_shows_its_log(tmp_path: Path, port: int) -> None:
    running = RunningService(service(tmp_path, port, "import sys; sys.exit('no such database')"))
    with pytest.raises(ServiceError, match=r"exit status 1(.|\n)*no such database"):
        running.wait_until_ready(seconds=60)
    with pytest.raises(ServiceError, match="no such database"):
        watch([running])
    running.stop()


def test_service_that_never_becomes_ready(tmp_path: Path, port: int) -> None:
    running = RunningService(service(tmp_path, port, SERVER, str(port), "503"))
    try:
        with pytest.raises(ServiceError, match="not ready after 1 s"):
            running.wait_until_ready(seconds=1)
    finally:
        running.stop()


def test_service_is_out_of_reach_of_a_terminals_ctrl_c(tmp_path: Path, port: int) -> None:
    running = RunningService(service(tmp_path, port, SERVER, str(port), "200"))
    try:
        assert os.getpgid(running.pid) != os.getpgid(0)
    finally:
        running.stop()


def test_busy_port_names_the_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortBusyError, match="--port-backend"):
            require_free_port(taken.getsockname()[1], option="--port-backend")


def test_privileged_or_impossible_port_is_refused() -> None:
    with pytest.raises(PortBusyError):
        require_free_port(99999, option="--port-backend")
