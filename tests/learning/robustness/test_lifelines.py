"""The worker beside the server: started again when it dies, and never left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.learning.robustness import service as lab
from tests.learning.robustness.service import LabelStudio, Service, until


@pytest.fixture
def service(tmp_path: Path, studio: LabelStudio) -> Iterator[Service]:
    made = Service(tmp_path, lab.environment(tmp_path, studio.url))
    made.start()
    try:
        yield made
    finally:
        made.stop()


def worker_of(service: Service, *, but: psutil.Process | None = None) -> psutil.Process:
    def other() -> psutil.Process | None:
        found = service.find("worker")
        return None if found == but else found

    found = until(other, "there is a worker")
    assert found is not None
    return found


def is_at_work(service: Service, times: int) -> None:
    """Wait until so many workers have begun."""
    until(
        lambda: service.log.read_text().count("The worker begins") >= times,
        f"{times} workers have begun",
    )


def test_a_worker_that_is_killed_is_started_again_and_ends_with_the_killed_server(
    service: Service,
) -> None:
    first = worker_of(service)
    service.kill("worker")
    second = worker_of(service, but=first)
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    is_at_work(service, 1)
    # A training is under way when the server is killed.
    for task in range(6):
        assert until(
            lambda task=task: lab.post(service.url, lab.annotation_event(task, task)),  # type: ignore[misc]
            "the webhook is answered",
        )
    assert lab.post(service.url, lab.event("START_TRAINING")) == 201
    until(lambda: service.find("trainer"), "there is a training")
    assert service.find("worker") == second
    assert service.kill("master")
    until(service.are_gone, "the worker and the training end with the server")


def test_a_worker_ends_with_a_server_that_is_asked_to_stop(service: Service) -> None:
    assert service.master is not None
    worker = worker_of(service)
    service.find("server")
    service.master.send_signal(signal.SIGTERM)
    assert service.master.wait(lab.BOUND) == 0
    until(service.are_gone, "the worker ends with the server")
    assert not worker.is_running()
