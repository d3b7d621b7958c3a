"""The server as it really runs: gunicorn, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from lidiv_backend.cli import main
from lidiv_backend.server import serve
from tests.image_host import ImageHost
from tests.server.conftest import TOKEN
from tests.server.test_app import body, click

ROOT = Path(__file__).parents[2]
SETTINGS = "python:lidiv_backend.server.gunicorn_settings"


@contextmanager
def running(folder: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """Run gunicorn on a socket that listens already, so that nothing has to be waited for."""
    log_path = folder / "log"
    with (
        socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
        log_path.open("wb") as log,
    ):
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *arguments],
            cwd=ROOT,
            env=os.environ
            | {"LIDIV_BIND": f"fd://{listener.fileno()}", "LIDIV_STATE": str(folder / "state")}
            | environment,
            pass_fds=(listener.fileno(),),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0, log_path.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_gunicorn_serves_clicks_and_stops_when_asked(
    tmp_path: Path, label_studio: ImageHost
) -> None:
    settings = {
        "LIDIV_LABEL_STUDIO_URL": label_studio.url,
        "LIDIV_LABEL_STUDIO_TOKEN": TOKEN,
        "LIDIV_MAX_BODY_BYTES": "50000",
    }
    arguments = ("-c", "deploy/gunicorn.conf.py", "tests.fake_engine:serve()")
    with running(tmp_path, *arguments, **settings) as url:
        assert requests.get(f"{url}/ready", timeout=120).json()["status"] == "READY"
        answer = requests.post(f"{url}/predict", json=body(click(50)), timeout=60).json()
        assert answer["results"][0]["result"][0]["meta"]["text"] == ["proposal 1 of 4"]
        as_json = {"Content-Type": "application/json"}
        refused = requests.post(f"{url}/predict", data=b"{", headers=as_json, timeout=60)
        assert refused.status_code == 400
        # What Label Studio shows of an error is the reason beside the status.
        assert refused.reason.startswith("The request is not JSON")
        large = requests.post(f"{url}/predict", data=b"x" * 60_000, headers=as_json, timeout=60)
        assert (large.status_code, large.json()["error"]) == (413, "request size")
        assert requests.get(f"{url}/health", timeout=60).status_code == 200
    log = (tmp_path / "log").read_text()
    assert TOKEN not in log
    assert "Traceback" not in log


def test_a_model_that_cannot_be_loaded_leaves_a_server_that_says_why(tmp_path: Path) -> None:
    preset = str(tmp_path / "no-weights")
    with running(tmp_path, "-c", SETTINGS, LIDIV_PRESET=preset) as url:
        # It waits until loading has ended, one way or the other.
        refused = requests.post(f"{url}/predict", json=body(click(50)), timeout=120)
        assert (refused.status_code, refused.json()["error"]) == (503, "weights")
        assert refused.headers["Retry-After"]
        ready = requests.get(f"{url}/ready", timeout=60)
        assert (ready.status_code, ready.json()["error"]) == (503, "weights")
        assert requests.get(f"{url}/health", timeout=60).json()["status"] == "UP"
        assert "no-weights" in requests.get(url, timeout=60).text


def test_the_command_becomes_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str]]] = []

    def execv(path: str, words: list[str]) -> None:
        became.append((path, words))
        raise SystemExit  # this process would be no more

    monkeypatch.setattr(serve.os, "execv", execv)
    monkeypatch.setattr(serve.os, "environ", environment := dict(os.environ))
    arguments = ["serve", "--host", "::1", "--port", "9191", "--preset", "paper", "--threads", "7"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert became == [(sys.executable, [sys.executable, "-m", "gunicorn", "-c", SETTINGS])]
    assert environment["LIDIV_BIND"] == "[::1]:9191"
    assert (environment["LIDIV_PRESET"], environment["LIDIV_THREADS"]) == ("paper", "7")
    assert "LIDIV_WORKERS" not in environment


def test_a_wrong_setting_ends_the_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve.os, "execv", lambda *_: pytest.fail("must not start"))
    # A copy: the command sets variables for what it becomes.
    monkeypatch.setattr(serve.os, "environ", os.environ | {"LIDIV_MAX_PIXELS": "many"})
    assert main(["serve"]) == 1
    assert "LIDIV_MAX_PIXELS" in capsys.readouterr().err
