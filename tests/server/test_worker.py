from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lidiv_backend.cli import main
from lidiv_backend.learning.registry import SHARED
from lidiv_backend.learning.runs import RunCause, RunQueue, RunState
from lidiv_backend.learning.settings import LearningSettings
from lidiv_backend.learning.store import Store, StoreError
from lidiv_backend.learning.vault import Vault
from lidiv_backend.model import save_model
from lidiv_backend.server import worker
from lidiv_backend.server.settings import Settings
from lidiv_backend.server.worker import reconcile_all, rounds, watch
from tests import tiny
from tests.image_host import image_host, self_signed
from tests.learning.lab import PROJECT, Lab
from tests.learning.test_process import base_folder

SETTINGS = LearningSettings(poll_seconds=0.001, reconcile_minutes=1000)


def test_a_worker_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RESTART_SECONDS", (0.0, 0.0))
    starts = tmp_path / "starts"
    # The first two kill themselves, the third works until it is ended.
    code = f"""
import os, pathlib, sys, time
path = pathlib.Path({str(starts)!r})
with path.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if len(path.read_text().splitlines()) < 3:
    os.kill(os.getpid(), 9)
time.sleep(600)
"""
    stop = threading.Event()
    watching = threading.Thread(target=watch, args=([sys.executable, "-c", code], stop))
    watching.start()
    while not starts.exists() or len(starts.read_text().splitlines()) < 3:
        assert watching.is_alive()
        stop.wait(0.05)
    stop.set()
    watching.join(60)
    assert not watching.is_alive()
    assert starts.read_text().splitlines() == [f"--with-parent {os.getpid()}"] * 3


def test_no_process_is_forked_while_the_worker_is_being_started() -> None:
    """It would hold the pipe that the starting one is heard by, and nobody would watch any more."""
    code = """
import os, subprocess, threading
from lidiv_backend.server import worker

inside, forked, early = threading.Event(), threading.Event(), []
stop = threading.Event()

class Starting:
    returncode = 0

    def __init__(self, words):
        inside.set()
        # Long enough for a fork that does not wait.
        early.append(forked.wait(0.5))
        stop.set()

    def poll(self):
        return 0

    def terminate(self):
        pass

    def wait(self, timeout=None):
        return 0

subprocess.Popen = Starting
watching = threading.Thread(target=worker.watch, args=(["worker"], stop))
watching.start()
assert inside.wait(60)
child = os.fork()
if not child:
    os._exit(0)
forked.set()
os.waitpid(child, 0)
watching.join(60)
print(early)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "[False]", done.stderr


def test_it_compares_first_and_outlives_what_goes_wrong() -> None:
    stop, done = threading.Event(), []

    def step() -> bool:
        done.append("step")
        if len(done) == 2:
            raise StoreError("The disk is full.")
        if len(done) == 5:
            stop.set()
        return False

    def compare() -> None:
        done.append("compare")
        raise ValueError("Label Studio says something that nobody thought of.")

    rounds(step, compare, SETTINGS, stop, tidy=lambda: done.append("tidy"))
    assert done == ["compare", "step", "tidy", "step", "step"]


def test_once_it_ends_when_nothing_is_due() -> None:
    left = [True, True, False]
    rounds(lambda: left.pop(0), lambda: None, SETTINGS, threading.Event(), once=True)
    assert left == []


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    about = tiny.description(heads=2, ranked=True)
    save_model(tmp_path / "preset", about, tiny.model(about).proposal.state_dict(), None)
    for name, value in {
        "LIDIV_STATE": tmp_path / "state",
        "LIDIV_PRESET": tmp_path / "preset",
        "LIDIV_LEARN_STEPS": 1,
        "LIDIV_LEARN_THREADS": 1,
        "LIDIV_LEARN_DEVICE": "cpu",
        "LIDIV_LEARN_GATE_IMAGES": 1,
        "LIDIV_LEARN_GATE_OBJECTS": 1,
        "LIDIV_LEARN_AFTER": 3,
        "LIDIV_LEARN_POLL_SECONDS": 1,
        "LIDIV_BASE_DATA": base_folder(tmp_path / "base"),
    }.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "state"


@pytest.fixture
def lab(state: Path) -> Lab:
    """Four annotations whose images are there already."""
    made = Lab(Store(f"sqlite:///{state / 'lidiv.sqlite'}"))
    vault = Vault(state / "vault")
    for task in range(4):
        made.accept(task)
        address = f"/data/upload/7/{task}.png"
        made.store.keep_image(PROJECT, task, address, vault.put_image(made.images[task].rgb))
    return made


def test_finetune_by_hand(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--project", "7"]) == 0
    said = capsys.readouterr().out
    assert "Run 1 of shared: done. Kept, not promoted" in said
    assert "Version: tiny-tuned-" in said
    (run,) = RunQueue(lab.store).runs()
    assert (run.cause, run.project, run.channel) == ("command", PROJECT, SHARED)


def test_finetune_may_leave_it_to_a_worker(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--queue"]) == 0
    assert "is queued" in capsys.readouterr().out
    assert RunQueue(lab.store).runs()[0].state is RunState.QUEUED


def test_a_project_that_is_not_there_is_told(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["finetune", "--project", "8"]) == 1
    assert f"Known are {PROJECT}" in capsys.readouterr().err
    monkeypatch.setenv("LIDIV_LEARN_SHARED", "false")
    assert main(["finetune"]) == 1
    assert "--project" in capsys.readouterr().err


def test_without_an_address_nobody_is_asked(state: Path, store_of: Store) -> None:
    store_of.keep_connection(
        project=PROJECT,
        hostname="http://169.254.169.254",
        access_token="placeholder",
        label_config="<View/>",
        extra_params={},
    )
    reconcile_all(Settings.from_environment(), store_of)
    assert store_of.recent_failures() == []


@pytest.fixture
def store_of(state: Path) -> Store:
    return Store(f"sqlite:///{state / 'lidiv.sqlite'}")


def test_a_label_studio_that_is_away_is_a_failure_to_read_about(
    store_of: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", "placeholder")
    store_of.keep_connection(
        project=PROJECT, hostname="", access_token="", label_config="<View/>", extra_params={}
    )
    reconcile_all(Settings.from_environment(), store_of)
    (failure,) = store_of.recent_failures()
    assert failure.route == "reconcile"
    assert "placeholder" not in failure.message


def test_certificates_of_label_studios_own(
    store_of: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    store_of.keep_connection(
        project=PROJECT, hostname="", access_token="", label_config="<View/>", extra_params={}
    )
    monkeypatch.setenv("LIDIV_LABEL_STUDIO_TOKEN", "placeholder")
    monkeypatch.setenv("LIDIV_CA_BUNDLE", str(certificate))
    with image_host(certificate=certificate) as host:
        monkeypatch.setenv("LIDIV_LABEL_STUDIO_URL", host.url)
        reconcile_all(Settings.from_environment(), store_of)
    (failure,) = store_of.recent_failures()
    assert "status 404" in failure.message  # the answer of a host that has nothing


def test_settings_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    monkeypatch.setenv("LIDIV_LEARN_HOLDOUT", "2")
    assert main(["finetune"]) == 1
    assert "LIDIV_LEARN_HOLDOUT" in capsys.readouterr().err
    assert RunCause.COMMAND == "command"
