"""`lidiv demo` as a person starts and stops it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import psutil
import pytest

from lidiv_backend.demo.credentials import load_or_create
from lidiv_backend.demo.services import require_free_port
from tests.browser.conftest import free_ports

pytestmark = pytest.mark.browser

LAST_LINE = "Ctrl+C stops both.\n"


def demo(folder: Path, environment: Path, label_studio_port: int, backend_port: int) -> list[str]:
    """Make the command line."""
    options = {
        "--port-label-studio": str(label_studio_port),
        "--port-backend": str(backend_port),
        "--folder": str(folder),
        "--label-studio-environment": str(environment),
    }
    return [sys.executable, "-m", "lidiv_backend.cli", "demo", *chain(*options.items())]


def run_until_stopped(command: list[str], stop: signal.Signals) -> tuple[str, int]:
    """Start the demo, wait until it says that it is up, stop it; what it said, its exit status."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where a shell runs tests in the background, children inherit that Ctrl+C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line == LAST_LINE:
            break
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(stop)
    said += process.stdout.read()
    status = process.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert started
    assert alive == []
    return said, status


def test_demo_starts_stops_and_continues(tmp_path: Path, label_studio_environment: Path) -> None:
    label_studio_port, backend_port = free_ports(2)
    folder = tmp_path / "demo"
    command = demo(folder, label_studio_environment, label_studio_port, backend_port)
    first, status = run_until_stopped(command, signal.SIGINT)
    assert status == 0
    assert f"http://localhost:{label_studio_port}/projects/1/data" in first
    credentials = load_or_create(folder)
    assert credentials.password in first
    assert credentials.token not in first
    assert "Keep label selected after creating a region" in first
    assert "Auto-Accept" in first
    for port in (label_studio_port, backend_port):
        require_free_port(port, option="--port")
    assert credentials.token not in (folder / "logs" / "backend.log").read_text()

    again, status = run_until_stopped(command, signal.SIGTERM)
    assert status == 0
    assert again == first


def test_busy_port_is_told(tmp_path: Path, label_studio_environment: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = demo(tmp_path / "demo", label_studio_environment, *free_ports(1), port)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--port-backend" in done.stderr
    assert not (tmp_path / "demo" / "logs").exists()
