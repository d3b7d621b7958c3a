"""Two serving processes and two workers on PostgreSQL: one promotion, and nobody notices."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import requests

from lidiv_backend.learning.registry import SHARED, ModelRegistry
from lidiv_backend.learning.runs import RunCause, RunQueue, RunState, TrainingRun
from lidiv_backend.learning.schema import now
from lidiv_backend.learning.store import Store
from lidiv_backend.model import load_model
from tests.learning.postgres import postgres_server
from tests.learning.robustness import service as lab
from tests.learning.robustness.service import ROOT, LabelStudio, Service, until


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def test_what_one_worker_is_just_claiming_the_other_passes_over(database: str) -> None:
    """FOR UPDATE SKIP LOCKED: the second neither waits for the first nor takes the same run."""
    with closing(Store(database)) as store:
        queue = RunQueue(store)
        first = queue.enqueue("one", RunCause.BUTTON)
        second = queue.enqueue("two", RunCause.BUTTON)
        with store.reading() as session:
            locked = session.scalar(queue._claimable(now(), None))
            assert locked.id == first.id
            claimed = _in_time(lambda: queue.claim("b"))
            assert claimed is not None
            assert claimed.id == second.id
            assert _in_time(lambda: queue.claim("c")) is None
            session.rollback()
        claimed = queue.claim("c")
        assert claimed is not None
        assert claimed.id == first.id
        for run, owner in ((first, "c"), (second, "b")):
            assert queue.finish(run.id, owner, state=RunState.FAILED, message="")


def _in_time(work: Callable[[], TrainingRun | None]) -> TrainingRun | None:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


class Crowd:
    """Annotators who click all the time."""

    def __init__(self, services: list[Service]) -> None:
        self.answers: dict[str, list[tuple[int, str]]] = {each.url: [] for each in services}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._click, args=(url, number))
            for number, url in enumerate(self.answers)
        ]
        for thread in self._threads:
            thread.start()

    def _click(self, url: str, number: int) -> None:
        while not self._stop.wait(0.05):  # as fast as people at most
            answer = requests.post(f"{url}/predict", json=lab.click_body(number), timeout=lab.BOUND)
            results = answer.json().get("results") or [{}]
            self.answers[url].append((answer.status_code, results[0].get("model_version", "")))

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(lab.BOUND)


def test_one_promotion_and_both_servers_change_over(
    database: str, tmp_path: Path, studio: LabelStudio
) -> None:
    environment = lab.environment(tmp_path, studio.url, LIDIV_DATABASE_URL=database)
    services = [Service(tmp_path, environment, ("--no-worker",)) for _ in range(2)]
    workers: list[subprocess.Popen[bytes]] = []
    held, release = threading.Event(), threading.Event()
    crowd: Crowd | None = None
    base = load_model(tmp_path / "preset").version
    try:
        for service in services:
            service.start()
        for service in services:
            service.wait()
        for task in range(16):
            # Either of them hears webhooks.
            event = lab.annotation_event(task, task)
            assert lab.post(services[task % 2].url, event) == 201
        for number in range(2):
            with (tmp_path / f"worker-{number}.log").open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "lidiv_backend.cli", "worker", "--unwatched"],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        crowd = Crowd(services)
        for service in services:
            assert lab.post(service.url, lab.event("START_TRAINING")) == 201
        done = lab.verdict_of(database)
        assert done.state is RunState.DONE, done.message
        # The tiny model learns nothing that the gate would believe, so a person promotes it.
        assert done.message.startswith("Kept")
        assert done.candidate
        _held_up(studio, held, release)
        with ThreadPoolExecutor(1) as pool:
            # It waits for its image until after the promotion.
            in_flight = pool.submit(
                requests.post,
                f"{services[0].url}/predict",
                json=lab.click_body(999),
                timeout=2 * lab.BOUND,
            )
            assert held.wait(lab.BOUND)
            subprocess.run(
                [sys.executable, "-m", "lidiv_backend.cli", "models", "promote", done.candidate],
                cwd=ROOT,
                env=environment,
                check=True,
            )
            for url, answers in crowd.answers.items():
                until(
                    lambda answers=answers: answers[-1][1] == done.candidate,  # type: ignore[misc]
                    f"{url} serves the new version",
                )
            release.set()
            answer = in_flight.result(lab.BOUND)
        assert answer.status_code == 200
        assert answer.json()["results"][0]["model_version"] == base
    except BaseException:
        for path in tmp_path.glob("*.log"):
            print(path.name, path.read_text()[-5000:])
        raise
    finally:
        release.set()
        if crowd is not None:
            crowd.end()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(lab.BOUND)
        for service in services:
            service.stop()
    for answers in crowd.answers.values():
        assert {status for status, _ in answers} == {200}
        versions = [version for _, version in answers]
        # First one, then the other, and never back.
        change = versions.index(str(done.candidate))
        assert versions == [base] * change + [done.candidate] * (len(versions) - change)
    with closing(Store(database)) as store:
        runs = [run for run in RunQueue(store).runs() if run.channel == SHARED]
    assert [(run.candidate, run.attempts) for run in runs] == [(done.candidate, 1)]
    logs = [(tmp_path / f"worker-{number}.log").read_text() for number in range(2)]
    assert sorted(log.count(f"Run {done.id} of shared begins") for log in logs) == [0, 1]
    assert ModelRegistry(tmp_path / "state", base="").pointer(SHARED).version == done.candidate


def _held_up(studio: LabelStudio, held: threading.Event, release: threading.Event) -> None:
    """Let the image of task 999 wait, and no other."""

    def wait(task: int) -> None:
        if task == 999:
            held.set()
            assert release.wait(2 * lab.BOUND)

    studio.while_fetching = wait
